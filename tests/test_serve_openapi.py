"""The server's own description is true: it names every path and field, and schemathesis finds no lie."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serving import HI, SECONDS, Live, chatting, live

from remoe_edge.serve import openapi  # isort: skip
from remoe_edge.serve.app import Server  # isort: skip
from remoe_edge.serve.fields import Fields  # isort: skip
from remoe_edge.serve.protocols import anthropic_messages, openai_chat, openai_completions  # isort: skip
from remoe_edge.serve.protocols import openai_responses  # isort: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    # A small context: what is asked without a limit fills it.
    with live(chatting(tmp_path_factory.mktemp("openapi")), n_ctx=128, queue_limit=64) as started:
        yield started


def described(server: Live) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(server.ask("/openapi.json")[2])
    return found


def test_every_path_is_described(server: Live) -> None:
    paths = described(server)["paths"]
    source = Server.app.__code__.co_consts
    routes = {each for each in source if isinstance(each, str) and each.startswith("/")}
    routes = {each.replace(":path}", "}") for each in routes}
    assert set(paths) == routes - {"/", "/page/{name}"}
    for path, methods in paths.items():
        (method,) = methods
        other = "POST" if method == "get" else "GET"
        assert server.ask(path.replace("{name}", "x"), method=other)[0] == 405, path


class Recording(Fields):
    """Note which fields are read, and which are refused by name."""

    def __init__(self, values: Any) -> None:
        super().__init__(values)
        self.read: set[str] = set()
        self.refused: set[str] = set()

    def any(self, field: str, default: Any = None) -> Any:
        self.read.add(field)
        return super().any(field, default)

    def ignore(self, *fields: str) -> None:
        self.read.update(fields)
        super().ignore(*fields)

    def refuse(
        self, field: str, why: str, *, unless: tuple[Any, ...] = (), code: str | None = None
    ) -> None:
        (self.read if unless else self.refused).add(field)
        super().refuse(field, why, unless=unless, code=code)


@pytest.mark.parametrize(
    ("path", "read", "body"),
    [
        ("/v1/chat/completions", openai_chat.read, {"messages": HI}),
        ("/v1/completions", openai_completions.read, {"prompt": "a"}),
        ("/v1/responses", openai_responses.read, {"input": "a"}),
        ("/v1/messages", anthropic_messages.read, {"messages": HI, "max_tokens": 1}),
    ],
)
def test_every_field_is_described(path: str, read: Callable[[Any], Any], body: Any) -> None:
    fields = Recording(body)
    read(fields)
    post = openapi.description(has_key=False)["paths"][path]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == fields.read
    assert not fields.refused & set(schema["properties"])
    assert fields.refused or path == "/v1/completions"


def test_who_may_ask_is_described() -> None:
    locked, open_ = (openapi.description(has_key=each) for each in (True, False))
    assert locked["security"] == [{"bearer": []}, {"header": []}]
    assert "401" in locked["paths"]["/slots"]["get"]["responses"]
    assert "security" not in open_
    assert "401" not in open_["paths"]["/slots"]["get"]["responses"]


def test_tokens_and_texts(server: Live) -> None:
    tokens = server.post("/tokenize", content="hello \u00e9!")["tokens"]
    assert server.post("/detokenize", tokens=tokens) == {"content": "hello \u00e9!"}
    for wrong in ([1.5], [-1], [10**9], "x", [True]):
        status, error = server.refused("/detokenize", tokens=wrong)
        assert (status, error["param"]) == (400, "tokens")


def test_a_chats_tokens_are_counted(server: Live) -> None:
    n = server.post("/v1/messages/count_tokens", model="x", messages=HI)["input_tokens"]
    made = server.post("/v1/messages", messages=HI, max_tokens=1)
    assert n == made["usage"]["input_tokens"] > 0
    status, _, data = server.ask("/v1/messages/count_tokens", {"messages": []})
    assert (status, json.loads(data)["type"]) == (400, "error")


def test_schemathesis(server: Live) -> None:
    """Every operation, with values at the bounds of its schema and beyond them, and some random ones.

    Left out is the check that what keeps to the schema is accepted: it may not fit the context.
    """
    pytest.importorskip(
        "schemathesis",
        reason="schemathesis is not installed: pip install 'remoe-edge[test-clients]'",
    )
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}openapi.json", "--seed", "1",
         "--max-examples", "5", "--exclude-checks", "positive_data_acceptance", "--no-color"],
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"13 selected / 13 total", done.stdout), done.stdout
