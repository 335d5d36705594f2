"""Peers: workers on other machines that compute rows for an engine (docs/remote.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remoe_edge import __version__
from remoe_edge.engine import embedding
from remoe_edge.engine.step_batch import StepBatch
from remoe_edge.errors import InputError
from remoe_edge.files.keys_file import check_keys_file
from remoe_edge.native import _core

if TYPE_CHECKING:
    from remoe_edge._core import ModelFile, StreamedModel
    from remoe_edge.engine.loaded import Loaded
    from remoe_edge.engine.settings import EngineSettings

PROOF_MS = 10_000  # how long loading waits for peers to be proven
_WITHOUT_COPY_MS = 60_000  # the same, where nothing can be computed without them
_ANY_TOKEN = 0


def check(file: ModelFile, settings: EngineSettings) -> None:
    """Refuse a file without experts where nobody has them, and keys that are none. Raises InputError."""
    if settings.peer_keys is not None:
        check_keys_file(settings.peer_keys)
    if file.has_experts or (settings.peers and settings.stream):
        return
    raise InputError(
        f"{file.paths[0]} holds no experts: name the workers that do (--peers HOST:PORT,...), and "
        "stream"
    )


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
    from remoe_edge.files.fingerprint import fingerprint  # brings the gguf package in

    model = _core.ModelFile.open(str(loaded.path))
    _core.connect_peers(
        native,
        list(settings.peers),
        engine=__version__,
        fingerprint=fingerprint(model),
        keys="" if settings.peer_keys is None else check_keys_file(settings.peer_keys),
        hedge=settings.hedge,
    )
    if not model.has_experts:
        _without_copy(loaded, native)
    if loaded.encodes:
        embedding.compute(loaded, StepBatch(1), 0, [_ANY_TOKEN])
    else:
        with loaded.computing():
            loaded.llama.eval([_ANY_TOKEN])
    loaded.empty()
    if loaded.functions is not None:
        loaded.functions.open(native, list(settings.peers), loaded.notes.again)
    if not _core.await_peers(native, PROOF_MS):
        loaded.notes.append("some peers are still being checked; they are used once that is over")
    loaded.note_peers()


def _without_copy(loaded: Loaded, native: StreamedModel) -> None:
    """Wait for the peers, and say what a file without experts means."""
    _core.await_peers(native, _WITHOUT_COPY_MS)
    loaded.note_peers()
    loaded.notes.append(
        "no copy of the experts is here: what peers do not answer is waited for, and fails with them"
    )
    missing = _core.n_unserved(native)
    if missing == native.total_experts:
        why = "; ".join(note for note in loaded.notes if note.startswith("peer "))
        raise InputError(f"{loaded.path} holds no experts, and no peer serves any: {why}")
    if missing:
        loaded.notes.append(f"{missing} experts are with no peer: a token that needs one fails")


def stats(loaded: Loaded) -> dict[str, Any] | None:
    """Tell the peers' states and what was asked of them; None where there are none to ask."""
    native, functions = loaded.native, loaded.functions
    if native is None or not loaded.asks_peers:
        return None
    told = {"peers": _core.peers(native), **_core.peer_counts(native)}
    return told if functions is None else {**told, "functions": functions.stats()}
