"""What HTTP brings and takes: a bounded body in a bounded time, a stream that ends with its client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from remoe_edge.serve.conversations import Stream
from remoe_edge.serve.events import Event, Failed
from remoe_edge.serve.failures import Failure, failure_of
from remoe_edge.serve.fields import Fields, parse_json
from remoe_edge.serve.protocols.reply import Frame, Reply
from remoe_edge.serve.within import within

T = TypeVar("T")
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

_LINGER_S, _SILENT_S = 30.0, 2.0  # altogether, and without a byte

log = logging.getLogger("remoe_edge.serve")


class Refused(Exception):
    """A request is refused before anything is read of it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


async def read_fields(request: Request, *, most_bytes: int, timeout_s: float) -> Fields:
    """Read a JSON object. Raises Refused, BadField, ClientDisconnect."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page elsewhere may send a form or plain text here without being asked, but no JSON.
        raise Refused(Failure(415, f"the body is application/json, not {kind[:80]}"))
    data = await read_body(request, most_bytes=most_bytes, timeout_s=timeout_s)
    return Fields(await asyncio.to_thread(parse_json, data))


async def read_body(request: Request, *, most_bytes: int, timeout_s: float) -> bytes:
    """Read a body. Raises Refused for one that is too large or too slow, ClientDisconnect."""
    too_large = Refused(Failure(413, f"the body is larger than {most_bytes} bytes"))
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and int(length) > most_bytes:
        raise too_large

    found = bytearray()
    try:
        with within(timeout_s):
            async for piece in request.stream():
                found += piece
                if len(found) > most_bytes:
                    raise too_large
        return bytes(found)
    except TimeoutError:
        raise Refused(Failure(408, f"the body did not come within {timeout_s:g} s")) from None


def failure_response(failure: Failure, path: str) -> Response:
    """Answer with an error."""
    kind = _Lingering if failure.status == 413 else JSONResponse
    return kind(failure.body(path), status_code=failure.status, headers=failure.headers)


class _Lingering(JSONResponse):  # type: ignore[misc]
    """Answer, and take in for a while what is still being sent.

    A client that sends everything before it reads would find its connection gone, and no answer.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError), within(_LINGER_S):
            while True:
                with within(_SILENT_S):
                    message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_response(
    body: Any, status: int = 200, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Answer with JSON."""
    return JSONResponse(body, status_code=status, headers=headers)


def note(error: BaseException) -> None:
    """Log a fault of ours: where it was, and nothing of what was asked."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "" if place is None else f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
    log.error("%s%s", type(error).__name__, where)


# --- answers ---


async def whole_answer(request: Request, stream: Stream, reply: Reply) -> Response:
    """Wait for all of an answer; a client that goes away cancels it."""
    path = request.url.path

    async def gather() -> Response:
        async for found in stream:
            for index, event in found:
                if isinstance(event, Failed):
                    return failure_response(told(event.error), path)
                for _ in reply.take(index, event):
                    pass
        return json_response(reply.whole())

    try:
        return await until_gone(request.receive, gather())
    finally:
        stream.cancel()


def told(error: Exception) -> Failure:
    """Give an error that came with a stream, and log one that is a fault of ours."""
    failure = failure_of(error)
    if failure.status >= 500:
        note(error)
    return failure


async def until_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Do a work unless the client goes away meanwhile. Raises ClientDisconnect."""
    working = asyncio.ensure_future(work)
    going = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait([working, going], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for each in (working, going):
            each.cancel()
        for each in (working, going):
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await each


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):  # type: ignore[misc]
    """Send an answer as server-sent events while it is made.

    keep_alive_s: after so long without an event a comment says that the connection lives.
    """

    def __init__(self, stream: Stream, reply: Reply, path: str, *, keep_alive_s: float) -> None:
        self._stream, self._reply, self._path = stream, reply, path
        self._keep_alive_s = keep_alive_s
        self.status_code = 200
        self.background = None
        self.init_headers(
            {
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
            }
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it all, or stop when the client goes away."""
        try:
            with contextlib.suppress(ClientDisconnect):
                await until_gone(receive, self._send(send))
        finally:
            self._stream.cancel()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for data in self._data():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _data(self) -> AsyncIterator[bytes]:
        yield encode(self._reply.begin())
        events = self._stream.__aiter__()
        while True:
            try:
                with within(self._keep_alive_s):
                    found = await anext(events)
            except TimeoutError:
                yield b": keep-alive\n\n"
                continue
            except StopAsyncIteration:
                break
            data = b"".join(self._encoded(index, event) for index, event in found)
            if data:
                yield data
            if isinstance(found[-1][1], Failed):
                return
        yield encode(self._reply.end())

    def _encoded(self, index: int, event: Event) -> bytes:
        if isinstance(event, Failed):
            failure = told(event.error)
            return encode(self._reply.failed(failure.status, failure.body(self._path)))
        return encode(self._reply.take(index, event))


def encode(frames: Iterable[Frame]) -> bytes:
    """Write frames as server-sent events."""
    return b"".join(map(_encoded, frames))


def _encoded(frame: Frame) -> bytes:
    name, data = frame
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, allow_nan=False)
    named = f"event: {name}\n" if name is not None else ""
    return f"{named}data: {text}\n\n".encode()
