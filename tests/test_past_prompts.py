"""Past prompts beside an engine: what is learnt and expected, and that no bit of the output moves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import command_line
import tiny_moe
from remoe_edge import Engine
from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.native import _core
from remoe_edge.predict import embeddings
from remoe_edge.predict.past_prompts import WEIGHT, PastPrompts, bonus
from remoe_edge.predict.store import PromptStore
from remoe_edge.routing.trace import read_trace

PROMPTS = [[(37 * i + 11 * n) % 200 + 5 for i in range(23)] for n in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("past")
    return tiny_moe.make(folder / "m.gguf", "qwen3moe", "Q8_0", n_expert=16, n_expert_used=4)


def answers(engine: Engine, n: int = 12) -> list[str]:
    return ["".join(engine.generate(p, max_tokens=n, temperature=0.0)) for p in PROMPTS]


def test_what_is_learnt_is_what_a_recording_says(model: Path, tmp_path: Path) -> None:
    file, recording = tmp_path / "past.npz", tmp_path / "t.trace"
    with Engine(
        model, cache="50%", n_ctx=128, threads=2, past_prompts=file, trace=recording
    ) as engine:
        "".join(engine.generate(PROMPTS[0], max_tokens=12, temperature=0.0))
        assert not file.exists()
    store = PromptStore.load(file)
    assert (len(store), store.n_layers, store.n_experts) == (1, 3, 16)
    trace = read_trace(recording)
    for layer in range(3):
        chosen = np.concatenate([trace.token_ids(int(row)).ravel() for row in trace.rows(layer)])
        expected = np.bincount(chosen, minlength=16) / len(chosen)
        np.testing.assert_allclose(store.activations[0][layer], expected, atol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["past.npz", "t.trace"]


def test_expecting_changes_no_bit_of_the_output(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "past.npz"
    settings = {"cache": "30%", "n_ctx": 128, "threads": 2}
    with Engine(model, **settings) as engine:
        plain = answers(engine, 40)
    for _ in range(2):
        with Engine(model, past_prompts=file, **settings) as engine:
            assert answers(engine, 40) == plain
    assert len(PromptStore.load(file)) == 6


def test_layers_that_only_guess_keep_nothing_from_being_learnt(tmp_path: Path) -> None:
    model = tiny_moe.make(tmp_path / "m.gguf", "glm4moe", "Q8_0", n_nextn=1)
    file = tmp_path / "past.npz"
    with Engine(model, cache="50%", n_ctx=128, threads=1, past_prompts=file) as engine:
        answers(engine)
    store = PromptStore.load(file)
    assert len(store) == len(PROMPTS)
    kept = np.stack(store.activations)
    np.testing.assert_allclose(kept[:, -1], 1 / store.n_experts, atol=1e-3)
    assert np.ptp(kept[:, 0]) > 0.1
    with Engine(model, cache="50%", n_ctx=128, threads=1, past_prompts=file) as engine:
        answers(engine)


def test_a_conversation_is_learnt_from_turn_by_turn(model: Path, tmp_path: Path) -> None:
    past = PastPrompts(tmp_path / "p.npz", model, 3, 16)
    assert past.expect(PROMPTS[0]) is None
    choices = np.zeros(48, np.int64)
    past.learn(PROMPTS[0], choices)  # nothing ran
    assert len(past) == 0
    choices[[0, 17, 33]] = 4
    past.learn(PROMPTS[0], choices)
    expected = past.expect(PROMPTS[0])
    assert expected is not None
    np.testing.assert_allclose(expected, bonus(past.store.activations[0].astype(np.float32)))
    assert expected.argmax(1).tolist() == [0, 1, 1]
    # The search takes up what was learnt since.
    choices[[1, 18, 34]] = 12
    for _ in range(8):
        past.learn(PROMPTS[1], choices)
    later = past.expect(PROMPTS[1])
    assert later is not None
    assert later.argmax(1).tolist() == [1, 2, 2]


def test_several_that_keep_one_file_all_add_to_it(model: Path, tmp_path: Path) -> None:
    both = [PastPrompts(tmp_path / "p.npz", model, 3, 16) for _ in range(2)]
    for n, past in enumerate(both):
        choices = np.zeros(48, np.int64)
        choices[[n, 16 + n, 32 + n]] = 4
        past.learn(PROMPTS[n], choices)
        past.save()
        past.save()  # nothing is new
    kept = PromptStore.load(tmp_path / "p.npz")
    assert [each.argmax(1).tolist() for each in kept.activations] == [[0, 0, 0], [1, 1, 1]]
    both[0].learn(PROMPTS[0], choices)
    both[0].save()
    assert len(PromptStore.load(tmp_path / "p.npz")) == 3


def test_a_bonus_by_hand() -> None:
    even = np.full((2, 8), 1 / 8, np.float32)
    np.testing.assert_allclose(bonus(even), 0, atol=1e-6)
    sure = np.eye(8, dtype=np.float32)[:1]
    np.testing.assert_allclose(
        bonus(sure)[0, :2], WEIGHT * np.log([8.1 / 1.1, 0.1 / 1.1]), rtol=1e-5
    )


def test_the_policy_keeps_what_is_expected() -> None:
    def misses(expected: np.ndarray | None) -> int:
        cache = _core.Cache(2, 8, 8, "reuse-biased")
        assert cache.expect(expected)
        for layer in range(2):  # a prompt that takes more than fits
            cache.begin(layer, list(range(6)), n_tokens=6, decode=False)
            cache.end()
        missed = 0
        for step in range(1, 9):
            for layer in range(2):
                placed = cache.begin(layer, [0, 1, 2], step=step)
                cache.end()
                missed += sum(not hit for _, _, hit in placed)
        return missed

    expected = np.zeros((2, 8), np.float32)
    expected[:, :3] = 3.0
    assert misses(expected) < misses(None)
    assert not _core.Cache(2, 8, 8, "lru").expect(expected)
    holed = expected.copy()
    holed[1, 3] = np.nan
    for wrong, says in (
        (expected[:1], "bonus: 8 values for 16 experts"),
        (holed, "bonus: nan for expert 11,"),
        (np.full((2, 8), np.inf), "bonus: inf for expert 0,"),
    ):
        with pytest.raises(InputError, match=says):
            _core.Cache(2, 8, 8, "reuse-biased").expect(wrong)


def test_expecting_nothing_again_leaves_no_trace() -> None:
    rng = np.random.default_rng(0)
    routed = np.argsort(rng.random((40, 2, 12)), axis=2)[..., :3]

    def run(forget: bool) -> list[object]:
        cache = _core.Cache(2, 12, 9, "reuse-biased")
        if forget:
            cache.expect(rng.normal(size=(2, 12)).astype(np.float32))
            cache.expect(None)
        placed: list[object] = []
        for step, layers in enumerate(routed):
            for layer, experts in enumerate(layers):
                placed.append(cache.begin(layer, experts.tolist(), step=step))
                cache.end()
        return placed

    assert run(forget=True) == run(forget=False)


def test_files_that_do_not_fit_are_refused(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "past.npz"
    with Engine(model, cache="50%", n_ctx=128, threads=2, past_prompts=file) as engine:
        answers(engine, 2)
    other = tiny_moe.make(tmp_path / "o.gguf", "olmoe", "Q8_0", n_expert=16, n_expert_used=4)
    with pytest.raises(InputError, match="prompts of another model"):
        Engine(other, past_prompts=file)
    with pytest.raises(InputError, match="give the path of a file"):
        Engine(model, past_prompts=tmp_path)
    with pytest.raises(InputError, match="give the path of a file"):
        Engine(model, past_prompts=tmp_path / "no" / "such.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot read the prompts in"):
        Engine(model, past_prompts=file)
    assert file.read_bytes() == whole[: len(whole) // 2]
    # Tuned routers activate other experts: theirs are prompts of their own.
    PastPrompts(tmp_path / "tuned.npz", model, 3, 16, routers=other).store.save(file)
    with pytest.raises(InputError, match="or of other routers"):
        Engine(model, past_prompts=file)


def test_embeddings_that_cannot_be_decoded_are_said_at_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(embeddings.quants, "dequantize", refuse)
    with pytest.raises(UnsupportedError, match=r"token_embd\.weight: Q8_0 cannot be decoded"):
        Engine(model, past_prompts=tmp_path / "past.npz")


def test_notes_where_it_does_nothing(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "past.npz"
    with Engine(model, cache="50%", threads=2, policy="lru", past_prompts=file) as engine:
        assert "policy lru takes no notice of past prompts" in engine.notes
    with Engine(model, stream=False, threads=2, past_prompts=file) as engine:
        assert f"{file} is not used: no experts are streamed" in engine.notes
    assert not file.exists()


def test_the_command_keeps_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "past.npz"
    for n in (1, 2):
        done = command_line.run(
            capsys, "chat", "-m", model, "--cache", "50%", "--past-prompts", file, "-p", "hello",
            "-n", "3", "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        assert json.loads(done.out)["n_generated"] >= 1
        assert len(PromptStore.load(file)) == n
