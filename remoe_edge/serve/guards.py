"""Who may ask what: checked before anything of a request's body is read."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware

from remoe_edge.serve.failures import Failure, failure_of
from remoe_edge.serve.http import Receive, Send, failure_response, note
from remoe_edge.serve.settings import ServeSettings
from remoe_edge.serve.within import within
from remoe_edge.telemetry.metrics_server import is_loopback

App = Callable[[Any, Receive, Send], Awaitable[None]]

# Anybody may load the page, whose requests then bring the key, and ask whether the server lives.
_OPEN = ("/", "/health", "/openapi.json")
_OPEN_BELOW = "/page/"


def guarded(app: App, settings: ServeSettings) -> App:
    """Put the guards before an application, the outermost last."""
    guarded = _with_key(app, settings)
    if settings.cors:
        guarded = CORSMiddleware(
            guarded, allow_origins=settings.cors, allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=["Retry-After"],
        )  # fmt: skip
    return _with_bounds(_with_host(guarded, settings), settings)


def _with_key(app: App, settings: ServeSettings) -> App:
    """Ask for the key, in OpenAI's header or in Anthropic's."""

    async def check(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and settings.api_key is not None:
            path, headers = scope["path"], Headers(scope=scope)
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                given = headers.get("x-api-key", "")
            is_right = hmac.compare_digest(given.strip().encode(), settings.api_key.encode())
            if not (is_right or path in _OPEN or path.startswith(_OPEN_BELOW)):
                failure = Failure(401, "the API key is missing or wrong", code="invalid_api_key")
                await failure_response(failure, path)(scope, receive, send)
                return
        await app(scope, receive, send)

    return check


def _with_host(app: App, settings: ServeSettings) -> App:
    """Answer on loopback to loopback's names only: see telemetry/metrics_server.py."""
    is_private = is_loopback(f"[{settings.host}]" if ":" in settings.host else settings.host)

    async def check(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_private:
            headers = Headers(scope=scope)
            origin = headers.get("origin", "")
            foreign = origin not in ("", "null") and not is_loopback(origin.partition("://")[2])
            if not all(map(is_loopback, headers.getlist("host"))):
                failure = Failure(403, "this is served to this machine only", code="host")
            elif foreign and not settings.cors:
                failure = Failure(
                    403, "pages of other sites may not ask here: see --cors", code="origin"
                )
            else:
                await app(scope, receive, send)
                return
            await failure_response(failure, scope["path"])(scope, receive, send)
            return
        await app(scope, receive, send)

    return check


def _with_bounds(app: App, settings: ServeSettings) -> App:
    """Let no client take its answer without end, and no fault of ours reach the log with its text."""

    async def bounded(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        begun = False

        async def send_in_time(message: dict[str, Any]) -> None:
            nonlocal begun
            begun = True
            with within(settings.send_s):
                await send(message)

        try:
            await app(scope, receive, send_in_time)
        except (TimeoutError, ConnectionError):
            pass  # the client does not read: uvicorn closes what was not ended
        except Exception as error:
            note(error)
            if not begun:
                await failure_response(failure_of(error), scope["path"])(scope, receive, send)

    return bounded
