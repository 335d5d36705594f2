"""A plugged program's memory, by the kernel's account: dense + KV + buffers + budget + 64 MiB."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

import plugged
import tiny_moe
from remoe_edge import _core
from remoe_edge.bench.box import Cgroup, Limits, NoBoxError, boxed

pytestmark = pytest.mark.slow

SLACK_BYTES = 64 << 20
N_SETTINGS = 50

_PROGRAM = """
model = load(sys.argv[1])
ctx = context(model, n_ctx=1024, n_batch=1024, n_ubatch=int(sys.argv[2]))
assert model and ctx
for length in (600, 40):
    forget(ctx)
    assert decode(ctx, [(37 * i + 11) % 200 + 5 for i in range(length)]) == 0
    for token in range(5, 17):
        assert decode(ctx, [token]) == 0
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 340 MB, nearly all of it experts."""
    path = tmp_path_factory.mktemp("memory") / "medium.gguf"
    sizes = {"n_layer": 6, "n_embd": 512, "n_ff_exp": 512, "n_expert": 64, "n_expert_used": 6}
    return tiny_moe.make(path, "qwen3moe", "Q8_0", **sizes)


def settings() -> list[tuple[dict[str, str], int]]:
    """Draw what a user might choose: always the same."""
    draw = random.Random(24)
    return [
        (
            {
                "cache": draw.choice([f"{draw.randint(3, 100)}%", f"{draw.randint(6, 400)}MiB"]),
                "prefetch": draw.choice(["on", "off", "auto"]),
                "policy": draw.choice(["reuse-biased", "lru", "lfu"]),
                "repack": draw.choice(["auto", "off"]),
            },
            draw.choice([16, 64, 512]),
        )
        for _ in range(N_SETTINGS)
    ]


def run(model: Path, chosen: dict[str, str], n_ubatch: int, limit_bytes: int) -> tuple[str, int]:
    """Run the program below a limit; return what it said, and its peak in bytes."""
    with boxed(Limits(limit_bytes)) as box:
        if not isinstance(box, Cgroup):
            pytest.skip("the account of a scope is gone with its process; run as root")
        words = [sys.executable, "-c", plugged.PRELUDE + _PROGRAM, str(model), str(n_ubatch)]
        done = subprocess.run(
            box.command(words), capture_output=True, text=True,
            env={**os.environ, **plugged.added(**chosen)},
        )  # fmt: skip
        assert done.returncode == 0, f"{chosen} ended with {done.returncode}: {done.stderr[-800:]}"
        peak_bytes = box.account().peak_bytes
        assert peak_bytes is not None
        return done.stderr, peak_bytes


def promise(told: str, dense_bytes: int) -> int:
    """Sum up what was promised, from the plug-in's own line and from llama.cpp's."""
    (cache,) = re.findall(r"a cache of .*?([\d.]+) MiB", told)
    buffers = re.findall(r"(?:KV|output|compute) buffer size = +([\d.]+) MiB", told)
    return dense_bytes + int((float(cache) + sum(map(float, buffers))) * (1 << 20)) + SLACK_BYTES


def test_peaks_stay_within_the_promise(model: Path) -> None:
    dense_bytes = _core.ModelFile.open(str(model)).dense_bytes
    try:
        for chosen, n_ubatch in settings():
            told, peak_bytes = run(model, chosen, n_ubatch, 4 << 30)
            promised = promise(told, dense_bytes)
            assert peak_bytes <= promised, f"{chosen}: {peak_bytes / promised:.3f} of the promise"
            # With the sum as the limit, the kernel kills nothing.
            run(model, chosen, n_ubatch, promised)
    except NoBoxError as error:
        pytest.skip(str(error))
