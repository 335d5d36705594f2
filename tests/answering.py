"""What holds of whoever answers a server's requests, one at a time or several."""

from __future__ import annotations

import asyncio

import pytest

from serving import slow_down, wait_until

from remoe_edge.serve.conversations import Ask, NotReady, QueueFull  # isort: skip
from remoe_edge.serve.engine_thread import EngineThread  # isort: skip
from remoe_edge.serve.events import Event  # isort: skip


async def gathered(conversations: EngineThread, asks: list[Ask]) -> list[tuple[int, Event]]:
    """Give all events of some answers, each with its answer's index."""
    return [each async for found in conversations.submit(asks) for each in found]


def outlives_a_reader(conversations: EngineThread, first: list[int], then: list[int]) -> None:
    """Check that a reader that has gone with its loop leaves it free for the next."""

    async def leave() -> None:
        conversations.submit([Ask(first, {"max_tokens": 5})])

    asyncio.run(leave())
    wait_until(lambda: conversations.load.running + conversations.load.queued == 0)
    ask = Ask(then, {"max_tokens": 2, "temperature": 0})
    assert asyncio.run(gathered(conversations, [ask]))


def takes_nothing_once_closed(conversations: EngineThread) -> None:
    """Check that a full queue refuses, and a closed one too."""

    async def submit() -> None:
        conversations.submit([Ask([65], {"max_tokens": 1})])

    async def too_many() -> None:
        for _ in range(20):
            conversations.submit([Ask([65, 66], {"max_tokens": 50})])

    slow_down(conversations)
    with pytest.raises(QueueFull):
        asyncio.run(too_many())
    conversations.close()
    assert conversations.state == "closing"
    with pytest.raises(NotReady):
        asyncio.run(submit())
