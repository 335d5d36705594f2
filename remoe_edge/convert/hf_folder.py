"""Which safetensors files of a Hugging Face folder are the model, as transformers reads such a folder.

The index decides where there is one. Other weights may lie beside it: shards of an earlier download, the
same weights under other names (`consolidated.safetensors`), a second format.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.files.reading import read_whole
from remoe_edge.files.safetensors_file import SafetensorsFile

INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class HfFolder:
    """A folder's model: which file holds which tensor, and the weights that belong to no model.

    places: the shard of each tensor. left_out: top-level safetensors files that the model does not use.
    """

    path: Path
    shards: dict[Path, SafetensorsFile]
    places: dict[str, Path]
    left_out: frozenset[Path]

    @classmethod
    def open(cls, path: Path) -> HfFolder:
        """Find and check a folder's shards.

        Raises InputError naming the file: an index that is damaged, names a shard that is missing, or
        a tensor that its shard lacks; a tensor in two shards; a shard too few. UnsupportedError for a
        folder without safetensors.
        """
        found = sorted(path.glob("*.safetensors"))
        if not found and not (path / INDEX).is_file():
            raise UnsupportedError(f"{path} holds no safetensors files; convert its weights first")
        weight_map = _weight_map(path / INDEX)
        names = _without_index(path, found) if weight_map is None else set(weight_map.values())
        shards = {path / name: _shard(path, name, weight_map is not None) for name in sorted(names)}
        places = (
            _places(shards)
            if weight_map is None
            else {key: path / name for key, name in weight_map.items()}
        )
        for key, shard in places.items():
            if key not in shards[shard].entries:
                raise InputError(
                    f"{path / INDEX} says that {shard.name} holds {key!r}: it does not"
                )
        return cls(path, shards, places, frozenset(found) - set(shards))


def _weight_map(index: Path) -> dict[str, str] | None:
    """Return an index's table of tensors and their files, None without an index."""
    if not index.is_file():
        return None
    try:
        table = json.loads(read_whole(index, "index"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{index} is no index of shards: it has no table weight_map") from error
    if not isinstance(table, dict) or not table:
        raise InputError(f"{index} is no index of shards: its weight_map is empty or no table")
    for key, name in table.items():
        if not isinstance(name, str) or not name or "/" in name or name in (".", ".."):
            raise InputError(f"{index}: {key!r} is in {name!r}, which is no file of this folder")
    return table


def _without_index(path: Path, found: list[Path]) -> set[str]:
    names = {each.name for each in found}
    if _WHOLE in names:
        return {_WHOLE}
    names = {name for name in names if not name.startswith("consolidated")} or names
    for name in sorted(names):
        match = _SHARD.fullmatch(name)
        for i in range(int(match[3]) if match else 0):
            assert match is not None
            wanted = f"{match[1]}-{i + 1:05d}-of-{match[3]}.safetensors"
            if wanted not in names:
                raise InputError(
                    f"{path / wanted} is missing: {name} is one of {int(match[3])} shards"
                )
    return names


def _shard(path: Path, name: str, indexed: bool) -> SafetensorsFile:
    if indexed and not (path / name).is_file():
        raise InputError(f"{path / name} is missing: {INDEX} names it")
    return SafetensorsFile.open(path / name)


def _places(shards: dict[Path, SafetensorsFile]) -> dict[str, Path]:
    places: dict[str, Path] = {}
    for path, shard in shards.items():
        for key in shard.entries:
            if key in places:
                raise InputError(
                    f"{key!r} is in {places[key].name} and in {path.name} of {path.parent}, and there "
                    f"is no {INDEX} to say which one counts"
                )
            places[key] = path
    return places
