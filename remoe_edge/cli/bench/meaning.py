"""What the options of a bench mean: its settings, its arms and its questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from remoe_edge.errors import InputError

if TYPE_CHECKING:
    from remoe_edge.bench.arms import Arm
    from remoe_edge.bench.process import Question
    from remoe_edge.bench.settings import Settings


def settings(asked: dict[str, Any]) -> Settings:
    """Give what all arms share. Raises InputError."""
    from remoe_edge.bench.box import Limits
    from remoe_edge.bench.settings import Settings
    from remoe_edge.units import parse_bytes

    read_ahead = asked["read_ahead"]
    if read_ahead != "keep" and not read_ahead.isdecimal():
        raise InputError(f"--read-ahead {read_ahead}: give KiB, or keep")
    sizes = [
        parse_bytes(asked[name]) if asked[name] else None
        for name in ("memory_limit", "read_bandwidth")
    ]
    names = ("rounds", "warm", "n_ctx", "n_ubatch", "gpu_layers", "probe_seconds")
    return Settings(
        **{name: asked[name] for name in names},
        tokens=asked["max_tokens"],
        limits=Limits(*sizes),
        read_ahead_kib=None if read_ahead == "keep" else int(read_ahead),
    )


def arms(path: Path, asked: dict[str, Any]) -> list[Arm]:
    """Give every combination of the arms, caches, routers and threads. Raises InputError."""
    from remoe_edge.bench import arms as made
    from remoe_edge.engine.budget import check
    from remoe_edge.machine.processors import default_threads

    for cache in asked["cache"]:
        check(cache)
    return made.arms(
        _list(asked["arms"]),
        caches=asked["cache"],
        threads=asked["threads"] or (default_threads(),),
        routers=_routers(path, asked["routers"]),
        gpu_layers=asked["gpu_layers"],
        peers=asked["peers"] or (),
        peer_keys=asked["peer_keys"],
    )


def gpu_layers(path: Path, asked: dict[str, Any]) -> int:
    """Give the number of layers that all arms have on a GPU. Raises InputError and BudgetError."""
    if asked["gpu_layers"] == "off":
        return 0
    from remoe_edge.engine.offload import resolve
    from remoe_edge.engine.settings import DEFAULT_CONTEXT
    from remoe_edge.native import _core

    file = _core.ModelFile.open(str(path))
    n_ctx = asked["n_ctx"] or DEFAULT_CONTEXT
    return resolve(asked["gpu_layers"], file, file.dense_bytes, n_ctx).n_layers


def _routers(path: Path, names: tuple[str, ...]) -> dict[str, str | None]:
    """Name each set of routers, and give its overlay; `off` has none."""
    from remoe_edge.files.models import shipped_routers

    found: dict[str, str | None] = {}
    for name in names:
        if name == "off":
            found[name] = None
        elif name in ("default", "on"):
            found[name] = str(shipped_routers(path).absolute())
        elif Path(name).is_file():
            overlay = str(Path(name).absolute())
            if found.setdefault(Path(name).name, overlay) != overlay:
                raise InputError(
                    f"two sets of routers are named {Path(name).name}: name one otherwise"
                )
        else:
            raise InputError(f"no routers at {name}; write off, default or an overlay's path")
    return found


def questions(path: Path, asked: dict[str, Any], settings: Settings) -> list[Question]:
    """Give what every arm is asked. Raises InputError."""
    from remoe_edge.bench.questions import Vocabulary
    from remoe_edge.bench.workloads import prompts_file, workload

    vocabulary = Vocabulary(path)
    if asked["texts"]:
        n_tokens = settings.warm + settings.tokens
        return [vocabulary.follow(text, asked["text_prompt"], n_tokens) for text in asked["texts"]]
    if asked["prompts"] is not None:
        prompts = prompts_file(asked["prompts"], asked["limit"])
    else:
        prompts = [each for name in asked["workload"] for each in workload(name, asked["limit"])]
    return vocabulary.ask(prompts, raw=asked["raw"])


def _list(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]
