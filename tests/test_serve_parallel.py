"""Several requests at a time: to each its own answer, cancellation, errors, places and the queue."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny_moe
from answering import gathered, outlives_a_reader, takes_nothing_once_closed
from conversations import prompt
from remoe_edge import Engine
from remoe_edge.engine.conversation import Conversation
from remoe_edge.errors import ReadError
from serving import HI, PLAIN_HERMES, SECONDS, Live, chatting, live, slow_down, wait_until
from test_serve_queue import CHAT, begin, figures

from remoe_edge.serve.conversations import Ask  # isort: skip
from remoe_edge.serve.events import Failed, Finish, Text  # isort: skip
from remoe_edge.serve.figures import Figures  # isort: skip
from remoe_edge.serve.side_by_side import SideBySide  # isort: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting(tmp_path_factory.mktemp("parallel"), PLAIN_HERMES)


@pytest.fixture(params=[1, 0], ids=["slices", "groups"])
def server(model: Path, request: pytest.FixtureRequest) -> Iterator[Live]:
    with live(
        model, n_ctx=4096, parallel=3, queue_limit=1, answering={"most_together": request.param}
    ) as started:
        slow_down(started)
        yield started


def free(server: Live) -> bool:
    load = server.conversations.load
    return load.running + load.queued == 0 and not any(slot.busy for slot in load.slots)


def test_to_each_client_its_own_answer(server: Live) -> None:
    """Some go away, some ask for what is refused, and nobody gets a token of another's."""
    server.conversations._queue_limit = 64
    words = [chr(97 + i) * (3 + 5 * i) for i in range(8)]
    in_slices = server.conversations._schedule._most == 1

    def answer(word: str) -> list[str]:
        made = server.post(
            "/v1/completions", prompt=word, temperature=0, max_tokens=8, logprobs=1
        )  # fmt: skip
        tokens: list[str] = made["choices"][0]["logprobs"]["tokens"]
        # The bits of later tokens depend on who else is in their step.
        return tokens if in_slices else tokens[:1]

    alone = {word: answer(word) for word in words}
    if in_slices:
        assert len(set(map(tuple, alone.values()))) == 8  # they can be told apart
    wrong: list[str] = []

    def ask(word: str) -> None:
        for turn in range(3):
            if turn == 1:
                begin(server, stream=True).close()
            if turn == 2:
                server.refused("/v1/completions", prompt=word, suffix="x")
            found = answer(word)
            if found != alone[word]:
                wrong.append(f"{word}: {found!r}, alone {alone[word]!r}")

    threads = [threading.Thread(target=ask, args=[word]) for word in words]
    for each in threads:
        each.start()
    for each in threads:
        each.join(SECONDS)
        assert not each.is_alive()
    assert wrong == []
    wait_until(lambda: free(server))


def test_places_fill_and_are_shown(server: Live) -> None:
    running = [begin(server) for _ in range(3)]
    wait_until(lambda: server.conversations.load.running == 3)
    waiting = begin(server)
    wait_until(lambda: server.conversations.load.queued == 1)
    status, headers, _ = server.ask(CHAT, {"messages": HI})
    assert (status, int(headers["retry-after"]) >= 1) == (429, True)
    shown = json.loads(server.ask("/slots")[2])
    assert [each["is_processing"] for each in shown["slots"]] == [True] * 3
    wait_until(lambda: all(slot.n_generated > 3 for slot in server.conversations.load.slots))
    found = figures(server)
    assert found["remoe_edge_requests_running"] == 3
    assert found["remoe_edge_requests_queued"] == 1
    running.pop().close()  # its place goes to who waits
    wait_until(lambda: server.conversations.load.queued == 0)
    wait_until(lambda: server.conversations.load.running == 3)
    for each in [*running, waiting]:
        each.close()
    wait_until(lambda: free(server))
    cancelled = 'remoe_edge_requests_total{outcome="cancelled"}'
    wait_until(lambda: figures(server)[cancelled] == 4)


def test_an_error_is_that_requests(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = server.conversations._batch
    others: list[Any] = []
    thread = threading.Thread(
        target=lambda: others.append(
            server.post("/v1/completions", prompt="long", temperature=0, max_tokens=60)
        )
    )
    thread.start()
    wait_until(lambda: server.conversations.load.running == 1)
    join = batch.join

    def fails(tokens: Any, listener: Any, **settings: Any) -> Any:
        if settings["max_tokens"] == 7:
            raise ReadError("m.gguf: layer 1, expert 3: read failed at 4096")
        return join(tokens, listener, **settings)

    monkeypatch.setattr(batch, "join", fails)
    status, _, data = server.ask(CHAT, {"messages": HI, "max_tokens": 7})
    error = json.loads(data)["error"]
    assert (status, error["code"]) == (500, "storage")
    thread.join(SECONDS)
    assert others[0]["usage"]["completion_tokens"] == 60
    assert figures(server)['remoe_edge_requests_total{outcome="failed"}'] == 1
    wait_until(lambda: free(server))


def test_several_answers_to_one_request(server: Live) -> None:
    found = server.post(CHAT, messages=HI, temperature=0, seed=5, max_tokens=5, n=5)
    texts = [each["message"]["content"] for each in found["choices"]]
    singles = [
        server.post(CHAT, messages=HI, temperature=0, seed=5 + i, max_tokens=5) for i in range(5)
    ]
    assert texts == [each["choices"][0]["message"]["content"] for each in singles]
    assert found["usage"]["completion_tokens"] == 25
    wait_until(lambda: free(server))


def test_a_call_ends_its_answer(server: Live) -> None:
    shape = {
        "type": "object", "properties": {"x": {"enum": ["a"]}}, "required": ["x"],
        "additionalProperties": False,
    }  # fmt: skip
    tool = {"type": "function", "function": {"name": "f", "parameters": shape}}
    found = server.post(
        CHAT, messages=HI, tools=[tool], tool_choice={"type": "function", "function": {"name": "f"}},
        temperature=0, max_tokens=400,
    )  # fmt: skip
    assert found["choices"][0]["finish_reason"] == "tool_calls"
    assert found["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"
    wait_until(lambda: free(server))


def test_what_has_ended_is_not_left_to_the_collector(server: Live) -> None:
    """What an answer held is freed with it: finished, left by its client, or refused on the way."""

    def conversations() -> int:
        return sum(isinstance(each, Conversation) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = conversations()
        for _ in range(3):
            server.post("/v1/completions", prompt="abc", max_tokens=4, logprobs=1, n=2)
            begin(server, stream=True).close()
        server.refused("/v1/completions", prompt="abc", suffix="x")
        wait_until(lambda: free(server))
        wait_until(lambda: conversations() == before)
    finally:
        gc.enable()


def test_stopping_cuts_answers_off_after_the_grace(model: Path) -> None:
    with live(model, n_ctx=4096, parallel=2, grace_s=0) as server:
        slow_down(server)
        connections = [begin(server, stream=True) for _ in range(2)]
        wait_until(lambda: server.conversations.load.running == 2)
    assert server.conversations.state == "closing"
    for each in connections:
        each.close()


# --- without HTTP ---


@pytest.fixture
def conversations(model: Path) -> Iterator[SideBySide]:
    made = SideBySide(
        lambda: Engine(model, cache="50%", n_ctx=256, threads=1, parallel=2),
        queue_limit=4, figures=Figures(),
    )  # fmt: skip
    wait_until(lambda: made.state != "loading")
    assert made.state == "ready", made.failure
    yield made
    made.close()
    made.close()


def test_events_of_several_answers(conversations: SideBySide) -> None:
    ask = Ask(prompt(5), {"max_tokens": 4, "temperature": 0})
    found = asyncio.run(gathered(conversations, [ask, ask, ask]))
    texts = {"".join(e.text for j, e in found if j == i and isinstance(e, Text)) for i in range(3)}
    assert len(texts) == 1
    assert sorted(i for i, e in found if isinstance(e, Finish)) == [0, 1, 2]
    bad = Ask([65, 10**9], {"max_tokens": 4})
    found = asyncio.run(gathered(conversations, [ask, bad, ask]))
    assert isinstance(found[-1][1], Failed)
    assert found[-1][0] == 1  # nothing follows an error
    wait_until(lambda: conversations.load.running == 0)


def test_a_reader_that_has_gone_with_its_loop(conversations: SideBySide) -> None:
    outlives_a_reader(conversations, prompt(2), prompt(3))


def test_after_closing_nothing_is_taken(conversations: SideBySide) -> None:
    takes_nothing_once_closed(conversations)


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    made = SideBySide(
        lambda: Engine(tmp_path / "none.gguf", parallel=2), queue_limit=1, figures=Figures()
    )
    wait_until(lambda: made.state == "failed")
    assert "no model at" in str(made.failure)
    made.close()


def test_what_an_engine_notes_while_it_serves_is_said(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "states"
    said: list[str] = []

    def serve() -> SideBySide:
        made = SideBySide(
            lambda: Engine(
                model, cache="50%", n_ctx=256, threads=1, parallel=2, past_prompts=tmp_path / "past"
            ),
            queue_limit=4, figures=Figures(), note=said.append, keep_states=(folder, 1 << 30),
        )  # fmt: skip
        wait_until(lambda: made.state != "loading")
        assert said.pop(0) == "past prompts are not used while answers are made side by side"
        return made

    conversations = serve()
    asyncio.run(gathered(conversations, [Ask(prompt(100), {"max_tokens": 2})]))
    conversations.close()
    assert said == []
    (state,) = folder.glob("*/*")
    state.with_name("short.state").write_bytes(state.read_bytes()[:200])
    conversations = serve()
    assert said == [f"{state.with_name('short.state')} is not used: it is cut short"]
    asyncio.run(gathered(conversations, [Ask(prompt(110), {"max_tokens": 2})]))
    shutil.rmtree(state.parent)  # as an unmounted disk
    conversations.close()
    assert "a conversation's state was not kept: cannot write" in said[1]


def test_a_model_that_shares_no_beginning_says_so(tmp_path: Path) -> None:
    model = tiny_moe.make(tmp_path / "m.gguf", "qwen3next", "Q8_0")
    with live(model, parallel=2) as server:
        (note,) = server.conversations.notes
        assert "cannot be taken back or shared" in note
