"""After a step that failed or was stopped, the engine answers as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny_moe
from remoe_edge import Engine, InputError
from remoe_edge.errors import RemoeError
from remoe_edge.native import _core


@pytest.mark.parametrize("arch", ["qwen3moe", "granitehybrid", "qwen3next", "lfm2moe"])
@pytest.mark.parametrize("how", ["failed", "interrupted"])
def test_after_a_step_that_did_not_end_the_same_prompt_works(
    tmp_path: Path, arch: str, how: str
) -> None:
    model = tiny_moe.make(tmp_path / "m.gguf", arch, "Q8_0")
    prompt = list(range(7, 30))
    with Engine(model, cache="100%", n_ctx=128, threads=1) as engine:
        alone = engine.generate(prompt, temperature=0, max_tokens=5).read()
    opened = _core.StreamedModel.open(str(model))
    floor = f"{-(-opened.budget_for(max(1, opened.n_experts_used)) // 1024)}KiB"
    del opened
    layer = _core.ModelFile.open(str(model)).expert_layers[-1]
    down = layer.matrices[-1]
    fault = _core.FaultPlan(
        range_file=0, range_offset=down.offset, range_bytes=down.expert_bytes * layer.n_experts
    )
    with Engine(model, cache=floor, n_ctx=128, threads=1, prefetch="off", policy="lru") as engine:
        native = engine.native
        assert native is not None

        def stop() -> None:
            if how == "failed":
                native.set_faults(fault)
            else:
                engine.llama.eval = interrupting

        def interrupting(tokens: Any) -> None:
            del engine.llama.eval
            native.interrupt()
            engine.llama.eval(tokens)

        for _ in range(2):
            answer = engine.generate(prompt, temperature=0, max_tokens=12)
            next(answer)
            stop()
            with pytest.raises((RemoeError, KeyboardInterrupt)):
                answer.read()
            native.set_faults(_core.FaultPlan())
            native.clear_interrupt()
            if engine.llama._is_recurrent or engine.llama._is_hybrid:
                # Nobody goes on unawares from a context that is gone.
                with pytest.raises(InputError, match="reset=True"):
                    engine.evaluate([5], reset=False)
            assert engine.generate(prompt, temperature=0, max_tokens=5).read() == alone
        assert engine.generate([*prompt, 5], temperature=0, max_tokens=2).read()
