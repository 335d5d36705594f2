"""Peers: workers on other machines that compute rows for an engine (docs/remote.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoe_edge import __version__
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.native import _core

if TYPE_CHECKING:
    from remoe_edge.engine.loaded import Loaded

PROOF_MS = 10_000  # how long loading waits for peers to be proven
_ANY_TOKEN = 0


def connect(loaded: Loaded) -> None:
    """Connect the peers of the settings, and have them proven; what is not so becomes a note.

    One token is computed and forgotten, because a graph shows how the model computes its experts.
    """
    native, settings = loaded.native, loaded.settings
    if not loaded.asks_peers:
        return
    if native is None:
        loaded.notes.append("peers are not used: no experts are streamed")
        return
    model = _core.ModelFile.open(str(loaded.path))
    _core.connect_peers(
        native,
        list(settings.peers),
        engine=__version__,
        fingerprint=fingerprint(model),
        hedge=settings.hedge,
    )
    with loaded.computing():
        loaded.llama.eval([_ANY_TOKEN])
    loaded.empty()
    if loaded.functions is not None:
        loaded.functions.open(native, list(settings.peers), loaded.notes.append)
    if not _core.await_peers(native, PROOF_MS):
        loaded.notes.append("some peers are still being checked; they are used once that is over")
    loaded.notes.extend(_core.take_peer_lines(native))


def stats(loaded: Loaded) -> dict[str, Any] | None:
    """Tell the peers' states and what was asked of them; None where there are none to ask."""
    native, functions = loaded.native, loaded.functions
    if native is None or not loaded.asks_peers:
        return None
    told = {"peers": _core.peers(native), **_core.peer_counts(native)}
    return told if functions is None else {**told, "functions": functions.stats()}
