"""How a server listens and what it lets clients do: one value that the command line makes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.errors import InputError

_ORIGIN = re.compile(r"https?://[^/?#\s]+")  # as browsers send it: without a path


@dataclass(frozen=True)
class ServeSettings:
    """Hold a server's settings; checked as it is made.

    host, port: where it listens; port 0 takes a free one. api_key: what clients have to send; None
    lets everybody in. cors: origins whose pages may ask ("*" for all). certificate, private_key: PEM
    files; with both it speaks TLS. queue_limit: requests that may wait. grace_s: how long answers may
    go on when the server is stopped. keep_alive_s: between comments in a silent stream. most_bytes: of
    a body. header_s, body_s, send_s: how long a client may take for its headers, for its body, and to
    take a piece of an answer. most_clients: connections at a time.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    cors: tuple[str, ...] = ()
    certificate: Path | None = None
    private_key: Path | None = None
    queue_limit: int = 16
    grace_s: float = 30.0
    keep_alive_s: float = 10.0
    most_bytes: int = 8 << 20
    header_s: float = 15.0
    body_s: float = 30.0
    send_s: float = 60.0
    most_clients: int = 256

    def __post_init__(self) -> None:
        key = self.api_key
        # What no header can bring would lock everybody out.
        if key is not None and not (
            key and key.isascii() and key.isprintable() and key == key.strip()
        ):
            raise InputError(
                "the API key is empty, or has other than printable ASCII characters, or blanks around "
                "it: it is one line"
            )
        if (self.certificate is None) != (self.private_key is None):
            raise InputError("TLS needs both a certificate and its private key")
        for origin in self.cors:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise InputError(f"'{origin}' is no origin: write http://HOST[:PORT], or *")
