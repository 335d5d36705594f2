"""Load the engine before any test's imports can load OpenMP: its waiting threads must not spin."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

import remoe_edge.native  # noqa: F401
from remoe_edge.bench.host_memory import bring_back

# The same examples each time, however long one takes: a test that fails by luck is no test.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.load_profile("same")

# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that: the
# programs that these tests interrupt would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Leave the checkout: programs started in it would import its sources, which hold no core."""
    os.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="session", autouse=True)
def benches_touch_little() -> Iterator[None]:
    """Have no bench touch a gigabyte before each of its runs: half a second on a virtual machine."""
    with pytest.MonkeyPatch.context() as patch:
        most = 16 << 20
        patch.setattr("remoe_edge.bench.session.bring_back", lambda n: bring_back(min(n, most)))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --run-slow."""
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the slow tests unless they are asked for."""
    if config.getoption("--run-slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: pass --run-slow"))
