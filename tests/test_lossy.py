"""Swapping and skipping experts: right where it is done, refused by name elsewhere, absent when off.

Where everything but a token's strongest expert is skipped, the answer has to be, bit by bit, that of
stock llama.cpp with a model file that says that one expert is used: the weights are then what the
architecture itself makes of fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import stock
import tiny_moe
from conversations import ALL, batch_of, join, prompt
from remoe_edge import Engine
from remoe_edge.engine.settings import EngineSettings
from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.native import _core

N_GREEDY = 4
TOKEN = 42
REFUSED = {
    "llama4": "not applied to what the experts gave",
    "grovemoe": "also chooses experts that are not streamed",
}
# Softmax before and after the choice, shares of the sum, sigmoid with a bias, groups, expert biases.
USUAL = ("olmoe", "qwen3moe", "deepseek2-v3", "gpt-oss", *REFUSED)
MOSTLY = 0.999999  # only a token's strongest expert has that share of the weights
DECODED = tuple(range(60, 90))


def run(path: Path, tokens: Sequence[int], **settings: Any) -> npt.NDArray[np.uint32]:
    """The logits after each of one token and then others, all decoded, as bits."""
    with Engine(path, n_ctx=64, threads=2, **settings) as engine:
        return rows_of(engine, tokens)


def rows_of(engine: Engine, tokens: Sequence[int]) -> npt.NDArray[np.uint32]:
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


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny_moe.make(folder / "m.gguf", "qwen3moe", "Q8_0")


def strongest_alone(folder: Path, arch: str, **form: Any) -> None:
    """Check an architecture against stock with one expert used, or that it is refused."""
    several = max(2, tiny_moe.shape_of(arch, "Q8_0").n_expert_used)
    path = tiny_moe.make(folder / f"{arch}.gguf", arch, "Q8_0", n_expert_used=several, **form)
    if arch in REFUSED:
        with pytest.raises(UnsupportedError, match=REFUSED[arch]) as refused:
            Engine(path, n_ctx=64, threads=2, skip_small=MOSTLY)
        assert "--skip-small" in str(refused.value)
        return
    one = tiny_moe.make(folder / f"{arch}-one.gguf", arch, "Q8_0", n_expert_used=1, **form)
    for each in (path, one):
        without_bias(each)
    expected = stock.run(one, [TOKEN], N_GREEDY, n_threads=2, use_extra_bufts=False)
    for cache in ("100%", "50%"):
        bits = run(path, expected.tokens, cache=cache, skip_small=MOSTLY)
        assert (bits == expected.logits.view(np.uint32)).all()


@pytest.mark.parametrize("arch", USUAL)
def test_the_strongest_alone_weighs_what_the_architecture_says(folder: Path, arch: str) -> None:
    strongest_alone(folder, arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [arch for arch in tiny_moe.ARCHS if arch not in USUAL])
def test_the_strongest_alone_in_every_architecture(folder: Path, arch: str) -> None:
    strongest_alone(folder, arch)


@pytest.mark.parametrize("form", [{"expert_scales": True}, {"merged_gate_up": True}], ids=str)
def test_the_strongest_alone_in_other_layouts(folder: Path, form: dict[str, bool]) -> None:
    # Scales stand between the products, and cut the FFN into pieces; they go by the ids, too.
    archs = tiny_moe.SCALED_ARCHS if "expert_scales" in form else tiny_moe.MERGED_ARCHS
    strongest_alone(folder, next(arch for arch in archs if arch not in REFUSED), **form)


def test_several_tokens_and_formats_that_run_whole(folder: Path) -> None:
    # Rearranged weights are computed as llama.cpp built the graph, with no pair left out.
    path = tiny_moe.make(folder / "w.gguf", "olmoe", "Q8_0", n_expert_used=4)
    one = tiny_moe.make(folder / "w1.gguf", "olmoe", "Q8_0", n_expert_used=1)
    expected = stock.run(one, [TOKEN], N_GREEDY, n_threads=2, use_extra_bufts=True)
    bits = run(path, expected.tokens, cache="100%", skip_small=MOSTLY, repack=True)
    assert (bits == expected.logits.view(np.uint32)).all()


def test_off_is_off(model: Path) -> None:
    expected = stock.run(model, [TOKEN], N_GREEDY, n_threads=2, use_extra_bufts=False)
    with Engine(model, n_ctx=64, threads=2, cache="50%") as engine:
        bits = rows_of(engine, expected.tokens)
        assert engine.counts()["weighed"] == 0  # nobody was asked
        assert engine.stats().lossy is None
        assert "lossy" not in engine.stats()
    assert (bits == expected.logits.view(np.uint32)).all()
    # A dial that is on and finds nothing to do changes no bit either.
    idle = run(model, expected.tokens, cache="50%", skip_small=1e-9)
    assert (idle == bits).all()


def test_a_prompt_is_computed_without_loss(model: Path) -> None:
    prompt = [(37 * i + 11) % 200 + 5 for i in range(20)]
    rows = []
    for settings in ({}, {"skip_small": MOSTLY}):
        with Engine(model, n_ctx=64, threads=2, cache="50%", prefetch="off", **settings) as engine:
            rows.append(engine.evaluate(prompt))
            assert engine.counts()["weighed"] == 0
            engine.evaluate([TOKEN], reset=False)
            assert (engine.counts()["skipped_small"] > 0) == bool(settings)
    assert (rows[0].view(np.uint32) == rows[1].view(np.uint32)).all()


@pytest.mark.parametrize("settings", [{"swap_near": 0.9}, {"skip_cold": 0.4}], ids=str)
def test_the_same_state_gives_the_same_answer(model: Path, settings: dict[str, float]) -> None:
    runs = []
    for _ in range(2):
        with Engine(model, n_ctx=64, threads=2, cache="30%", **settings) as engine:
            first, second = rows_of(engine, DECODED), rows_of(engine, DECODED)
            counts = engine.counts()
            runs.append((first, second, {n: v for n, v in counts.items() if "_ns" not in n}))
        assert counts["swapped"] + counts["skipped_cold"] > 0
    assert (runs[0][0] == runs[1][0]).all()
    assert (runs[0][1] == runs[1][1]).all()
    assert runs[0][2]["misses"] == runs[1][2]["misses"]
    plain = run(model, DECODED, cache="30%")
    assert not (runs[0][0] == plain).all()


def test_small_ones_are_skipped_whatever_the_cache_holds(model: Path) -> None:
    rows = [run(model, DECODED, cache=cache, skip_small=0.2) for cache in ("100%", "50%", "30%")]
    assert (rows[0] == rows[1]).all()
    assert (rows[0] == rows[2]).all()
    assert not (rows[0] == run(model, DECODED)).all()


def test_each_of_several_conversations_loses_by_its_own_shares(model: Path) -> None:
    with batch_of(model, 3, group=ALL, skip_small=0.2) as batch:
        found = [join(batch, prompt(9, which), 8, logprobs=1000)[0] for which in (0, 0, 1)]
        while batch.step():
            pass
        counts = batch._loaded.counts()
    assert counts["skipped_small"] > 0
    assert counts["skipped_cold"] == counts["swapped"] == 0
    # Side by side in one step, and the same bits as its equal; the third is another.
    assert found[0].token_ids == found[1].token_ids
    assert found[0].logprobs == found[1].logprobs
    assert found[0].logprobs != found[2].logprobs


def test_what_is_read_becomes_less(model: Path) -> None:
    read = []
    for settings in ({}, {"swap_near": 0.9}, {"skip_cold": 0.4}, {"skip_small": 0.4}):
        with Engine(model, n_ctx=64, threads=2, cache="30%", prefetch="off", **settings) as engine:
            rows_of(engine, DECODED)
            read.append(engine.counts()["bytes_read"])
    assert all(each < read[0] for each in read[1:])


def test_the_answer_says_that_it_is_lossy(model: Path) -> None:
    with Engine(model, n_ctx=64, threads=2, cache="30%", skip_cold=0.4) as engine:
        list(engine.generate([TOKEN], max_tokens=8, temperature=0))
        stats = engine.stats()
        assert stats.lossy == "skip_cold 0.4"
        assert stats["lossy"]["skipped_cold"] > 0
        assert "lossy: 0.0 % of experts swapped" in engine.answer.line(True)
        assert any("nothing is prefetched" in note for note in engine.notes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"swap_near": 1}, "swap_near is a share"),
        ({"skip_cold": -0.1}, "skip_cold is a share"),
        ({"skip_small": "x"}, "skip_small is a share"),
        ({"skip_small": float("nan")}, "skip_small is a share"),
        ({"swap_near": True}, "swap_near is a share"),
        ({"skip_small": 0.1, "stream": False}, "need streaming"),
        ({"skip_small": 0.1, "draft": "on"}, "draft"),
        ({"skip_small": 0.1, "gpu_layers": "all"}, "gpu_layers off"),
        ({"skip_cold": 0.1, "prefetch": "on"}, "prefetch off"),
        ({"skip_cold": 0.1, "peers": "127.0.0.1:7777"}, "peers"),
    ],
    ids=str,
)
def test_settings_that_break_a_promise_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        EngineSettings(**settings)


def test_settings_are_numbers_however_they_are_written() -> None:
    settings = EngineSettings(skip_small="0.25", prefetch="on")
    assert settings.skip_small == 0.25
    assert settings.to_dict()["skip_small"] == 0.25
    assert "skip_small" not in EngineSettings().to_dict()


def test_a_trace_is_not_recorded_with_loss(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="what the routers chose"):
        Engine(model, n_ctx=64, skip_small=0.1, trace=tmp_path / "t.trace")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("means", [{"swap_near": 0.5}, {"skip_small": 0.4}], ids=str)
def test_layers_behind_the_others_hold_nothing_up(folder: Path, means: dict[str, float]) -> None:
    """A model with layers that predict further tokens, which nothing runs here, goes as one without."""
    told = []
    for n_nextn in (0, 1):
        path = tiny_moe.make(folder / f"next{n_nextn}.gguf", "glm4moe", "Q8_0", n_nextn=n_nextn)
        with Engine(path, n_ctx=64, threads=1, cache="100%", **means) as engine:
            rows_of(engine, DECODED)
            told.append({name: engine.counts()[name] for name in ("weighed", "swapped")})
    assert told[1]["weighed"] == told[0]["weighed"] > 0


@pytest.mark.parametrize("length", [1, 20, 33])
def test_a_prompts_pieces_of_one_token_lose_nothing(model: Path, length: int) -> None:
    """However a prompt is cut, only what is decoded after it is weighed."""
    for settings in ({"n_batch": 32}, {"n_ubatch": 1}):
        with Engine(model, n_ctx=64, threads=1, cache="50%", skip_small=0.4, **settings) as engine:
            engine.generate(prompt(length), max_tokens=1, temperature=0).read()
            assert engine.counts()["weighed"] == 0
            engine.generate([*prompt(length), 7], max_tokens=2, temperature=0).read()
            assert engine.counts()["weighed"] > 0


def test_a_profile_reads_nothing_by_the_clock(model: Path, tmp_path: Path) -> None:
    profile = tmp_path / "p"
    settings: dict[str, Any] = {"n_ctx": 64, "threads": 1, "cache": "60%", "profile": profile}
    with Engine(model, **settings) as engine:
        rows_of(engine, DECODED)
    for means, reads in (({"skip_small": 0.4}, True), ({"skip_cold": 0.4}, False)):
        with Engine(model, **settings, **means) as engine:
            assert engine.native is not None
            engine.native.finish_warm_start()
            assert (engine.counts()["warm_experts"] > 0) == reads
            assert any("not read at first" in note for note in engine.notes) != reads
