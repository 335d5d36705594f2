"""Arms: the ways of running a model that are measured against each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from remoe_edge.engine.settings import EngineSettings
from remoe_edge.errors import InputError
from remoe_edge.names import named_twice

STOCK = ("stock-mmap", "stock-resident")
OFF = "off"

# What every arm shares, or what has an option of its own: not to be set behind a `+`.
_SETTLED = {"cache", "routers", "policy", "n_ctx", "n_batch", "n_ubatch", "threads"}
_SETTLED |= {"verbose", "stream"}

# Settings of the engine that reorder sums, or change them.
_CHANGE_BITS = {"flash_attention", "gpu_layers", "experts_on"}
_CHANGE_BITS |= {"draft"}  # in some formats (docs/drafts.md)
_CHANGE_BITS |= {"swap_near", "skip_cold", "skip_small", "coarse_below", "coarse"}

# Files of features. An arm reads them and keeps nothing.
FILES = {"profile", "past_prompts"}
FILE_SETTINGS = FILES | {"peer_keys", "coarse"}

_DEFAULTS = {
    each.name: each.default for each in fields(EngineSettings) if each.name not in _SETTLED
}
_OLD_NAMES = {"io_backend": "io"}

Option = bool | int | str


@dataclass(frozen=True)
class Arm:
    """Hold one way of running the model.

    kind: "stock-mmap", "stock-resident" or "stream"; repack: with the rearranged weights of llama.cpp's
    default, whose bits are others. policy, cache and routers are None, None and "off" for stock;
    options are further settings of the engine, and files.
    """

    name: str
    kind: str
    threads: int
    repack: bool = False
    policy: str | None = None
    cache: str | None = None
    routers: str = OFF
    overlay: str | None = None  # the path of these routers
    options: tuple[tuple[str, Option], ...] = ()
    gpu_layers: int = 0

    @property
    def is_stock(self) -> bool:
        """Say whether this is llama.cpp alone."""
        return self.kind != "stream"

    @property
    def bits(self) -> str:
        """Name what its output depends on; arms with the same bits must choose the same tokens.

        Threads are part of it: flash attention over long contexts sums a piece for each thread.
        """
        parts = ["repacked" if self.repack else "plain", f"threads {self.threads}"]
        if self.routers != OFF:
            parts.append(f"routers {self.routers}")
        parts += [
            f"{name} {without_folders(str(value))}"
            for name, value in self.options
            if name in _CHANGE_BITS and (name, value) != ("draft", OFF)
        ]
        if self.gpu_layers and "gpu_layers" not in dict(self.options):
            parts.append(f"gpu_layers {self.gpu_layers}")
            # llama.cpp brings experts to the GPU for long prompts; the engine's stay where they are.
            parts += ["stock's placement"] if self.is_stock else []
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """Give its settings as plain values; of files, their names."""
        options = {
            name: without_folders(value) if isinstance(value, str) else value
            for name, value in self.options
        }
        plain = {**asdict(self), "options": options, "bits": self.bits}
        del plain["overlay"]
        if not self.gpu_layers:
            del plain["gpu_layers"]
        return plain


def arms(
    specs: Sequence[str],
    *,
    caches: Sequence[str],
    threads: Sequence[int],
    routers: Mapping[str, str | None],
    gpu_layers: int = 0,
    peers: Sequence[str] = (),
    peer_keys: Path | None = None,
) -> list[Arm]:
    """Make every combination of the arms named by `specs`, in their order.

    A spec is `stock-mmap`, `stock-resident` or `stream:POLICY`, each with `+repack`, the last also
    with `+NAME=VALUE` for any other setting of `Engine`. routers: a name for each set of routers, and
    its overlay; "off" has none. gpu_layers, peers, peer_keys: of all arms that do not say otherwise;
    `+peers=off` is an arm without peers. Raises InputError.
    """
    made: list[Arm] = []
    for spec in specs:
        base, *extra = spec.split("+")
        kind, colon, policy = base.partition(":")
        options = dict(_option(spec, text) for text in extra)
        repack = options.pop("repack", False)
        if not isinstance(repack, bool):
            raise InputError(f"arm '{spec}': repack is on or off")
        if kind in STOCK and not colon:
            if options:
                raise InputError(f"arm '{spec}': stock takes no setting but +repack")
            made += [Arm(spec, kind, n, repack) for n in threads]
        elif kind == "stream" and policy:
            _check_policy(spec, policy)
            _add_peers(options, peers, peer_keys)
            _check_options(spec, options)
            made += [
                Arm(
                    without_folders(spec), kind, n, repack, policy, cache, name, overlay,
                    tuple(sorted(options.items())),
                )
                for name, overlay in routers.items()
                for cache in caches
                for n in threads
            ]  # fmt: skip
        else:
            raise InputError(
                f"no arm '{spec}'; there are {', '.join(STOCK)} and stream:POLICY, such as stream:lru"
            )
    named = [replace(arm, gpu_layers=gpu_layers) for arm in _with_what_varies(made)]
    if not named:
        raise InputError("there is no arm to run")
    if peers and not any("peers" in dict(arm.options) for arm in named):
        raise InputError("--peers are for stream arms, and no arm takes them")
    if (name := named_twice(arm.name for arm in named)) is not None:
        raise InputError(f"arm '{name}' is named twice")
    return named


def without_folders(text: str) -> str:
    """Name files, not where they lie on this machine; between `,` and `=` as well."""
    return re.sub(r"[^,=]*/(?=[^,=])", "", text)


def _with_what_varies(made: list[Arm]) -> list[Arm]:
    """Name an arm by its spec and by the settings that not all arms share."""
    streams = [arm for arm in made if not arm.is_stock]
    vary_cache = len({arm.cache for arm in streams}) > 1
    vary_routers = len({arm.routers for arm in streams}) > 1
    vary_threads = len({arm.threads for arm in made}) > 1
    named = []
    for arm in made:
        parts = [arm.name]
        if vary_cache and not arm.is_stock:
            parts.append(f"cache={arm.cache}")
        if arm.routers != OFF or (vary_routers and not arm.is_stock):
            parts.append(f"routers={arm.routers}")
        if vary_threads:
            parts.append(f"threads={arm.threads}")
        named.append(Arm(**{**arm.__dict__, "name": " ".join(parts)}))
    return named


def _option(spec: str, text: str) -> tuple[str, Option]:
    name, equals, value = text.partition("=")
    name = _OLD_NAMES.get(name, name)
    if not name or (equals and not value):
        raise InputError(f"arm '{spec}': '+{text}' is no +NAME=VALUE")
    if not equals or (value in ("on", "off") and not _takes_words(name)):
        return name, value != "off"
    return name, int(value) if value.isdecimal() else value


def _takes_words(name: str) -> bool:
    """Say whether a setting of `Engine` is words, among which `on` and `off` may be."""
    return isinstance(_DEFAULTS.get(name), str)


def _add_peers(options: dict[str, Option], peers: Sequence[str], peer_keys: Path | None) -> None:
    """Give an arm the peers of all, unless it names its own, or none."""
    if peers:
        options.setdefault("peers", ",".join(peers))
    if options.get("peers") is False:
        del options["peers"]
    if "peers" in options:
        if peer_keys is not None:
            options.setdefault("peer_keys", str(peer_keys))
        keys = options.get("peer_keys")
        EngineSettings(peers=str(options["peers"]), peer_keys=None if keys is None else str(keys))


def _check_policy(spec: str, policy: str) -> None:
    from remoe_edge.native import _core

    known = _core.live_policy_names()
    if policy not in known:
        raise InputError(f"arm '{spec}': no policy '{policy}'; there are {', '.join(known)}")


def _check_options(spec: str, options: dict[str, Option]) -> None:
    known = _DEFAULTS.keys() | FILES
    for name, value in options.items():
        if name not in known:
            raise InputError(
                f"arm '{spec}': no setting '{name}'; there are {', '.join(sorted(known))}"
            )
        if name in FILE_SETTINGS:
            if not Path(str(value)).is_file():
                raise InputError(f"arm '{spec}': no file {value}")
            options[name] = str(Path(str(value)).absolute())  # workers run in another folder
