"""Serve an engine's figures over HTTP: to few clients, for a short while each.

A page in a browser can have a name of its own resolve to 127.0.0.1 and then read what is served there
(DNS rebinding). The browser still sends that name, so on loopback only loopback's names are answered.
"""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from remoe_edge.errors import InputError
from remoe_edge.telemetry.exposition import page
from remoe_edge.telemetry.families import Family

_MOST_CLIENTS = 8  # at a time; what comes beside them is closed at once
_IDLE_CLIENT_S = 5.0  # without a byte
_CLIENT_S = 15.0  # altogether, however it trickles


class MetricsServer:
    """Serve `/metrics` in a thread of its own until `close`.

    families: gives what there is, on the thread of a request. address: "9100" (loopback only),
    "HOST:9100" or "[::1]:9100"; port 0 takes a free one. Raises InputError for an address that makes
    no sense or cannot be had.
    """

    def __init__(self, families: Callable[[], Iterable[Family]], address: str) -> None:
        host, port = parse_address(address)
        try:
            self._server = _Server(families, host, port)
        except OSError as error:
            raise InputError(
                f"no metrics at {host}, port {port}: {error.strerror or error}; choose another "
                "--metrics [HOST:]PORT"
            ) from error
        port = self._server.server_address[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="remoe-edge-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the serving and free the port. Idempotent."""
        self._server.shutdown()
        self._server.server_close()


def parse_address(text: str) -> tuple[str, int]:
    """Split "[HOST:]PORT"; without a host it is the loopback. Raises InputError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not (port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise InputError(f"'{text}' is no [HOST:]PORT with a port up to 65535")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Tell whether a host, as a Host header has it (with or without a port), is this machine itself."""
    name = host.strip()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if name.lower().removesuffix(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, families: Callable[[], Iterable[Family]], host: str, port: int) -> None:
        self.families = families
        self._places = threading.BoundedSemaphore(_MOST_CLIENTS)
        self._lock = threading.Lock()
        self._clients: dict[Any, float] = {}  # when each came; guarded by _lock
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        self.is_private = is_loopback(str(self.server_address[0]))

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service for this host's name, which may take long.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a client a thread, unless all places are taken."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._clients[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread is to be had
            self._leave(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a client, then free its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def _leave(self, request: Any) -> None:
        with self._lock:
            del self._clients[request]
        self._places.release()

    def service_actions(self) -> None:
        """Cut off clients that have been here for too long; called about twice a second."""
        oldest = time.monotonic() - _CLIENT_S
        with self._lock:
            for request in [each for each, came in self._clients.items() if came < oldest]:
                with contextlib.suppress(OSError):  # it has just gone
                    request.shutdown(socket.SHUT_RDWR)  # its thread reads an end, and leaves

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Leave it to the client that went away: nothing of it belongs on stderr."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "remoe-edge", ""
    timeout = _IDLE_CLIENT_S

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        hosts = self.headers.get_all("Host", [])
        if self.server.is_private and not all(map(is_loopback, hosts)):
            self.send_error(403, "this is served to this machine only")
            return
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "only /metrics is here")
            return
        text, kind = page(self.server.families, self.headers.get("Accept"))
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if body:
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing: stderr is the chat's."""
