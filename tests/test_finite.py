"""Numbers that are not numbers: named once, and forgotten before the next prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny_moe
from remoe_edge import Engine
from remoe_edge.engine import loaded
from remoe_edge.engine.finite import require_finite
from remoe_edge.errors import ModelError
from remoe_edge.native import _core

NAN, INFINITY = b"\x00\x7e", b"\x00\x7c"  # as F16


def poisoned(path: Path, tensor: str, scale: bytes) -> Path:
    """Overwrite the scale of every Q8_0 block of a tensor."""
    model = _core.ModelFile.open(path)
    found = model.find(tensor)
    assert found is not None
    assert found.type_name == "Q8_0"
    with open(path, "r+b") as file:
        for at in range(0, found.n_bytes, 34):
            file.seek(found.offset + at)
            file.write(scale)
    return path


@pytest.mark.parametrize("scale", [NAN, INFINITY])
@pytest.mark.parametrize("tensor", ["blk.1.ffn_down_exps.weight", "blk.1.attn_q.weight"])
@pytest.mark.parametrize("stream", [True, False])
def test_weights_that_are_no_numbers(
    tensor: str, scale: bytes, stream: bool, tmp_path: Path
) -> None:
    path = poisoned(tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0"), tensor, scale)
    with Engine(path, cache="50%", stream=stream, publish=False) as engine:
        for _ in range(2):  # the second time too, and at once
            with pytest.raises(ModelError, match="not finite") as said:
                list(engine.generate("hello there", max_tokens=6, temperature=0))
            assert str(path) in str(said.value)
        with pytest.raises(ModelError, match="after 2 tokens"):
            engine.evaluate([1, 2])


def test_an_error_leaves_no_poisoned_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0")
    with Engine(path, cache="100%", publish=False) as engine:
        alone = "".join(engine.generate([1, 2, 3], max_tokens=8, temperature=0))

        def refuse(logits: object, n_tokens: int, model: object) -> None:
            if n_tokens == 5:
                raise ModelError("not finite")

        with monkeypatch.context() as patched:
            patched.setattr(loaded, "require_finite", refuse)
            with pytest.raises(ModelError):
                list(engine.generate([1, 2, 3], max_tokens=8, temperature=0))
        assert (
            engine.llama.n_tokens == 0
        )  # nothing of it is taken over by a prompt that begins alike
        assert "".join(engine.generate([1, 2, 3], max_tokens=8, temperature=0)) == alone


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_value_in_a_large_row(bad: float) -> None:
    row = np.linspace(-20, 20, 150_000, dtype=np.float32)
    require_finite(row, 1, "m")
    row[77_777] = bad
    with pytest.raises(ModelError, match="after 1 tokens"):
        require_finite(row, 1, "m")


def test_suppressed_tokens_are_no_fault() -> None:
    row = np.zeros(100, dtype=np.float32)
    row[:99] = -np.inf
    require_finite(row, 1, "m")
    row[99] = -np.inf  # nothing is left to sample
    with pytest.raises(ModelError):
        require_finite(row, 1, "m")
