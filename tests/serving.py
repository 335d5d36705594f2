"""A live server in threads of this process, and a plain client for it."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import templates
import tiny_moe
from letters import recite
from remoe_edge import Engine
from vocabularies import remade

pytest.importorskip("starlette", reason="no starlette: pip install 'remoe-edge[serve]'")
pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'remoe-edge[serve]'")

from remoe_edge.serve.app import Server
from remoe_edge.serve.engine_thread import EngineThread
from remoe_edge.serve.figures import Figures
from remoe_edge.serve.guards import App
from remoe_edge.serve.listen import Listener
from remoe_edge.serve.one_at_a_time import OneAtATime
from remoe_edge.serve.settings import ServeSettings
from remoe_edge.serve.side_by_side import SideBySide

SECONDS = 600  # how long a test waits before it calls something lost
HI = [{"role": "user", "content": "hi"}]
# Qwen3's template, which says how to call tools.
HERMES = templates.QWEN3.replace("# Tools", "# Tools: <tool_call>...</tool_call>")
MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}"
    + templates.CHATML
    + ("{# [TOOL_CALLS] #}")
)
LLAMA = templates.LLAMA3.replace("'Tools: '", '\'Tools, as {"name": , "parameters": }: \'')
# The same calls from a model that does not reason first.
PLAIN_HERMES = (
    templates.CHATML
    + "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}"
    + "{% for m in messages if m.tool_calls %}{{ m.tool_calls | tojson }}{% endfor %}"
)
GPT_OSS = templates.HARMONY + "{% if tools %}{# commentary to=functions.x #}{% endif %}"


class Live:
    """A server that listens at a free port.

    load: makes its engine, in its thread. answering: makes its conversations. around: wraps the
    application, as a proxy would.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        answering: Callable[..., EngineThread] = OneAtATime,
        around: Callable[[App], App] | None = None,
        **settings: Any,
    ) -> None:
        asked = ServeSettings(port=0, **settings)
        figures = Figures()
        self.conversations = answering(load, queue_limit=asked.queue_limit, figures=figures)
        server = Server(self.conversations, asked, model="tiny", figures=figures)
        app = server.app()
        self._listener = Listener(app if around is None else around(app), asked)
        self.url = self._listener.url
        self.port = int(self.url.rstrip("/").rpartition(":")[2])
        self._thread = threading.Thread(target=self._listener.run)
        self._thread.start()
        wait_until(lambda: self._listener.started)

    def close(self) -> None:
        self._listener.stop()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def ready(self) -> Live:
        wait_until(lambda: self.conversations.state != "loading")
        assert self.conversations.state == "ready", self.conversations.failure
        return self

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request; give (status, headers, body). body: bytes, or what becomes JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            with contextlib.suppress(ConnectionError):  # it may answer before it has everything
                connection.request(method or ("GET" if data is None else "POST"), path, data, sent)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Send what has to go well."""
        status, _, data = self.ask(path, body)
        assert status == 200, data
        found: dict[str, Any] = json.loads(data)
        return found

    def refused(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """Send what is an error; give its status and the error."""
        status, _, data = self.ask(path, body)
        assert status >= 400, data
        return status, json.loads(data)["error"]

    def stream(self, path: str, **body: Any) -> list[tuple[str | None, Any]]:
        """Give the events of a stream, (name, data), "[DONE]" among them."""
        status, headers, data = self.ask(path, {"stream": True, **body})
        assert status == 200, data
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        return list(events(data.decode()))


def events(text: str) -> Iterator[tuple[str | None, Any]]:
    """Read server-sent events; comments are left out."""
    assert text.endswith("\n\n")
    for block in text.split("\n\n")[:-1]:
        name, data = None, []
        for line in block.split("\n"):
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
            else:
                assert line.startswith(":"), line
        if data:
            joined = "\n".join(data)
            yield name, joined if joined == "[DONE]" else json.loads(joined)


def wait_until(reached: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@contextlib.contextmanager
def live(
    model: Path,
    n_ctx: int = 512,
    *,
    parallel: int = 1,
    cache: str = "50%",
    answering: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Live]:
    """Serve a model until the end of the block.

    answering: how several are answered at a time. settings: of `ServeSettings`, and `around`.
    """
    server = Live(
        lambda: Engine(model, cache=cache, n_ctx=n_ctx, threads=1, parallel=parallel),
        OneAtATime if parallel == 1 else functools.partial(SideBySide, **(answering or {})),
        **settings,
    )
    try:
        yield server.ready()
    finally:
        server.close()


def chatting(folder: Path, template: str = HERMES) -> Path:
    """Make a tiny model with a chat template, whose greedy answers are letters without end."""
    tiny = folder / "tiny.gguf"
    if not tiny.exists():
        recite(tiny_moe.make(tiny, "qwen3moe", "Q8_0"))
    n_before = len(list(folder.glob("chat*.gguf")))
    return with_template(tiny, folder / f"chat{n_before}.gguf", template)


def slow_down(server: Live | EngineThread) -> None:
    """Have each step take some milliseconds, so that a test can act before an answer ends."""
    conversations = server.conversations if isinstance(server, Live) else server
    if isinstance(conversations, SideBySide):
        wait_until(lambda: conversations._batch)
        owner, name = conversations._batch, "step"
    else:
        owner, name = conversations.engine._loaded, "check_finite"
    stock = getattr(owner, name)

    def slowly(*given: Any) -> Any:
        time.sleep(0.005)
        return stock(*given)

    setattr(owner, name, slowly)


def with_template(model: Path, path: Path, template: str) -> Path:
    """Copy a model with another chat template."""
    return remade(model, path, {"tokenizer.chat_template": ("STRING", template)})
