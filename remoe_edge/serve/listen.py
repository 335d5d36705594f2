"""Listen, and answer until a signal or a failure ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, h11

from remoe_edge.errors import InputError
from remoe_edge.files.reading import open_regular
from remoe_edge.serve.failures import Failure
from remoe_edge.serve.guards import App
from remoe_edge.serve.http import Receive, Send, failure_response
from remoe_edge.serve.settings import ServeSettings

_IDLE_S = 30  # a connection between two requests
_NO_HTTP = Failure(400, "the request is no HTTP that can be read")
_TOO_MANY = Failure(503, "too many clients are connected: try again later", retry_after_s=1)


class Listener:
    """Own the socket and uvicorn's server. Raises InputError where it cannot listen so."""

    def __init__(self, app: App, settings: ServeSettings) -> None:
        self._socket = _bound(settings)
        host, port = self._socket.getsockname()[:2]
        self.host = f"[{host}]" if ":" in host else host
        scheme = "http" if settings.certificate is None else "https"
        self.url = f"{scheme}://{self.host}:{port}/"
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        config = uvicorn.Config(
            app,
            http=_protocol(settings.header_s, settings.most_clients),
            ws="none",
            interface="asgi3",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,  # paths and addresses: a reverse proxy logs what is wanted
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=int(settings.grace_s),
            h11_max_incomplete_event_size=32 << 10,
        )
        config.load()
        if settings.certificate is not None:
            config.ssl = _tls(settings)
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Answer until `stop`, SIGTERM or Ctrl-C; then let answers end, for as long as is allowed."""
        with _signals_end_quietly():
            asyncio.run(self._server.serve(sockets=[self._socket]))

    def stop(self) -> None:
        """End it, from whatever thread."""
        self._server.should_exit = True

    @property
    def started(self) -> bool:
        """Say whether it answers."""
        return bool(self._server.started)


@contextlib.contextmanager
def _signals_end_quietly() -> Any:
    """Have nothing follow a signal that uvicorn has obeyed: it raises it again afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {each: signal.signal(each, lambda *_: None) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in kept.items():
            signal.signal(each, handler)


def _bound(settings: ServeSettings) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections have it from here: what a client does not take keeps none open.
            made.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(settings.send_s * 1000)
            )
            made.bind(address)
        except BaseException:
            made.close()
            raise
    except (OSError, UnicodeError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen at {settings.host}, port {settings.port}: {why}; choose another "
            "--host or --port"
        ) from error
    return made


def _tls(settings: ServeSettings) -> ssl.SSLContext:
    assert settings.certificate is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for path, what in (
        (settings.certificate, "certificate"),
        (settings.private_key, "private key"),
    ):
        if path is not None:
            open_regular(path, what).close()  # OpenSSL reads a device for ever
    try:
        context.load_cert_chain(
            settings.certificate, settings.private_key, password=_no_password
        )  # fmt: skip
    except (OSError, ssl.SSLError, ValueError) as error:
        raise InputError(
            f"no TLS with {settings.certificate} and {settings.private_key}: {error}"
        ) from error
    return context


def _no_password() -> str:
    raise ValueError("the private key is protected by a password")


def _protocol(header_s: float, most_clients: int) -> Callable[..., Any]:
    """Make uvicorn's protocol with a bound on the time that a request's headers may take, and on the
    connections at a time; what it refuses has the form of every other error."""

    class Bounded(H11Protocol):  # type: ignore[misc]
        app: Any
        _timer: asyncio.TimerHandle | None = None

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            answer = self.app

            async def answer_some(scope: Any, receive: Receive, send: Send) -> None:
                if len(self.connections) > most_clients:
                    await failure_response(_TOO_MANY, scope["path"])(scope, receive, send)
                else:
                    await answer(scope, receive, send)

            self.app = answer_some

        def send_400_response(self, msg: str) -> None:
            body = json.dumps(_NO_HTTP.body("")).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ]
            begin = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (begin, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
            self.transport.close()

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def _watch(self) -> None:
            """Give the headers that are being read their time, from their first byte on."""
            if not self._reads_headers() and self._timer is not None:
                self._timer.cancel()
                self._timer = None
            elif self._reads_headers() and self._timer is None:
                self._timer = self.loop.call_later(header_s, self._end)

        def _reads_headers(self) -> bool:
            return self.cycle is None or bool(self.cycle.response_complete)

        def _end(self) -> None:
            if self._reads_headers() and not self.transport.is_closing():
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

    return Bounded
