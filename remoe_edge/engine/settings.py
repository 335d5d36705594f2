"""How an engine runs a model: one value that the command line, the features and the engine share."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from remoe_edge.engine import budget as budgets
from remoe_edge.engine import lossy, offload
from remoe_edge.errors import InputError
from remoe_edge.machine.processors import default_threads
from remoe_edge.names import named_twice

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_CONTEXT = 4096
MAX_CONTEXT = 1 << 24  # far above what any model was trained with
MAX_THREADS = 512  # ggml's
MAX_DEPTH = 256  # the core's
MAX_PARALLEL = 256  # llama.cpp's sequences
PREFETCH = ("auto", "off", "on")
DRAFT = ("off", "auto", "on", "mtp")
FLASH_ATTENTION = ("auto", "on", "off")
IO = ("auto", "io_uring", "pread")
EXPERTS_ON = ("auto", "cpu", "gpu")


class SettingsKeywords(TypedDict, total=False):
    """Name the keywords that `Engine` takes in place of a whole `EngineSettings`."""

    cache: str
    routers: str | os.PathLike[str] | None
    policy: str
    prefetch: str
    n_ctx: int
    n_batch: int
    n_ubatch: int
    parallel: int
    threads: int | None
    repack: bool
    flash_attention: str
    stream: bool
    io: str
    direct: bool
    depth: int
    lock: bool
    verbose: bool
    peers: str | Sequence[str]
    peer_keys: str | os.PathLike[str] | None
    hedge: bool
    gpu_layers: str | int
    draft: str
    experts_on: str
    swap_near: float
    skip_cold: float
    skip_small: float
    coarse_below: float
    coarse: str | os.PathLike[str] | None
    io_backend: str


@dataclass(frozen=True)
class EngineSettings:
    """Hold every setting of an engine; checked as it is made.

    cache: "auto" (what is free, followed while it runs), a size ("1500MiB"), a share of the experts
        ("30%"), or "plan:250ms": the least that is expected to keep a token to that time (measured for
        a few seconds and remembered, then followed).
    routers: a tuned-router overlay made for this model, or None.
    policy: which expert leaves the cache; see `remoe_edge._core.live_policy_names()`.
    prefetch: read experts that the next layers will probably want while storage is idle: "off", "on",
        or "auto", which tries both while it runs and keeps what is faster.
    n_ctx: tokens of context; 0 takes the model's, up to 4096.
    n_batch, n_ubatch: tokens of a prompt given to llama.cpp, and computed, at once.
    parallel: conversations that may be answered at a time, with a context each; 0 takes as many as an
        eighth of the memory holds, up to 8. Memory for all their contexts is taken at the start.
    threads: compute threads; None takes the big cores that this process may use, as far as its CPU
        quota pays for them.
    repack: rearrange quantised weights for other kernels, as llama.cpp does when a model is resident.
        False gives the bits of stock with `--no-repack`, True those of its default; the work is done
        again for every miss, so it pays only where nearly everything fits.
    flash_attention: "auto" (llama.cpp's default), "on" or "off".
    stream: False loads everything whole, as llama.cpp does.
    io: "auto", "io_uring" or "pread"; direct: O_DIRECT where possible; depth: reads in flight, 0
        chooses.
    lock: lock the cache in memory where the limit allows it, and dense weights too where there is swap.
    verbose: show llama.cpp's log on stderr.
    peers: workers that compute experts' rows, as HOST:PORT, or a text with commas between them
        (docs/remote.md).
    peer_keys: the file of `remoe-edge keys` that proves this engine to workers beyond this machine.
    hedge: read an expert from storage when a peer's answer is late; False waits up to three seconds.
    gpu_layers: layers whose dense weights and KV cache a GPU has: "auto" (as many as fit; none where
        there is no GPU), "all", a number counted from the last layer, or "off" (docs/gpu.md).
    draft: guess tokens from the text so far and verify several in one step (docs/drafts.md): "off",
        "on", "auto", which guesses while a token gets cheaper by the clock, or "mtp": as auto, and the
        model's own layers for it guess where the text cannot.
    experts_on: where the cache lies and experts are computed: "cpu", "gpu", or "auto", which is the
        processor (docs/gpu.md says why).
    swap_near, skip_cold, skip_small: fewer reads at some loss of quality (docs/quality.md), each a share
        below 1 and off at 0. swap_near: take a resident expert for a missing one whose weight is more by
        at most that share. skip_cold: leave out missing experts with less than that share of a token's
        weights; skip_small: any experts with less. coarse_below: read missing experts with less than
        that share in a coarser form, from a file of `remoe-edge convert coarse`.
    coarse: that file, or None for the one beside the model.

    Raises InputError, which names the setting and what it may be.
    """

    cache: str = "auto"
    routers: str | os.PathLike[str] | None = None
    policy: str = "reuse-biased"
    prefetch: str = "auto"
    n_ctx: int = 0
    n_batch: int = 512
    n_ubatch: int = 512
    parallel: int = 1
    threads: int | None = None
    repack: bool = False
    flash_attention: str = "auto"
    stream: bool = True
    io: str = "auto"
    direct: bool = True
    depth: int = 0
    lock: bool = True
    verbose: bool = False
    peers: str | Sequence[str] = ()
    peer_keys: str | os.PathLike[str] | None = None
    hedge: bool = True
    gpu_layers: str | int = "auto"
    draft: str = "off"
    experts_on: str = "auto"
    swap_near: float = 0.0
    skip_cold: float = 0.0
    skip_small: float = 0.0
    coarse_below: float = 0.0
    coarse: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.cache, str):
            raise InputError(f"cache is a text such as '1500MiB' or '30%', not {self.cache!r}")
        budgets.check(self.cache)
        self._check_path("routers", "an overlay")
        self._check_policy()
        _one_of("prefetch", self.prefetch, PREFETCH)
        _one_of("draft", self.draft, DRAFT)
        if self.draft != "off" and self.parallel != 1:
            raise InputError("draft guesses for one conversation at a time: parallel is 1 with it")
        _one_of("flash_attention", self.flash_attention, FLASH_ATTENTION)
        _one_of("io", self.io, IO)
        self._check_numbers()
        self._check_peers()
        object.__setattr__(self, "gpu_layers", offload.check(self.gpu_layers))
        _one_of("experts_on", self.experts_on, EXPERTS_ON)
        if self.experts_on == "gpu":
            self._check_experts_on_gpu()
        for name in lossy.MEANS:
            object.__setattr__(self, name, lossy.amount(name, getattr(self, name)))
        lossy.check(self)
        self._check_path("coarse", "a file of coarse experts")
        for name in ("repack", "stream", "direct", "lock", "verbose", "hedge"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is True or False, not {getattr(self, name)!r}")

    def _check_path(self, name: str, what: str) -> None:
        path = getattr(self, name)
        if path is None:
            return
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise InputError(f"{name} is the path of {what} or None, not {path!r}")
        object.__setattr__(self, name, os.fspath(path))

    def _check_policy(self) -> None:
        from remoe_edge.native import _core  # brings llama.cpp in: not for a default

        known = _core.live_policy_names()
        if not isinstance(self.policy, str) or self.policy not in known:
            raise InputError(
                f"no policy '{self.policy}' for a running engine; there are: {', '.join(known)}"
            )

    def _check_peers(self) -> None:
        if self.peer_keys is not None:
            if not isinstance(self.peer_keys, str | os.PathLike) or not os.fspath(self.peer_keys):
                raise InputError(
                    f"peer_keys is the path of a file of keys or None, not {self.peer_keys!r}"
                )
            object.__setattr__(self, "peer_keys", os.fspath(self.peer_keys))
        if not isinstance(self.peers, Sequence):
            raise InputError(f"peers is a list of HOST:PORT, not {self.peers!r}")
        if isinstance(self.peers, str):
            object.__setattr__(self, "peers", tuple(self.peers.split(",")) if self.peers else ())
        if not self.peers:
            object.__setattr__(self, "peers", ())
            return
        from remoe_edge.native import _core  # brings llama.cpp in: not for a default

        if not all(isinstance(each, str) for each in self.peers):
            raise InputError(f"peers is a list of HOST:PORT, not {self.peers!r}")
        keys = self.peer_keys is not None
        checked = tuple(_core.check_address(each, keys) for each in self.peers)
        if (twice := named_twice(checked)) is not None:
            raise InputError(f"peers names the worker {twice} twice")
        object.__setattr__(self, "peers", checked)

    def _check_experts_on_gpu(self) -> None:
        beside = {
            "repack": self.repack,
            "peers": bool(self.peers),
            "no stream": not self.stream,
            "a cache of plan:": budgets.is_plan(self.cache),
        }
        for name, wanted in beside.items():
            if wanted:
                raise InputError(f"experts_on gpu and {name} do not go together")
        if self.gpu_layers not in ("auto", "all"):
            raise InputError("experts_on gpu needs all layers there: gpu_layers all (or auto)")

    def _check_numbers(self) -> None:
        for name in ("n_ctx", "n_batch", "n_ubatch", "parallel", "depth"):
            _whole(name, getattr(self, name))
        if self.threads is not None:
            _whole("threads", self.threads)
        if self.n_cores < 1 or self.n_ctx < 0 or self.n_batch < 1 or self.n_ubatch < 1:
            raise InputError("threads, n_batch and n_ubatch are at least 1, and n_ctx at least 0")
        if self.n_cores > MAX_THREADS:
            raise InputError(f"{self.n_cores} threads are more than ggml's {MAX_THREADS}")
        if not 0 <= self.parallel <= MAX_PARALLEL:
            raise InputError(
                f"parallel {self.parallel} is not within 0 (chooses) and {MAX_PARALLEL} conversations"
            )
        for name in ("n_ctx", "n_batch", "n_ubatch"):
            if getattr(self, name) > MAX_CONTEXT:
                way_out = ": lower --ctx" if name == "n_ctx" else f": lower {name}"
                what = "a context" if name == "n_ctx" else name
                raise InputError(
                    f"{what} of {getattr(self, name)} tokens is more than {MAX_CONTEXT}{way_out}"
                )
        if not 0 <= self.depth <= MAX_DEPTH:
            raise InputError(
                f"depth {self.depth} is not within 0 (chooses) and {MAX_DEPTH} reads in flight"
            )

    @classmethod
    def of(cls, settings: EngineSettings | None, keywords: SettingsKeywords) -> EngineSettings:
        """Make settings from keywords, on top of `settings` where both are given.

        Raises TypeError for a keyword that is no setting, InputError for a value that makes no sense.
        """
        given: dict[str, Any] = dict(keywords)
        if "io_backend" in given:
            if "io" in given:
                raise InputError("io_backend is the old name of io: give one of them")
            warnings.warn("io_backend is now io", DeprecationWarning, stacklevel=4)
            given["io"] = given.pop("io_backend")
        unknown = given.keys() - {each.name for each in dataclasses.fields(cls)}
        if unknown:
            raise TypeError(f"an engine has no setting '{min(unknown)}'")
        if settings is None:
            return cls(**given)
        if not isinstance(settings, EngineSettings):
            raise InputError(f"settings is an EngineSettings, not {type(settings).__name__}")
        return settings.replace(**given)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values, checked."""
        return dataclasses.replace(self, **changes)

    @property
    def n_cores(self) -> int:
        """Give the compute threads: those asked for, or `processors.default_threads`."""
        if self.threads is None:
            return min(default_threads(), MAX_THREADS)
        return self.threads

    def context(self, trained: int | None) -> int:
        """Give the tokens of context for a model trained with `trained` (None: not known)."""
        return self.n_ctx or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, as records keep them; reading goes under its old name, io_backend."""
        names = (
            "cache", "routers", "policy", "prefetch", "n_batch", "n_ubatch", "repack",
            "flash_attention", "stream",
        )  # fmt: skip
        plain = {name: getattr(self, name) for name in names}
        return {
            **plain,
            "io_backend": self.io,
            "direct": self.direct,
            "depth": self.depth,
            "lock": self.lock,
            **({"peers": list(self.peers)} if self.peers else {}),
            **({"parallel": self.parallel} if self.parallel != 1 else {}),
            **({"gpu_layers": self.gpu_layers} if self.gpu_layers != "auto" else {}),
            **({"draft": self.draft} if self.draft != "off" else {}),
            **({"experts_on": self.experts_on} if self.experts_on != "auto" else {}),
            **lossy.means_of(self),
            **({"coarse": self.coarse} if self.coarse is not None else {}),
        }


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name} is one of {', '.join(known)}, not '{value}'")


def _whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} is a whole number, not {value!r}")
