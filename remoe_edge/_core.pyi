import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

# --- gguf -----------------------------------------------------------------------------------------

def coarse_type_for(name: str, n_per_row: int) -> int:
    """Return the ggml type that rows of n_per_row weights become where `name` is asked for.

    Raises InputError for an unknown type, UnsupportedError where none fits such rows.
    """

def requantise(
    source_type: int,
    rows: npt.NDArray[np.uint8],
    target_type: int,
    n_rows: int,
    n_per_row: int,
) -> npt.NDArray[np.uint8]:
    """Return rows of weights in another ggml type, by ggml's own converters.

    Raises UnsupportedError where ggml cannot decode the type, ModelError where weights are not finite.
    """

def type_traits(ggml_type: int) -> tuple[str, int, int] | None:
    """Return a ggml type's name, weights and bytes per block; None for an unknown type."""

@final
class Tensor:
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> int:
        """The ggml type's number."""
    @property
    def type_name(self) -> str: ...
    @property
    def shape(self) -> list[int]:
        """Extents, the fastest-varying first."""
    @property
    def shard(self) -> int:
        """Index into `ModelFile.paths`."""
    @property
    def offset(self) -> int:
        """Bytes from the start of the shard's file."""
    @property
    def n_bytes(self) -> int: ...

@final
class ExpertMatrix:
    """One matrix of a layer's experts; expert e is at `offset + e * expert_bytes` of its shard."""

    @property
    def matrix(self) -> str:
        """One of up, gate, down, gate_up."""
    @property
    def tensor(self) -> int:
        """Index into `ModelFile.tensors`."""
    @property
    def shard(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def expert_bytes(self) -> int: ...

@final
class ExpertLayer:
    @property
    def block(self) -> int:
        """N of blk.N."""
    @property
    def n_experts(self) -> int: ...
    @property
    def matrices(self) -> list[ExpertMatrix]: ...
    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert, all its matrices."""

@final
class ModelFile:
    """What a GGUF, or a set of split shards, says of itself, checked against the files."""

    @staticmethod
    def open(path: str | os.PathLike[str]) -> ModelFile:
        """Read and check the headers of a GGUF or, given the first shard, of all shards.

        Raises ModelError for a damaged or hostile file, UnsupportedError for a version or byte
        order that cannot be read, InputError for something that is no file, ReadError from storage.
        """

    def check(self) -> None:
        """Refuse, by key or tensor, what would have llama.cpp abort the process.

        Raises ModelError or UnsupportedError, and as `check_no_adapter`.
        """

    def check_no_adapter(self) -> None:
        """Raise InputError where the file is an adapter, as overlays and LoRA files are."""

    @property
    def paths(self) -> list[str]: ...
    @property
    def file_bytes(self) -> list[int]: ...
    @property
    def tensors(self) -> list[Tensor]:
        """All shards' tensors, in file order."""
    def find(self, name: str) -> Tensor | None: ...
    @property
    def key_names(self) -> list[str]: ...
    def unsigned(self, key: str) -> int | None:
        """Return an integer or boolean key's value; None if absent, negative or of another kind."""
    def unsigned_array(self, key: str) -> list[int] | None: ...
    def string(self, key: str) -> str | None:
        """Return a string key's whole value; bytes that are no UTF-8 become U+FFFD."""
    def strings(self, key: str) -> list[str] | None:
        """Return an array of strings, such as `tokenizer.ggml.tokens`, decoded as `string` does."""
    def number(self, key: str) -> float | None:
        """Return any scalar that is a number: an integer, a float or a bool."""
    def integers(self, key: str) -> list[int] | None:
        """Return an array of integers, signed ones too, such as `tokenizer.ggml.token_type`."""
    @property
    def version(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def architecture(self) -> str: ...
    @property
    def n_experts_used(self) -> int:
        """Experts per token, the largest where it differs by layer; 0 for a dense model."""
    @property
    def expert_layers(self) -> list[ExpertLayer]:
        """The layers whose experts can be streamed.

        Raises UnsupportedError naming the tensor when a layer's matrices do not fit together.
        """
    @property
    def expert_bytes(self) -> int: ...
    @property
    def has_experts(self) -> bool:
        """Whether the experts' weights are in the file; `remoe-edge convert dense` leaves them out."""
    @property
    def n_keys(self) -> int: ...
    @property
    def key_bytes(self) -> bytes:
        """The key section as it stands in the (first) file."""
    @property
    def dense_bytes(self) -> int: ...

@final
class VirtualFile:
    """The model as llama.cpp is shown it, with plain reads behind it, to look at."""

    def __init__(self, model: ModelFile, overlay: Mapping[str, bytes] = ...) -> None: ...
    def pread(self, offset: int, n_bytes: int) -> bytes:
        """Return bytes of the virtual file; those of experts come as zeros, unread."""
    @property
    def size(self) -> int: ...
    @property
    def dense_bytes_read(self) -> int: ...
    @property
    def expert_bytes_skipped(self) -> int: ...

# --- storage --------------------------------------------------------------------------------------

@final
class FaultPlan:
    """What goes wrong in a reader, for tests; by default nothing does."""

    def __init__(
        self,
        *,
        fail_operation: int = -1,
        range_file: int = -1,
        range_offset: int = 0,
        range_bytes: int = 0,
        range_times: int = -1,
        error_number: int = 5,
        short_bytes: int = 0,
        interruptions: int = 0,
        delay_us: int = 0,
        truncate_bytes: int = -1,
        enter_error: int = 0,
        enter_failures: int = 0,
        refuse_direct: bool = False,
        refuse_uring: bool = False,
    ) -> None:
        """Plan faults below the retry logic.

        The operation numbered `fail_operation`, and the first `range_times` (-1: all) that touch
        the range, fail with `error_number`; each delivers at most `short_bytes` (0: all), after
        `interruptions` times EINTR and `delay_us` microseconds; files seem to end at
        `truncate_bytes`. Entering io_uring fails with `enter_error`, `enter_failures` times (-1:
        always). The `refuse_` flags act at open.
        """

@final
class Reader:
    """Reads of a set of files, many in flight."""

    def __init__(
        self,
        paths: Sequence[str],
        *,
        backend: str = "auto",
        direct: bool = True,
        depth: int = 0,
        background_depth: int = 2,
        piece_bytes: int = 1048576,
        proof_offset: int = 0,
        faults: FaultPlan = ...,
    ) -> None:
        """Open the files; `backend` is auto, io_uring or pread, and `depth` 0 is its default.

        Raises ReadError for a file that cannot be opened, InputError for one that is not regular,
        UnsupportedError for a backend asked for by name that is not to be had.
        """
    def submit(self, spans: Sequence[tuple[int, int, int]], *, background: bool = False) -> int:
        """Start reads of (file, offset, n_bytes); return the first's tag, the others' follow it."""
    def drain(self) -> dict[int, bytes | str]:
        """Wait for all reads; return each one's bytes, or the message of its failure, by tag."""
    def cancel_background(self) -> int:
        """Drop background reads that have not started; return how many reads that ends."""
    def promote(self, tag: int) -> None:
        """Turn a background read into a demand read."""
    def check_unchanged(self) -> None:
        """Raise ReadError if a file was replaced or modified since it was opened."""
    def set_faults(self, faults: FaultPlan) -> None: ...
    def counts(self) -> dict[str, int]: ...
    @property
    def backend(self) -> str: ...
    @property
    def direct(self) -> bool: ...
    @property
    def depth(self) -> int: ...
    @property
    def notes(self) -> list[str]: ...
    def close(self) -> None:
        """Drop background reads, wait for the rest and close the files."""

def probe(
    path: str,
    *,
    ranges: Sequence[tuple[int, int]] = ...,
    block_bytes: Sequence[int] = ...,
    depths: Sequence[int] = ...,
    seconds: float = 2.0,
    wanted_bytes: int = 1048576,
    backend: str = "auto",
    direct: bool = True,
    faults: FaultPlan = ...,
) -> dict[str, Any]:
    """Measure random reads; see `remoe_edge.storage.probe`."""

# --- engine ---------------------------------------------------------------------------------------

def check_abi() -> None:
    """Register the storage device. Raises UnsupportedError for any other build of ggml."""

def unwatch_interrupt() -> bool:
    """Undo StreamedModel.watch_interrupt; say whether Ctrl-C came meanwhile."""

def counter_names() -> dict[str, str]:
    """Return the names in `StreamedModel.counts()`, in order, and what each counts."""

class LastWords:
    """While it lives, one line names this model if llama.cpp ends the process. Thread-safe."""

    def __init__(self, path: str) -> None: ...

class StreamedModel:
    """One llama.cpp model whose experts stay on storage."""

    @staticmethod
    def open(
        path: str,
        *,
        backend: str = "auto",
        direct: bool = True,
        depth: int = 0,
        repack: bool = False,
        overlay: dict[str, bytes] = ...,
        experts_on: str = "",
        peers: bool = False,
        coarse: str | None = None,
    ) -> StreamedModel: ...
    def load(self, params: int, progress: Callable[[float], bool] | None = None) -> int:
        """Load with the `llama_model_params` at that address; return the `llama_model`'s."""
    def attach(
        self,
        *,
        n_slots: int,
        policy: str = ...,
        lock: bool = False,
        profile: bytes | None = None,
        prefetch: str = "off",
        most_slots: int = 0,
    ) -> None: ...
    def resize(self, n_slots: int) -> int:
        """Ask for a cache of n slots, at once or before the next layer; return how many there are."""
    def finish_resize(self) -> None:
        """Carry out what `resize` could not, between two steps."""
    def warm(self, experts: npt.NDArray[np.int64]) -> int:
        """Read experts (layer * n_experts + expert) into free slots in the background, best first."""
    def finish_warm_start(self) -> None:
        """Wait until everything that `warm` began has been read."""
    def uses(self) -> npt.NDArray[np.uint32]:
        """Count the events of each expert, [n_layers * n_experts]."""
    def choices(self) -> npt.NDArray[np.uint32]:
        """Count the tokens that chose each expert, [n_layers * n_experts]."""
    def set_dial(
        self,
        *,
        swap_near: float = 0,
        skip_cold: float = 0,
        skip_small: float = 0,
        coarse_below: float = 0,
    ) -> None:
        """Let tokens do without experts that would be read; before a context is made.

        swap_near, skip_cold, skip_small, coarse_below: shares in [0, 1), off at 0 (docs/quality.md).
        Raises ValueError for others.
        """
    def check_dial(self) -> None:
        """Raise UnsupportedError where a context's graphs do not let the dial be right."""
    def declare_steps(self, kind: str, conversation: int = -1) -> None:
        """Say what the following steps are for, and whose; -1: conversations do not take turns.

        "decode" is a token of each of several conversations, "draft" a token of one and guesses of
        what follows it, "prompt" a prompt; with "by-tokens", as it begins, several tokens
        are a prompt and one is decoded. Raises ValueError for another name.
        """
    def expect(self, bonus: npt.NDArray[np.float32] | None) -> bool:
        """Add [n_layers * n_experts] to the policy's scores until the next call; None: nothing.

        Returns False where the policy has no use for it.
        """
    def start_trace(self, path: str, fingerprint: str = "", meta: str = "{}") -> None: ...
    def stop_trace(self) -> None: ...
    @property
    def tracing(self) -> bool: ...
    @property
    def trace_events(self) -> int: ...
    @property
    def trace_failure(self) -> str: ...
    @property
    def router_probabilities(self) -> bool: ...
    @property
    def experts_on(self) -> str:
        """Name the device that has the slots and computes experts; empty for the processor."""
    def router_bytes(self, prefetch: str) -> int:
        """Return what prefetch will copy of routers that lie on a GPU; known once a context was made."""
    def budget_for(self, n_slots: int) -> int: ...
    def slots_for(self, budget_bytes: int) -> int: ...
    def scratch_bytes(self, n_tokens: int) -> int:
        """Return what computing with experts as they arrive may take for a batch of so many tokens."""
    def counts(self) -> dict[str, int]: ...
    def counts_by_layer(self) -> dict[str, list[int]]:
        """Return hits and misses of each layer that has experts."""
    def check_unchanged(self) -> None: ...
    def raise_failure(self) -> None: ...
    def set_faults(self, plan: FaultPlan) -> None: ...
    def interrupt(self) -> None: ...
    def clear_interrupt(self) -> None: ...
    def watch_interrupt(self) -> bool:
        """Keep Ctrl-C from Python and stop the model; False where no handler is to be replaced."""
    @property
    def interrupted(self) -> bool: ...
    @property
    def slot_bytes(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_experts(self) -> int: ...
    @property
    def n_experts_used(self) -> int: ...
    @property
    def total_experts(self) -> int: ...
    @property
    def expert_bytes(self) -> int: ...
    @property
    def dense_bytes(self) -> int: ...
    @property
    def dense_bytes_read(self) -> int: ...
    @property
    def load_seconds(self) -> float: ...
    @property
    def repacked(self) -> bool: ...
    @property
    def notes(self) -> list[str]: ...
    @property
    def budget_bytes(self) -> int: ...
    @property
    def n_slots(self) -> int: ...
    @property
    def most_slots(self) -> int: ...
    @property
    def untouched_bytes(self) -> int:
        """Give the bytes of `budget_bytes` that no expert has been read into yet."""
    @property
    def policy(self) -> str: ...
    @property
    def io(self) -> dict[str, object]: ...
    @property
    def prefetch(self) -> dict[str, Any]: ...
    @property
    def locked(self) -> bool: ...
    @property
    def huge_pages(self) -> bool: ...

# --- experts on other machines ------------------------------------------------------------------

def check_address(text: str, keys: bool = False) -> str:
    """Return HOST:PORT as it is used.

    Raises InputError, and UnsupportedError beyond this machine without keys.
    """

def connect_peers(
    model: StreamedModel,
    addresses: list[str],
    *,
    engine: str,
    fingerprint: str,
    keys: str | os.PathLike[str] = "",
    max_tokens: int = 8,
    audit_every: int = 1000,
    move_bytes_per_s: int = 64 << 20,
    hedge: bool = True,
) -> None:
    """Ask these workers for rows from now on; connecting and proving goes on in the background.

    keys: a file of `remoe-edge keys`, "" within this machine. max_tokens: steps whose rows are sent
    whatever they cost. move_bytes_per_s: of experts that become hot here while a peer has them.
    """

def set_peers(model: StreamedModel, addresses: Sequence[str]) -> None:
    """Ask these workers from now on, and no others; one that is named before and after is kept."""

def peer_check_bytes(model: StreamedModel) -> int:
    """Return what checking peers takes beside the cache."""

def worker_bytes(model: StreamedModel, n_experts: int) -> int:
    """Return the least memory of a worker that holds so many experts, and computes."""

def await_peers(model: StreamedModel, timeout_ms: int) -> bool:
    """Wait until every peer serves, was refused or cannot be reached; False where one is not yet."""

def peers(model: StreamedModel) -> list[dict[str, Any]]:
    """List each peer's address, state, why it is so, how many experts it serves, and its counts."""

def peer_counts(model: StreamedModel) -> dict[str, int]:
    """Count what was asked of peers since loading; {} without peers."""

def n_unserved(model: StreamedModel) -> int:
    """Count the experts that no peer serves now; 0 without peers."""

def tls_library() -> str:
    """Return the version of the system's OpenSSL. Raises UnsupportedError where there is none."""

def checksum64(data: npt.NDArray[np.uint8]) -> int:
    """Return the sum that tells damaged weights from whole ones."""

def take_peer_lines(model: StreamedModel) -> list[tuple[str, str]]:
    """Take the lines that peers have given cause for since the last call: what about, and the line."""

class ExpertWorker:
    """Some experts of a model in memory, computed for engines on other machines."""

    @staticmethod
    def open(
        path: str | bytes | os.PathLike[str],
        *,
        experts: list[int],
        budget_bytes: int,
        listen: str,
        engine: str,
        fingerprint: str,
        keys: str | os.PathLike[str] = "",
        chosen_by_engines: bool = False,
        move_bytes_per_s: int = 32 << 20,
        threads: int = 1,
        repack: bool = False,
        backend: str = "auto",
        direct: bool = True,
        lock: bool = False,
    ) -> ExpertWorker: ...
    def run(self) -> None:
        """Serve until `stop`, which another thread calls."""
    def stop(self) -> None: ...
    def check(self) -> None:
        """Sum an expert and compute a row again. Raises ModelError where bytes or bits have changed."""
    @property
    def port(self) -> int: ...
    @property
    def budget_bytes(self) -> int: ...
    @property
    def n_slots(self) -> int: ...
    def take_lines(self) -> list[str]:
        """Take the lines that engines have given cause for since the last call."""
    def counts(self) -> dict[str, int]: ...

# --- cache and trace ------------------------------------------------------------------------------

class Cache:
    def __init__(
        self, n_layers: int, n_experts: int, n_slots: int, policy: str, profile: bytes | None = None
    ) -> None: ...
    def begin(
        self,
        layer: int,
        experts: list[int],
        step: int = 0,
        decode: bool = True,
        n_tokens: int = 1,
        ids: npt.ArrayLike | None = None,
        probs: npt.ArrayLike | None = None,
        continued: bool = False,
    ) -> list[tuple[int, int, bool]]: ...
    def run(
        self,
        layer: int,
        experts: list[int],
        step: int = 0,
        decode: bool = True,
        n_tokens: int = 1,
        ids: npt.ArrayLike | None = None,
        probs: npt.ArrayLike | None = None,
        continued: bool = False,
    ) -> int:
        """Begin and end an event, in waves where it has more experts than there are slots.

        Returns how many of its experts were missing.
        """

    def failed(self, expert: int) -> None: ...
    def end(self) -> None: ...
    def clear(self) -> None: ...
    def expect(self, bonus: npt.NDArray[np.float32] | None) -> bool: ...
    def counts(self) -> dict[str, int]: ...
    def residents(self) -> list[tuple[int, int]]: ...
    @property
    def resident(self) -> int: ...

class TraceWriter:
    def __init__(
        self,
        path: str,
        n_layers: int,
        n_experts: int,
        top_k: int,
        fingerprint: str = "",
        meta: str = "{}",
    ) -> None: ...
    def append(
        self,
        layer: int,
        step: int,
        decode: bool,
        experts: npt.ArrayLike,
        n_tokens: int = 1,
        ids: npt.ArrayLike | None = None,
        probs: npt.ArrayLike | None = None,
    ) -> None: ...
    def finish(self) -> None: ...
    @property
    def n_events(self) -> int: ...

def policy_names() -> list[str]: ...
def live_policy_names() -> list[str]: ...
def feature_names() -> list[str]: ...
def reuse_columns() -> list[tuple[str, list[float], str]]:
    """List the columns of reuse-biased: name, weight without a profile by cache size, meaning."""

def reuse_shares() -> list[float]:
    """List the cache sizes of those weights, as shares of all experts."""

def simulate(
    columns: dict[str, Any],
    n_layers: int,
    n_experts: int,
    n_slots: int,
    policy: str,
    first_counted: int = 0,
    profile: bytes | None = None,
) -> dict[str, int]: ...
def replay_misses(
    columns: dict[str, Any],
    n_layers: int,
    n_experts: int,
    n_slots: int,
    policy: str,
    profile: bytes | None = None,
) -> npt.NDArray[np.int32]:
    """Give the misses of every event, [n_events], of a cache that starts empty."""

def policy_columns(
    columns: dict[str, Any],
    n_layers: int,
    n_experts: int,
    profile: bytes | None,
    events: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]: ...
def policy_scores(
    columns: dict[str, Any],
    n_layers: int,
    n_experts: int,
    profile: bytes | None,
    n_slots: int = 0,
) -> npt.NDArray[np.float32]:
    """Give reuse-biased's scores after every event, [n_events, n_experts].

    With n_slots, as in a cache of so many and with what it learns on line; with 0, without.
    """

def replay_scored(
    columns: dict[str, Any],
    n_layers: int,
    n_experts: int,
    n_slots: int,
    scores: npt.NDArray[np.float32],
) -> npt.NDArray[np.int32]:
    """Give the misses of every event, [n_events], with victims by a row of scores per event."""

def make_profile(
    n_layers: int,
    n_experts: int,
    fingerprint: str,
    meta: str,
    shares: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    scales: npt.NDArray[np.float32],
    links: npt.NDArray[np.int8],
    uses: npt.NDArray[np.float32] | None = None,
) -> bytes: ...
def parse_profile(data: bytes, name: str) -> dict[str, Any]: ...
def parse_trace(data: Any, path: str) -> dict[str, Any]: ...
def to_prob8(p: npt.ArrayLike) -> Any: ...
def from_prob8(code: npt.ArrayLike) -> Any: ...
