"""Functions on Ray Serve itself: deployed, woken, killed under load, asleep and back, taken down.

Behind --run-slow, and where `pip install 'remoe-edge[remote]'` has been done. Ray is started by the
command under test, with a token of its own and a home folder that stays empty.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from functions import placement_of
from remoe_edge import Engine
from remoe_edge.cli import cli
from remoe_edge.cli.deployment_folder import folder
from remoe_edge.deploy import deploying, local_ray, record
from remoe_edge.deploy.leases import Leases

pytest.importorskip("ray", reason="Ray is not installed: pip install 'remoe-edge[remote]'")
pytestmark = pytest.mark.slow

PATIENCE_S = 600.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_moe

    return tiny_moe.make(tmp_path_factory.mktemp("ray") / "model.gguf", "qwen3moe", "Q4_K")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(place))
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield place


@pytest.fixture(scope="module")
def deployed(model: Path, home: Path) -> Iterator[Path]:
    path, made = deploying.deploy(
        model, placement_of(model, n_local=2), folder=folder(), name="tiny", ray=None,
        n_functions=2, threads=1, keep_s=2.0,
    )  # fmt: skip
    yield path
    if path.exists():
        deploying.take_down(path)
    assert not local_ray.alive(made.ray)


def states() -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["deploy", "status", "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


def n_replicas() -> int:
    return sum(sum(each["replicas"].values()) for each in states()["functions"].values())


def leases_of(made: Engine) -> Leases:
    functions = made._loaded.functions
    assert isinstance(functions, Leases)
    return functions


def serving(made: Engine, n: int) -> bool:
    peers = made.stats()["remote"]["peers"]
    return len(peers) == n and all(each["state"] == "serving" for each in peers)


def tokens(made: Engine, n: int = 16) -> list[int]:
    answer = made.generate([7, 44, 81, 118], max_tokens=n, temperature=0)
    for _ in answer:
        pass
    return list(answer.token_ids)


def engine(model: Path, deployed: Path) -> Engine:
    cache = deploying.WorkerSizes(model).main_cache_bytes(0)
    return Engine(model, deployment=deployed, cache=str(cache), n_ctx=512, threads=1)


def test_functions_sleep_wake_die_and_sleep_again(model: Path, home: Path, deployed: Path) -> None:
    with Engine(model, cache="50%", n_ctx=512, threads=1) as alone:
        expected = tokens(alone)
    assert [each["status"] for each in states()["functions"].values()] == ["RUNNING", "RUNNING"]
    assert n_replicas() == 0  # from zero

    with engine(model, deployed) as made:
        assert tokens(made) == expected  # waits for nothing
        until(lambda: serving(made, 2))
        assert tokens(made) == expected
        told = made.stats()["remote"]["functions"]
        assert sum(each["rows"] for each in told) > 0
        assert all(each["starts"] == 1 and each["start_ms"] > 0 for each in told)

        # A worker, and then a replica, killed while answers run: the same tokens all along.
        for which in ("worker_pid", "replica_pid"):
            pid = pids(made)["f0"][which]
            os.kill(pid, signal.SIGKILL)
            for _ in range(5):
                assert tokens(made) == expected
            until(lambda: serving(made, 2))
            assert pids(made)["f0"][which] != pid
            before = made.stats()["remote"]["remote_rows"]
            assert tokens(made) == expected
            assert made.stats()["remote"]["remote_rows"] > before
    until(lambda: n_replicas() == 0)  # to zero

    with engine(model, deployed) as made:  # and back
        assert tokens(made) == expected
        until(lambda: serving(made, 2))
        assert tokens(made) == expected
    assert list(home.glob(".ray*")) == []


def pids(made: Engine) -> dict[str, dict[str, int]]:
    return leases_of(made).told


def test_down_ends_everything(model: Path, deployed: Path) -> None:
    ray = record.load(deployed).ray
    assert local_ray.alive(ray)
    done = CliRunner().invoke(cli, ["deploy", "down", "tiny"])
    assert (done.exit_code, done.stdout) == (0, "tiny is down\n")
    assert not local_ray.alive(ray)
    assert ray.folder is not None
    assert not Path(ray.folder).exists()
    assert CliRunner().invoke(cli, ["deploy", "status"]).stdout == "nothing is deployed\n"
