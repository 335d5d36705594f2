"""A plugged program's memory, by the kernel's account: dense + KV + buffers + budget + 64 MiB."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin import memory
from remoe_edge.bench.box import NoBoxError

pytestmark = pytest.mark.slow

N_SETTINGS = 50


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return memory.make_model(tmp_path_factory.mktemp("memory") / "medium.gguf")


def test_peaks_stay_within_the_promise(model: Path) -> None:
    try:
        for choice in memory.choices(N_SETTINGS):
            found = memory.check(model, choice)
            assert found["kept"], found
    except NoBoxError as error:
        pytest.skip(str(error))
