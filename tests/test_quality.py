"""What quality costs: measured, kept beside the model, chosen from, and refused where it does not fit."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tiny_dense
import tiny_moe
from remoe_edge import Engine
from remoe_edge.cli import cli
from remoe_edge.cli.price import _row
from remoe_edge.errors import InputError
from remoe_edge.quality import price_list
from remoe_edge.quality.choose import choose, parse_loss
from remoe_edge.quality.closer import closer
from remoe_edge.quality.measure import Heads, Measured, load_text
from remoe_edge.quality.plot import frontier
from remoe_edge.quality.price_list import Price, PriceList, price
from remoe_edge.quality.pricing import Pricing
from remoe_edge.quality.setting import Setting
from remoe_edge.quality.survey import alone, survey


def point(setting: Setting, n_bytes: float, **loss: float) -> Price:
    loss = loss or {"a": 0.0}
    fives = dict.fromkeys(loss, 5.0)
    return Price(setting, n_bytes, 1.0, fives, loss, loss, loss, loss, 1.0, 0.0, 0.0)


def list_of(*prices: Price, **changes: Any) -> PriceList:
    plain = PriceList("m", "f", None, 0.25, "lru", 16, ({"name": "a"},), prices)
    return replace(plain, **changes)


COUNTS = ("bytes_read", "misses", "weighed", "swapped", "skipped_cold", "skipped_small", "coarse")
BASE = point(Setting(), 100)


@pytest.mark.parametrize(("text", "loss"), [("1%", 0.01), ("0.5 %", 0.005), ("0.02", 0.02), (0, 0)])
def test_a_loss_is_read(text: str | float, loss: float) -> None:
    assert parse_loss(text) == pytest.approx(loss)


@pytest.mark.parametrize("text", ["", "x", "-1%", "100%", "nan", 2, True, None])
def test_what_is_no_loss_is_refused(text: Any) -> None:
    with pytest.raises(InputError, match="quality_loss"):
        parse_loss(text)


def test_the_fewest_bytes_within_the_worst_text_are_chosen() -> None:
    mild = point(Setting(swap_near=0.1), 80, a=0.004, b=0.009)
    strong = point(Setting(swap_near=0.5), 50, a=-0.01, b=0.03)
    small = point(Setting(skip_small=0.1), 90, a=0.001, b=0.001)
    prices = list_of(BASE, mild, strong, small)
    assert choose(prices, 0.01) is mild
    assert choose(prices, 0.03) is strong
    assert choose(prices, 0.01, reproducible=True) is small
    assert choose(prices, 0.0) is BASE


def test_prices_compare_token_by_token() -> None:
    nll = np.array([[1.0, 2.0], [3.0, 2.0]])
    best = np.array([[[1], [2]], [[3], [4]]])
    logs = np.zeros((2, 2, 1))
    counts = {"bytes_read": 80, "misses": 4, "weighed": 16, "swapped": 4, "skipped_cold": 1}
    counts.update(skipped_small=1, coarse=8)
    none = {"a": np.zeros((2, 2))}
    base = Measured({"a": nll}, none, {"a": Heads(best, logs)}, counts, 4)
    other = Heads(best + np.array([[[0], [0]], [[0], [1]]]), logs)
    diverged = {"a": np.array([[0.1, 0.0], [0.3, 0.0]])}
    worse = Measured({"a": nll + 0.1}, diverged, {"a": other}, counts, 4)
    found = price(Setting(swap_near=0.1), worse, base)
    assert found.change["a"] == found.low["a"] == pytest.approx(np.expm1(0.1))
    assert found.divergence["a"] == found.worst_loss == pytest.approx(np.expm1(0.1))
    assert found.perplexity["a"] == pytest.approx(np.exp(2.1))
    assert (found.bytes_per_token, found.agreement) == (20, 0.75)
    assert (found.swapped, found.skipped, found.coarse) == (0.25, 0.125, 0.5)


def test_two_windows_are_not_certain() -> None:
    base = Measured({"a": np.zeros((2, 1))}, {"a": np.zeros((2, 1))},
                    {"a": Heads(np.zeros((2, 1, 1), int), np.zeros((2, 1, 1)))},
                    dict.fromkeys(COUNTS, 1), 2)  # fmt: skip
    worse = replace(base, nll={"a": np.array([[0.02], [0.03]])})
    found = price(Setting(skip_cold=0.1), worse, base)
    # A standard error of 0.005, and Student's 12.7 of them.
    assert found.low["a"] == pytest.approx(np.expm1(0.025 - 12.71 * 0.005))
    assert found.costs_at_most(0.01)


def test_one_window_has_no_interval() -> None:
    base = Measured({"a": np.zeros((1, 1))}, {"a": np.zeros((1, 1))},
                    {"a": Heads(np.zeros((1, 1, 1), int), np.zeros((1, 1, 1)))},
                    dict.fromkeys(COUNTS, 1), 2)  # fmt: skip
    alone = price(Setting(), base, base)
    assert "+0.00 % (one window)" in _row(alone, alone)
    assert "nan" not in _row(alone, alone)


def test_a_survey_stops_where_a_means_costs_too_much() -> None:
    asked: list[Setting] = []

    def measure(setting: Setting) -> Price:
        asked.append(setting)
        return point(setting, 50, a=0.1 * setting.swap_near + 0.1 * setting.skip_cold)

    assert len(list(survey(measure, 4, 0.035))) == len(asked)
    near = [each.swap_near for each in asked if each.means == "swap_near"]
    assert near == [0.1, 0.2, 0.3, 0.4]  # the first beyond is the last
    assert sum(each.means == "skip_small" for each in asked) == len(alone(4)["skip_small"])
    together = [each for each in asked if each.means == "swap_near + skip_cold"]
    assert {each.swap_near for each in together} == {0.1, 0.2, 0.3}


def bent(setting: Setting) -> Price:
    """Price a setting as real ones are: what it saves grows evenly, and what it costs faster."""
    on = 0.3 * setting.swap_near, setting.skip_cold, 0.4 * setting.coarse_below
    costs = sum(share * each**2 for share, each in zip((0.5, 0.4, 0.3), on, strict=True))
    rough = 1 + 0.1 * math.sin(40 * sum(on))
    return point(setting, 100 * math.prod(1 - each for each in on), a=rough * costs, b=0.01 * on[0])


@pytest.mark.parametrize("loss", [0.005, 0.01, 0.03])
def test_looking_closer_finds_what_reads_less(loss: float) -> None:
    known = [BASE, *survey(bent, 6, 0.05, coarse=True)]
    found = list(closer(bent, known, loss))
    before = choose(list_of(*known), loss)
    after = choose(list_of(*known, *found), loss)
    assert 1 <= len(found) <= 8
    assert after.bytes_per_token < before.bytes_per_token - 0.5
    assert loss * 0.9 < after.worst_loss <= loss
    settings = [each.setting for each in (*known, *found)]
    assert len(set(settings)) == len(settings)


def test_there_is_nothing_between_what_all_costs_little_or_too_much() -> None:
    mild, strong = (point(Setting(skip_cold=each), 90, a=each) for each in (0.01, 0.3))
    assert list(closer(bent, [BASE, mild], 0.02)) == []
    assert list(closer(bent, [strong], 0.02)) == []
    # What costs more and reads more is no way to fewer bytes.
    assert list(closer(bent, [BASE, mild, replace(strong, bytes_per_token=95)], 0.02)) == []


def test_texts_are_cut_evenly(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("x" * 100)
    text = load_text(path, lambda text: list(range(len(text))), 10, 30)
    assert [window[0] for window in text.windows] == [0, 30, 60]
    assert text.n_tokens == 27
    with pytest.raises(InputError, match="100 tokens"):
        load_text(path, lambda text: list(range(len(text))), 101, 0)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="UTF-8"):
        load_text(path, lambda text: [], 10, 0)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with a price list beside it, and the text that was measured."""
    folder = tmp_path_factory.mktemp("price")
    model = tiny_moe.make(folder / "m.gguf", "qwen3moe", "Q8_0")
    text = folder / "words.txt"
    text.write_text("a few words of a text that is not long, and once more. " * 4)
    done = run("price", str(model), "--text", str(text), "--window", "12", "--data-tokens", "24",
               "--most-loss", "0%", "--cache", "30%", "-t", "1")  # fmt: skip
    assert done.exit_code == 0, done.output
    return model, text


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments))


def test_a_list_is_kept_beside_the_model_and_chosen_from(measured: tuple[Path, Path]) -> None:
    model, text = measured
    kept = price_list.read(price_list.place(model, None), model, None)
    assert kept.prices[0].setting == Setting()
    assert kept.prices[0].bytes_per_token > 0
    assert {each.setting.means for each in kept.prices} >= {"swap_near", "skip_cold", "skip_small"}
    assert kept.texts[0]["name"] == text.stem
    settings: dict[str, Any] = {"n_ctx": 64, "threads": 1, "cache": "30%"}
    with Engine(model, quality_loss="99%", **settings) as engine:
        assert engine.stats().lossy is not None
        assert any("fewer bytes a token" in note for note in engine.notes)
    with Engine(model, quality_loss=0.99, reproducible=True, **settings) as engine:
        assert engine.settings.skip_small > 0
        assert engine.settings.swap_near == engine.settings.skip_cold == 0


def test_what_was_measured_before_a_failure_is_kept(
    measured: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = measured
    whole, left = Pricing.price, [Setting()]

    def fails_soon(self: Pricing, setting: Setting) -> Price:
        if len(left) == 3:
            raise MemoryError
        left.append(setting)
        return whole(self, setting)

    monkeypatch.setattr(Pricing, "price", fails_soon)
    output = tmp_path / "some.json"
    done = run("price", str(model), "--text", str(text), "--window", "12", "--data-tokens", "24",
               "--cache", "30%", "-t", "1", "-o", str(output))  # fmt: skip
    assert done.exit_code == 1, done.output
    assert [each.setting for each in price_list.read(output, model, None).prices] == left


def test_what_was_measured_is_gone_on_with(
    measured: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = measured
    anew: list[Setting] = []
    whole = Pricing.price

    def counted(self: Pricing, setting: Setting) -> Price:
        anew.append(setting)
        return whole(self, setting)

    monkeypatch.setattr(Pricing, "price", counted)
    output = tmp_path / "some.json"
    few = ("price", str(model), "--text", str(text), "--data-tokens", "24", "--cache", "30%",
           "-t", "1", "-o", str(output), "--resume")  # fmt: skip
    kept = json.loads(price_list.place(model, None).read_text())
    settings = [each["setting"] for each in kept["prices"]]
    output.write_text(json.dumps({**kept, "prices": kept["prices"][:-1]}))
    done = run(*few, "--window", "12", "--most-loss", "0%")
    assert done.exit_code == 0, done.output
    assert [asdict(each) for each in anew] == settings[-1:]
    assert json.loads(output.read_text()) == kept
    # A closer look at a list that is there.
    dearest = max(each["divergence"][text.stem] for each in kept["prices"])
    done = run(*few, "--window", "12", "--most-loss", "0%", "--around", f"{50 * dearest}%")
    assert done.exit_code == 0, done.output
    assert len(json.loads(output.read_text())["prices"]) == len(settings) + len(anew) - 1
    assert len(anew) > 1
    # Named means are added to it, unless they are in it.
    for _ in range(2):
        anew.clear()
        done = run(*few, "--window", "12", "--skip-cold", "0.123")
        assert done.exit_code == 0, done.output
    assert anew == []
    before = output.read_bytes()
    refused = run(*few, "--window", "13")
    assert "another window" in refused.output
    other = json.loads(before)
    other["prices"][0]["perplexity"][text.stem] += 1e-9
    output.write_text(json.dumps(other))
    refused = run(*few, "--window", "12")
    assert refused.exit_code == 1
    assert "another bits without loss" not in refused.output
    assert "other bits" in refused.output
    assert json.loads(output.read_text()) == other
    output.write_text("{}")
    assert "is no price list" in run(*few, "--window", "12").output
    assert anew == []
    output.unlink()
    assert run(*few, "--window", "12", "--skip-cold", "0.1").exit_code == 0
    assert len(anew) == 1


def test_named_means_are_measured_alone(measured: tuple[Path, Path], tmp_path: Path) -> None:
    model, text = measured
    output = tmp_path / "one.json"
    few = ("--window", "12", "--data-tokens", "24", "--cache", "30%", "-t", "1")
    done = run("price", str(model), "--text", str(text), "--skip-cold", "0.4", "--swap-near", "0.2",
               *few, "-o", str(output))  # fmt: skip
    assert done.exit_code == 0, done.output
    settings = [each.setting for each in price_list.read(output, model, None).prices]
    assert settings == [Setting(), Setting(swap_near=0.2, skip_cold=0.4)]
    done = run("price", str(model), "--text", str(text), "--coarse-below", "0.4", "-o", str(output))
    assert done.exit_code == 1
    assert "remoe-edge convert coarse" in done.output
    done = run("price", str(model), "--text", str(text), "--skip-cold", "0.4", "--around", "1%")
    assert done.exit_code == 2
    assert "name no means" in done.output


@pytest.mark.parametrize("cache", ["auto", "plan:5ms"])
def test_a_cache_that_may_change_is_not_measured(
    measured: tuple[Path, Path], tmp_path: Path, cache: str
) -> None:
    model, text = measured
    output = tmp_path / "one.json"
    done = run("price", str(model), "--text", str(text), "--cache", cache, "-o", str(output))
    assert done.exit_code == 2
    assert "give a size, such as 25%" in " ".join(done.output.split())
    assert not output.exists()


def test_a_model_without_experts_has_no_prices(tmp_path: Path) -> None:
    model = tiny_dense.make(tmp_path / "dense.gguf")
    text = tmp_path / "words.txt"
    text.write_text("a few words of a text. " * 4)
    done = run("price", str(model), "--text", str(text), "--window", "12", "-t", "1")
    assert done.exit_code == 1
    assert "has no experts: there is nothing to do without" in " ".join(done.output.split())


def test_a_smaller_cache_than_the_measured_is_refused(
    measured: tuple[Path, Path], tmp_path: Path
) -> None:
    model, _ = measured
    plain = json.loads(price_list.place(model, None).read_text())
    plain["prices"] = [each for each in plain["prices"] if not each["setting"]["skip_small"]]
    for each in plain["prices"][1:]:
        each.update(bytes_per_token=1, divergence={"words": 0}, low={"words": 0})
    path = tmp_path / "list.json"
    path.write_text(json.dumps(plain))
    settings: dict[str, Any] = {"n_ctx": 64, "threads": 1, "price_list": path}
    with pytest.raises(InputError, match="larger cache"):
        Engine(model, quality_loss="1%", cache="20%", **settings)
    with Engine(model, quality_loss="1%", cache="30%", **settings) as engine:
        assert engine.stats().lossy is not None


def test_without_a_list_the_command_is_named(measured: tuple[Path, Path], tmp_path: Path) -> None:
    other = tiny_moe.make(tmp_path / "o.gguf", "olmoe", "Q8_0")
    with pytest.raises(InputError, match=r"remoe-edge price .*o\.gguf"):
        Engine(other, quality_loss="1%")
    kept = price_list.place(measured[0], None)
    with pytest.raises(InputError, match="measured on another model"):
        Engine(other, quality_loss="1%", price_list=kept)
    done = run("chat", str(other), "-p", "x", "--quality-loss", "1%")
    assert done.exit_code == 1
    assert "remoe-edge price" in done.output


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: plain.pop("prices"),
        lambda plain: plain.update(kind="x"),
        lambda plain: plain["prices"].pop(0),
        lambda plain: plain["prices"][1].update(bytes_per_token="many"),
        lambda plain: plain["prices"][1].update(divergence={}),
        lambda plain: plain["prices"][1]["setting"].update(swap_far=1),
    ],
)
def test_damaged_lists_are_refused(
    measured: tuple[Path, Path], tmp_path: Path, damage: Any
) -> None:
    model, _ = measured
    plain = json.loads(price_list.place(model, None).read_text())
    damage(plain)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(plain))
    with pytest.raises(InputError, match="is no price list"):
        Engine(model, quality_loss="1%", price_list=bad)
    bad.write_text("[")
    with pytest.raises(InputError, match="is no price list"):
        Engine(model, quality_loss="1%", price_list=bad)


def test_prices_and_means_are_not_given_together(measured: tuple[Path, Path]) -> None:
    model, _ = measured
    with pytest.raises(InputError, match="quality_loss chooses the means"):
        Engine(model, quality_loss="1%", skip_cold=0.1)
    with pytest.raises(InputError, match="not reproducible"):
        Engine(model, reproducible=True, swap_near=0.1)
    with Engine(model, reproducible=True, skip_small=0.1, n_ctx=64) as engine:
        assert engine.stats().lossy == "skip_small 0.1"


def test_the_frontier_is_what_nothing_beats() -> None:
    mild = point(Setting(skip_cold=0.1), 80, a=0.01)
    worse = point(Setting(swap_near=0.1), 85, a=0.02)
    strong = point(Setting(skip_cold=0.2), 60, a=0.03)
    assert frontier(list_of(BASE, strong, worse, mild)) == [BASE, mild, strong]


def test_a_picture_is_drawn(measured: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from remoe_edge.quality.plot import draw

    kept = price_list.read(price_list.place(measured[0], None), measured[0], None)
    draw({"off": kept, "tuned": kept}, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
