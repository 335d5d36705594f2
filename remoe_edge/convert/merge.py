"""A full GGUF with an overlay's routers in place, every other byte as in the base."""

from __future__ import annotations

import os
import re
from pathlib import Path

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import (
    Progress,
    check_output,
    check_space,
    copy_bytes,
    overwrite,
    replacing,
)
from remoe_edge.files.overlay import load_overlay
from remoe_edge.files.own_gguf import open_model

_SHARD_SUFFIX = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def merge(
    base_path: Path, overlay_path: Path, output: Path, progress: Progress | None = None
) -> list[Path]:
    """Write the merged model and return its files, one for each of the base's.

    For a split base, `output` is the first shard's name and must number the shards as the base
    does. Raises InputError before any work when the overlay does not fit, the output is one of the
    inputs, or the disk is too small. `progress` counts over all files.
    """
    base = open_model(base_path)
    sources = [Path(path) for path in base.paths]
    outputs = _outputs(sources, output)
    for path in outputs:
        check_output(path, [*sources, overlay_path])
    tensors = load_overlay(overlay_path, base)
    total = sum(base.file_bytes)
    check_space(output.absolute().parent, total)
    with replacing(outputs) as partial:
        done = 0
        for source, target in zip(sources, partial, strict=True):
            before = done

            def report(copied: int, _: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + copied, total)

            copy_bytes(source, target, report)
            done += os.path.getsize(target)
        for name, raw in tensors.items():
            tensor = base.find(name)
            assert tensor is not None  # load_overlay matched the names
            overwrite(partial[tensor.shard], tensor.offset, raw)
    return outputs


def _outputs(sources: list[Path], output: Path) -> list[Path]:
    if len(sources) == 1:
        return [output]
    suffixes = []
    for source in sources:
        match = _SHARD_SUFFIX.search(source.name)
        assert match is not None  # shards were found by this name
        suffixes.append(match[0])
    if not output.name.endswith(suffixes[0]):
        raise InputError(
            f"the base has {len(sources)} shards, and so will the output: "
            f"end its name in {suffixes[0]}"
        )
    stem = output.name.removesuffix(suffixes[0])
    return [output.with_name(stem + suffix) for suffix in suffixes]
