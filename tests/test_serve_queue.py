"""Who is answered when: a bounded queue, cancellation, and errors that stay with their request."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from answering import gathered, outlives_a_reader, takes_nothing_once_closed
from remoe_edge import Engine
from remoe_edge.errors import ReadError
from serving import HI, SECONDS, Live, chatting, live, slow_down, wait_until

from remoe_edge.serve.conversations import Ask, NotReady  # isort: skip
from remoe_edge.serve.events import Failed, Finish, Text  # isort: skip
from remoe_edge.serve.figures import Figures  # isort: skip
from remoe_edge.serve.one_at_a_time import OneAtATime  # isort: skip
from remoe_edge.serve.request_stream import GATHER_S, RequestStream  # isort: skip

CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {"messages": HI, "temperature": 0}  # until the context is full


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting(tmp_path_factory.mktemp("queue"))


@pytest.fixture
def server(model: Path) -> Iterator[Live]:
    with live(model, n_ctx=16384, queue_limit=1) as started:
        slow_down(started)
        yield started


def begin(server: Live, **more: Any) -> http.client.HTTPConnection:
    """Send a request that takes long, and do not read its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", CHAT, json.dumps({**LONG, **more}), headers)
    return connection


def figures(server: Live) -> dict[str, float]:
    text = server.ask("/metrics")[2].decode()
    return {name: float(n) for name, n in re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", text, re.M)}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_the_engine(server: Live, stream: bool) -> None:
    engine = server.conversations.engine
    connection = begin(server, stream=stream)
    wait_until(lambda: server.conversations.load.slots[0].n_generated > 3)
    if stream:
        assert connection.getresponse().read(10)
    connection.sock.close() if connection.sock else connection.close()
    connection.close()
    wait_until(lambda: server.conversations.load.running == 0)
    assert engine.answer.stop == "cancelled"
    assert figures(server)['remoe_edge_requests_total{outcome="cancelled"}'] == 1
    short = server.post(CHAT, messages=HI, temperature=0, max_tokens=3)
    assert short["usage"]["completion_tokens"] == 3


def test_no_more_wait_than_may(server: Live) -> None:
    running, waiting = begin(server), None
    wait_until(lambda: server.conversations.load.running == 1)
    waiting = begin(server)
    wait_until(lambda: server.conversations.load.queued == 1)
    status, headers, data = server.ask(CHAT, LONG)
    assert (status, int(headers["retry-after"]) >= 1) == (429, True)
    assert json.loads(data)["error"]["type"] == "rate_limit_exceeded"
    status, _, data = server.ask("/v1/messages", {"messages": HI, "max_tokens": 1})
    assert (status, json.loads(data)["error"]["type"]) == (429, "rate_limit_error")
    found = figures(server)
    assert found["remoe_edge_requests_queued"] == 1
    assert found["remoe_edge_requests_running"] == 1
    assert found['remoe_edge_requests_total{outcome="refused"}'] == 2
    waiting.close()  # it leaves the queue, and is never begun
    wait_until(lambda: server.conversations.load.queued == 0)
    assert server.conversations.load.running == 1
    running.close()
    wait_until(lambda: server.conversations.load.running == 0)
    server.post(CHAT, messages=HI, max_tokens=1)


def test_answers_come_in_order(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    engine = server.conversations.engine
    stock = engine.generate
    monkeypatch.setattr(
        engine, "generate",
        lambda tokens, **settings: begun.append(settings["max_tokens"]) or stock(tokens, **settings),
    )  # fmt: skip
    server.conversations._queue_limit = 8

    async def ask() -> None:
        asks = [Ask([65, 66, 67], {"max_tokens": n}) for n in range(2, 8)]
        streams = [server.conversations.submit([each]) for each in asks]
        for stream in reversed(streams):  # whoever reads first
            assert isinstance([found[-1][1] async for found in stream][-1], Finish)

    asyncio.run(ask())
    assert begun == [2, 3, 4, 5, 6, 7]


def test_an_error_of_storage_is_that_requests(
    server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.conversations.engine
    stock = engine.generate
    fails = threading.Event()

    def generate(*args: Any, **settings: Any) -> Any:
        if fails.is_set():
            raise ReadError("m.gguf: layer 1, expert 3: read failed at 4096")
        return stock(*args, **settings)

    monkeypatch.setattr(engine, "generate", generate)
    fails.set()
    status, _, data = server.ask(CHAT, {"messages": HI, "max_tokens": 2})
    error = json.loads(data)["error"]
    assert (status, error["type"], error["code"]) == (500, "server_error", "storage")
    assert "expert 3" in error["message"]
    (last,) = [d for _, d in server.stream(CHAT, messages=HI, max_tokens=2) if "error" in d]
    assert last["error"]["code"] == "storage"
    name, data = server.stream("/v1/messages", messages=HI, max_tokens=2)[-1]
    assert (name, data["error"]["type"]) == ("error", "api_error")
    name, data = server.stream("/v1/responses", input="hi", max_output_tokens=2)[-1]
    assert (name, data["response"]["status"]) == ("response.failed", "failed")
    fails.clear()
    assert server.ask("/health")[0] == 200
    server.post(CHAT, messages=HI, max_tokens=2)
    assert figures(server)['remoe_edge_requests_total{outcome="failed"}'] == 4


def test_many_clients_get_their_own_answers(server: Live) -> None:
    """Some go away, some ask for what is refused, and nobody gets a token of another's."""
    server.conversations._queue_limit = 64
    words = [chr(97 + i) * 3 for i in range(12)]
    how = {"temperature": 0, "max_tokens": 10}
    alone = {
        w: server.post("/v1/completions", prompt=w, **how)["choices"][0]["text"] for w in words
    }
    assert len(set(alone.values())) > 6  # they can be told apart
    wrong: list[str] = []

    def ask(word: str) -> None:
        for turn in range(4):
            if turn == 1:
                begin(server, stream=True).close()
            if turn == 2:
                server.refused("/v1/completions", prompt=word, suffix="x")
            found = server.post("/v1/completions", prompt=word, **how)["choices"][0]["text"]
            if found != alone[word]:
                wrong.append(f"{word}: {found!r}, alone {alone[word]!r}")

    threads = [threading.Thread(target=ask, args=[word]) for word in words]
    for each in threads:
        each.start()
    for each in threads:
        each.join(SECONDS)
        assert not each.is_alive()
    assert wrong == []
    wait_until(lambda: server.conversations.load.running + server.conversations.load.queued == 0)


def test_requests_are_measured(server: Live) -> None:
    for _ in range(2):
        server.post(CHAT, messages=HI, temperature=0, max_tokens=4)
    found = figures(server)
    assert found["remoe_edge_request_time_to_first_token_seconds_count"] == 2
    assert found["remoe_edge_request_time_per_output_token_seconds_count"] == 2
    assert found["remoe_edge_request_time_to_first_token_seconds_sum"] > 0


def test_stopping_cuts_answers_off_after_the_grace(model: Path) -> None:
    with live(model, n_ctx=16384, grace_s=0) as server:
        slow_down(server)
        connection = begin(server, stream=True)
        wait_until(lambda: server.conversations.load.running == 1)
    assert server.conversations.state == "closing"
    connection.close()


def test_who_is_cut_off_before_the_answer_is_told(model: Path) -> None:
    """In the protocol's form, as everything else."""
    told: list[tuple[int, bytes]] = []
    with live(model, n_ctx=16384, grace_s=0) as server:
        slow_down(server)

        def ask() -> None:
            status, _, data = server.ask(CHAT, {"messages": HI, "temperature": 0})
            told.append((status, data))

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: server.conversations.load.running == 1)
    thread.join(SECONDS)
    ((status, data),) = told
    assert (status, json.loads(data)["error"]["type"]) == (503, "server_error")


def test_stopping_lets_answers_end(model: Path) -> None:
    with live(model, grace_s=SECONDS) as server:
        slow_down(server)
        answer: list[Any] = []
        thread = threading.Thread(
            target=lambda: answer.append(
                server.post(CHAT, messages=HI, temperature=0, max_tokens=60)
            )
        )
        thread.start()
        wait_until(lambda: server.conversations.load.running == 1)
    thread.join(SECONDS)
    assert answer[0]["choices"][0]["finish_reason"] in ("stop", "length")


# --- without HTTP ---


@pytest.fixture
def conversations(model: Path) -> Iterator[OneAtATime]:
    made = OneAtATime(
        lambda: Engine(model, cache="50%", n_ctx=256, threads=1), queue_limit=4, figures=Figures()
    )
    wait_until(lambda: made.state == "ready")
    yield made
    made.close()
    made.close()


def test_events_of_several_answers(conversations: OneAtATime) -> None:
    ask = Ask([65, 66, 67], {"max_tokens": 4, "temperature": 0})
    found = asyncio.run(gathered(conversations, [ask, ask]))
    texts = {i: "".join(e.text for j, e in found if j == i and isinstance(e, Text)) for i in (0, 1)}
    assert texts[0] == texts[1] != ""
    assert [i for i, e in found if isinstance(e, Finish)] == [0, 1]
    assert isinstance(found[-1][1], Finish)
    bad = Ask([65, 10**9], {"max_tokens": 4})
    found = asyncio.run(gathered(conversations, [ask, bad, ask]))
    assert isinstance(found[-1][1], Failed)
    assert found[-1][0] == 1  # nothing follows an error


def test_what_cannot_be_written_at_the_end_is_said(model: Path, tmp_path: Path) -> None:
    """The profile's folder has gone; past prompts, which lie elsewhere, are kept all the same."""
    gone, kept = tmp_path / "gone", tmp_path / "prompts"
    gone.mkdir()
    made = OneAtATime(
        lambda: Engine(
            model, cache="50%", n_ctx=256, threads=1, profile=gone / "p", past_prompts=kept
        ),
        queue_limit=4, figures=Figures(),
    )  # fmt: skip
    wait_until(lambda: made.state != "loading")
    asyncio.run(gathered(made, [Ask([65, 66, 67], {"max_tokens": 4})]))
    gone.rmdir()
    made.close()
    assert f"cannot write {gone / 'p'}" in str(made.failure)
    assert kept.is_file()


def woken(stream: RequestStream, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Give what counts the times that a stream has its reader woken."""
    calls: list[Any] = []
    stock = stream._loop.call_soon_threadsafe
    monkeypatch.setattr(
        stream._loop, "call_soon_threadsafe", lambda *given: calls.append(given) or stock(*given)
    )
    return calls


def say(stream: RequestStream, n: int) -> None:
    for i in range(n):
        stream.emit(0, Text(str(i)))


def test_fast_tokens_wake_the_reader_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read() -> None:
        stream = RequestStream([Ask([65], {})], lambda _: False)
        calls = woken(stream, monkeypatch)
        stream._gap_s = 0.0
        for n in (1, 7, 3):  # the loop does not run meanwhile, so that nothing is taken
            say(stream, n)
            assert [event for _, event in await anext(stream)] == [Text(str(i)) for i in range(n)]
            assert len(calls) == 1
        say(stream, 2)
        stream.end()  # is not waited for
        assert len(calls) == 2
        assert [len(found) async for found in stream] == [2]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(read())


def test_slow_tokens_are_handed_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read() -> None:
        stream = RequestStream([Ask([65], {})], lambda _: False)
        calls = woken(stream, monkeypatch)
        for n in range(1, 4):
            stream._gap_s = GATHER_S
            say(stream, 1)
            assert len(calls) == n
            assert len(await anext(stream)) == 1
        stream.emit(0, Failed(ReadError("gone")))
        assert isinstance((await anext(stream))[-1][1], Failed)

    asyncio.run(read())


def test_waiting_for_events_may_be_cancelled() -> None:
    async def read() -> None:
        stream = RequestStream([Ask([65], {})], lambda _: False)
        stream._gap_s = 0.0
        for _ in range(3):
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            waiting.cancel()
            say(stream, 2)
            assert len(await anext(stream)) == 2

    asyncio.run(read())


def test_a_reader_that_has_gone_with_its_loop(conversations: OneAtATime) -> None:
    outlives_a_reader(conversations, [65, 66], [65, 66, 67])


def test_after_closing_nothing_is_taken(conversations: OneAtATime) -> None:
    takes_nothing_once_closed(conversations)
    with pytest.raises(NotReady):
        _ = conversations.engine
