"""Price tables and lists, placements, deployments and times, whoever wrote them: refused, or sound.

Every value of a record that is right is replaced by each of many that nobody means, or taken away.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import placements
import tiny_moe
from functions import deployment_of
from remoe_edge.cli.deploy import _lines
from remoe_edge.deploy import local_ray, record
from remoe_edge.deploy.record import Ray
from remoe_edge.engine.settings import EngineSettings
from remoe_edge.errors import InputError
from remoe_edge.placement import placement_file, price, times_file
from remoe_edge.quality import price_list
from remoe_edge.quality.choose import Choice, choose_for
from remoe_edge.quality.setting import Setting
from rewriting import rewrite

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 1.5, 2**31, 2**63, 10**400, math.nan, math.inf, -math.inf, 1e308, 5e-324,
    "", "x", "../up", "\x00", "\ud800", "x" * 5000, [], [None], [[]], [-1], ["x"], {}, {"x": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("records") / "model.gguf", "qwen3moe", "Q4_K")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Give (holder, key) of each value; of a long list the first two stand for all."""
    keys = list(value) if isinstance(value, dict) else range(min(2, len(value)))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def spoiled(right: Any) -> Iterator[tuple[str, Any]]:
    """Give the record with one value gone or replaced, by nine values in turn; with words for that."""
    made = copy.deepcopy(right)
    for at, (holder, key) in enumerate(list(places(made))):
        before = holder[key]
        for i in range(9):
            value = VALUES[(5 * at + 3 * i) % len(VALUES)]
            holder[key] = value
            yield f"{key}: {str(value)[:40]!r}", made
        holder.pop(key)
        yield f"{key}: gone", made
        if isinstance(holder, list):
            holder.insert(key, before)
        else:
            holder[key] = before


def check(right: Any, read: Callable[[Any], object], use: Callable[[Any], object]) -> None:
    """Hold that whatever is not refused in a line can be used."""
    n_refused = n_tried = 0
    for what, held in spoiled(right):
        try:
            found = read(held)
        except InputError as error:
            said = str(error)
            n_refused += 1
        else:
            said = ""
        assert "\n" not in said, what
        assert len(said) < 6000, what
        n_tried += 1
        if said:
            continue
        try:
            use(found)
        except InputError:
            pass
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
    assert n_refused > n_tried / 3


def test_price_tables() -> None:
    def use(table: price.PriceTable) -> None:
        json.dumps(table.as_dict(), allow_nan=False)
        sizes = table.function.sizes(1 << 20)
        for size in (*sizes[:2], *sizes[-2:]):
            assert math.isfinite(table.function.vcpus(size))
        assert table.function.billed_ms(12.5) >= 0
        table.main.rounded(12345)

    for name in price.shipped():
        check(price.load(name).as_dict(), price.from_dict, use)


def test_price_lists(model: Path, tmp_path: Path) -> None:
    """What `--quality-loss` reads beside a model and chooses from."""
    own, _ = price_list.identity(model, None)
    by_text = {"prose": 0.01}
    points = [
        price_list.Price(setting, n_bytes, 2.0, *[by_text] * 5, *[0.9, 0.05, 0.1])
        for setting, n_bytes in ((Setting(), 100.0), (Setting(skip_cold=0.1, swap_near=0.2), 70.0))
    ]
    texts = ({"name": "prose", "sha256": "0" * 64, "tokens": 48},)
    right = price_list.PriceList("m", own, None, 0.25, "lru", 16, texts, tuple(points)).to_dict()
    path = tmp_path / "m.price.json"

    def read(held: Any) -> Choice:
        rewrite(path, json.dumps(held).encode())
        return choose_for(model, None, 0.99, reproducible=False, path=path)

    def use(found: Choice) -> None:
        assert found.why
        EngineSettings(**asdict(found.setting))
        price_list.read_any(path).to_dict()

    check(right, read, use)


def test_deployments(model: Path, tmp_path: Path) -> None:
    made = deployment_of(model, n_local=8, n_functions=1)
    path = record.path_of(tmp_path, "tiny")
    record.save(made, path)
    right = json.loads(path.read_text())

    def read(held: Any) -> record.Deployment:
        rewrite(path, json.dumps(held).encode())
        return record.load(path)

    def use(found: record.Deployment) -> None:
        assert all(isinstance(line, str) for line in _lines(found, None))
        assert found.cache_bytes >= 0
        assert len(found.apps) == len(found.functions)
        assert not local_ray.alive(found.ray)
        json.dumps(placement_file.as_dict(found.placement), allow_nan=False)

    check(right, read, use)


def test_times_of_functions(tmp_path: Path) -> None:
    points = placements.measured(placements.table()).points
    path = tmp_path / "times.json"

    def read(held: Any) -> Any:
        rewrite(path, json.dumps(held).encode())
        return times_file.load(path)

    check(times_file.as_dict(points), read, lambda found: times_file.as_dict(found))


@pytest.mark.parametrize("load", [price.load, record.load, placement_file.load, times_file.load])
def test_what_is_no_record_is_one_short_line(
    tmp_path: Path, load: Callable[[Path], object]
) -> None:
    path = tmp_path / "record"
    for data in (b"", b"\xff" * 5000, b"[" * 100000, b"1" * 5000, b'{"version": 1}', b"{}", b"[]"):
        path.write_bytes(data)
        with pytest.raises(InputError) as refused:
            load(path)
        assert len(str(refused.value)) < 500 + len(str(path))
        assert "\n" not in str(refused.value)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="no regular file"):
        load(path)


def test_taking_a_deployment_down_removes_what_was_made_for_it_and_nothing_else(
    tmp_path: Path,
) -> None:
    """A record says which folder goes: it may have been written by somebody else."""
    mine = tmp_path / "remoe-mine"
    for name in ("mine", "theirs"):
        folder = tmp_path / f"remoe-{name}"
        folder.mkdir()
        (folder / "precious").write_text("x")
    for folder in (tmp_path, mine, tmp_path / "..", Path("remoe-mine"), Path(""), Path("/")):
        local_ray.stop(Ray("127.0.0.1:1", str(mine / "token"), 0, 0, str(folder)))
        local_ray.stop(Ray("127.0.0.1:1", None, 0, 0, str(folder)))
    (mine / "ray.log").write_text("")
    (tmp_path / "remoe-link").symlink_to(mine)
    link = tmp_path / "remoe-link"
    local_ray.stop(Ray("127.0.0.1:1", str(link / "token"), 0, 0, str(link)))
    assert (mine / "precious").exists()
    local_ray.stop(Ray("127.0.0.1:1", str(mine / "token"), 0, 0, str(mine)))
    assert not mine.exists()
    assert (tmp_path / "remoe-theirs" / "precious").exists()
