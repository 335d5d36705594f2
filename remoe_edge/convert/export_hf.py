"""A Hugging Face folder with tuned routers, for transformers and vLLM."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from remoe_edge.convert.hf_folder import HfFolder
from remoe_edge.convert.names import CheckpointNames, is_untrained_copy
from remoe_edge.convert.routers import check_metadata, checked_values, keys_by_router
from remoe_edge.errors import InputError
from remoe_edge.files.atomic import Progress, copy_bytes, errors_naming, overwrite
from remoe_edge.files.overlay import require_all, require_finite
from remoe_edge.files.safetensors_file import Entry, SafetensorsFile, decode, encode


def export_hf(
    source: Path, tuned: Path, output: Path, progress: Progress | None = None
) -> list[str]:
    """Write the folder `source` again with the routers of the safetensors file `tuned`.

    Shards without routers become hard links where the file system allows, copies elsewhere; shards
    with routers are copied by range and patched in place, in their own dtypes; everything else is
    copied. Safetensors files that the folder's index does not name are left out, as they would hold
    the routers from before; their names are returned. The folder appears whole or not at all. Raises
    InputError for an output that exists, a folder without safetensors, and routers that do not fit,
    by name.
    """
    if not source.is_dir():
        raise InputError(f"{source} is not a folder")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists; give a new folder")
    if not output.absolute().parent.is_dir():
        raise InputError(f"{output.absolute().parent} does not exist; create it first")
    if output.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{output} lies inside the input {source}; give another output")
    folder = HfFolder.open(source)
    shards = folder.shards
    patches = _patches(folder, SafetensorsFile.open(tuned))

    files = sorted(
        path for path in source.rglob("*") if path.is_file() and path not in folder.left_out
    )
    total = sum(path.stat().st_size for path in files)
    done = 0
    output = output.absolute()
    with errors_naming(output):
        partial = Path(
            tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.", suffix=".partial")
        )
        try:
            partial.chmod(source.stat().st_mode & 0o777)
            for path in files:
                target = partial / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                unchanged_shard = path in shards and path not in patches
                if not (unchanged_shard and _link(path, target)):
                    copy_bytes(path, target)
                for entry, raw in patches.get(path, []):
                    overwrite(target, entry.offset, raw)
                done += path.stat().st_size
                if progress is not None:
                    progress(done, total)
            if output.exists():
                output.rmdir()  # empty, as checked
            os.rename(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return sorted(path.name for path in folder.left_out)


def _patches(folder: HfFolder, tuned: SafetensorsFile) -> dict[Path, list[tuple[Entry, bytes]]]:
    """Return, for each shard with routers, the places to overwrite and the bytes to put there."""
    architecture = tuned.metadata.get("architecture", "")
    if not architecture:
        raise InputError(f"{tuned.path}: its metadata does not name the architecture")
    check_metadata(tuned, architecture)
    names = CheckpointNames.covering(architecture, folder.places)
    places: dict[str, tuple[SafetensorsFile, str]] = {}
    for key, path in folder.places.items():
        name = None if is_untrained_copy(key) else names.to_gguf(key)
        if name is None:
            continue
        if name in places:
            raise InputError(f"{folder.path}: {places[name][1]!r} and {key!r} are the same router")
        places[name] = (folder.shards[path], key)
    if not places:
        raise InputError(
            f"{folder.path} holds no routers by the names of architecture '{architecture}'"
        )
    keys = keys_by_router(tuned, architecture)
    optional = {name for name in places if not name.endswith(".weight")}
    require_all(f"{tuned.path}", set(places), set(keys) | optional)
    patches: dict[Path, list[tuple[Entry, bytes]]] = {}
    for name, key in keys.items():
        shard, place = places[name]
        entry = shard.entries[place]
        values = checked_values(tuned, key, entry.shape)
        raw = encode(values, entry.dtype)
        require_finite(f"{tuned.path}: {key!r} as {entry.dtype}", decode(raw, entry))
        patches.setdefault(shard.path, []).append((entry, raw))
    return patches


def _link(source: Path, target: Path) -> bool:
    try:
        # Downloaded folders are often symbolic links into a cache: link the file, not the link.
        os.link(source.resolve(), target)
    except OSError:
        return False
    return True
