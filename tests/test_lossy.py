"""Swapping and skipping experts: right where it is done, refused by name elsewhere, absent when off.

Where everything but a token's strongest experts is skipped, the answer has to be, bit by bit, that of stock
llama.cpp with a model file that says so many experts are used: the weights are then what the
architecture itself makes of fewer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import stock
import tiny_moe
from remoe_edge import Engine, EngineSettings
from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.native import _core

N_GREEDY = 6
TOKEN = 42
# Where llama.cpp does not weigh what the experts gave by what it gathered from the router's values.
REFUSED = {
    "llama4": "not applied to what the experts gave",
    "grovemoe": "also chooses experts that are not streamed",
}
MOSTLY = "0.999999"  # only a token's strongest expert has that share of the weights


def run(path: Path, tokens: tuple[int, ...], **settings: Any) -> npt.NDArray[np.uint32]:
    """The logits after each of one token and then others, all decoded, as bits."""
    with Engine(path, n_ctx=64, threads=2, **settings) as engine:
        rows = [engine.evaluate([TOKEN])]
        rows += [engine.evaluate([token], reset=False) for token in tokens]
    return np.stack(rows).view(np.uint32)


def without_bias(path: Path) -> Path:
    """Zero the biases that choices are made by: then the first of a token's experts is its strongest."""
    with path.open("r+b") as file:
        for tensor in _core.ModelFile.open(str(path)).tensors:
            if "exp_probs_b" in tensor.name:
                file.seek(tensor.offset)
                file.write(bytes(tensor.n_bytes))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lossy")


@pytest.mark.parametrize("arch", tiny_moe.ARCHS)
def test_only_the_strongest_is_what_the_architecture_makes_of_one(folder: Path, arch: str) -> None:
    several = max(2, tiny_moe.shape_of(arch, "Q8_0").n_expert_used)
    path = without_bias(
        tiny_moe.make(folder / f"{arch}.gguf", arch, "Q8_0", n_expert_used=several)
    )
    try:
        bits = run(path, (), cache="50%", skip_small=MOSTLY)
    except UnsupportedError as error:
        print(arch, error)
        assert REFUSED[arch] in str(error)
        return
    one = without_bias(tiny_moe.make(folder / f"{arch}-one.gguf", arch, "Q8_0", n_expert_used=1))
    expected = stock.run(one, [TOKEN], N_GREEDY, n_threads=2, use_extra_bufts=False)
    bits = run(path, expected.tokens, cache="50%", skip_small=MOSTLY)
    assert (bits == expected.logits.view(np.uint32)).all()
