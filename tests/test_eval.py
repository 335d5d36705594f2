"""Evaluation: the figures against what they are of, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from remoe_edge.errors import InputError
from remoe_edge.routing.replay import misses_by_token

torch = pytest.importorskip("torch", reason="evaluation needs torch (extra [tune])")
pytest.importorskip("transformers", reason="evaluation needs transformers (extra [tune])")

from remoe_edge.cli.eval import command as eval_command  # noqa: E402
from remoe_edge.tune.data import load_domains  # noqa: E402
from remoe_edge.tune.decoder import Decoder  # noqa: E402
from remoe_edge.tune.measure import measure_domain, summarise  # noqa: E402
from remoe_edge.tune.record import save_routers  # noqa: E402
from remoe_edge.tune.weights import open_weights  # noqa: E402
from tune_models import hf_model, write_gguf  # noqa: E402


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(hf_model("qwen3moe"), "qwen3moe", tmp_path_factory.mktemp("m") / "tiny.gguf")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "held-out"
    folder.mkdir()
    (folder / "prose.txt").write_text("It was a bright cold day in April. " * 20)
    (folder / "code.txt").write_text("def f(x):\n    return x + 1\n" * 20)
    return folder


def test_figures_agree_with_their_definitions(gguf_path: Path, data_dir: Path) -> None:
    decoder = Decoder(open_weights(gguf_path))
    code, _ = load_domains([data_dir], gguf_path, 20, decoder.n_vocab)
    found = measure_domain(decoder, decoder.routers, code, 20, batch=3)
    windows = (len(code.tokens) - 1) // 20
    summary = summarise({"code": found})["code"]
    chosen, nll = [], []
    with torch.no_grad():
        for w in range(windows):
            row = torch.from_numpy(code.tokens[w * 20 : w * 20 + 21])[None]
            hidden, routing = decoder.hidden(row[:, :-1])
            chosen.append(routing.chosen[:, 0].numpy())
            nll.append(torch.nn.functional.cross_entropy(decoder.logits(hidden)[0], row[0, 1:]))
    assert summary["windows"] == windows
    perplexity = float(torch.stack(nll).mean().exp())
    assert summary["perplexity"]["value"] == pytest.approx(perplexity, 1e-5)
    eor = np.mean(
        [
            len(set(c[layer, t]) & set(c[layer, t - 1])) / 3
            for c in chosen
            for layer in range(3)
            for t in range(1, 20)
        ]
    )
    assert summary["eor"]["value"] == pytest.approx(eor, 1e-9)
    assert np.mean(summary["eor_by_layer"]) == pytest.approx(eor, 1e-9)
    distinct = np.mean([len(set(c[layer, :16].flat)) for c in chosen for layer in range(3)])
    assert summary["distinct_experts"]["16"]["value"] == pytest.approx(distinct, 1e-9)
    assert set(summary["distinct_experts"]) == {"16"}
    trace = np.concatenate(chosen, axis=1)
    for name, slots in (("lru@0.25", 6), ("lru@0.5", 12), ("belady@0.1", 3)):
        counted = misses_by_token(trace, slots, name.split("@")[0])[: windows * 20]
        assert summary["misses_per_token"][name]["value"] == pytest.approx(counted.mean(), 1e-9)
    use = np.stack([np.bincount(layer.reshape(-1), minlength=8) for layer in trace])
    assert summary["load"]["unused"] == int((use == 0).sum())
    expected = (use.max(1) / use.mean(1)).mean()
    assert summary["load"]["max_over_mean"] == pytest.approx(expected, 1e-9)
    assert summary["eor"]["low"] < summary["eor"]["value"] < summary["eor"]["high"]


def test_same_routers_change_nothing(gguf_path: Path, data_dir: Path) -> None:
    decoder = Decoder(open_weights(gguf_path))
    domains = load_domains([data_dir], gguf_path, 20, decoder.n_vocab)
    found = {d.name: measure_domain(decoder, decoder.routers, d, 20) for d in domains}
    for figures in summarise(found, found).values():
        change = figures["change_percent"]
        for value in (change["perplexity"], change["eor"], *change["misses_per_token"].values()):
            assert value == {"value": 0, "low": 0, "high": 0}


def test_domains_pool_into_all(gguf_path: Path, data_dir: Path) -> None:
    decoder = Decoder(open_weights(gguf_path))
    domains = load_domains([data_dir], gguf_path, 20, decoder.n_vocab)
    found = {d.name: measure_domain(decoder, decoder.routers, d, 20) for d in domains}
    summary = summarise(found)
    weights = [summary[name]["windows"] for name in ("code", "prose")]
    values = [summary[name]["eor"]["value"] for name in ("code", "prose")]
    assert summary["all"]["eor"]["value"] == pytest.approx(np.average(values, weights=weights))
    assert summary["all"]["windows"] == sum(weights)


def test_command_compares_base_and_tuned(gguf_path: Path, data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    decoder = Decoder(open_weights(gguf_path))
    # Routers of zeros choose the same experts for every token.
    stuck = [torch.zeros(8, 32) for _ in decoder.routers]
    tuned = tmp_path / "stuck.safetensors"
    save_routers(tuned, stuck, decoder.shape, "", {})
    out, png = tmp_path / "figures.json", tmp_path / "pareto.png"
    arguments = [str(gguf_path), "--routers", f"stuck={tuned}", "--data", str(data_dir)]
    arguments += ["--window", "20", "-o", str(out), "--plot", str(png)]
    result = CliRunner().invoke(eval_command, arguments)
    assert result.exit_code == 0, result.output
    assert "stuck" in result.stdout
    assert "lru misses/token" in result.stdout
    report = json.loads(out.read_text())
    assert report["chance_eor"] == 3 / 8
    figures = report["routers"]["stuck"]["all"]
    assert figures["eor"]["value"] == 1.0
    assert figures["misses_per_token"]["lru@0.5"]["value"] < 0.5
    assert figures["change_percent"]["eor"]["value"] > 0
    assert report["routers"]["base"]["all"]["eor"]["value"] < 1
    assert len(report["data"]) == 2
    assert png.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "4096"], "beyond the model's 128 tokens"),
        (["--plot", "x.png"], "give --routers"),
        (["--window", "20", "--routers", "absent.safetensors"], "no such routers file"),
        (["--device", "toaster"], "not a device"),
    ],
)
def test_command_refuses(
    gguf_path: Path, data_dir: Path, arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(eval_command, [str(gguf_path), "--data", str(data_dir), *arguments])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_a_window_of_one_token_is_wrong_usage(gguf_path: Path, data_dir: Path) -> None:
    arguments = [str(gguf_path), "--data", str(data_dir), "--window", "1"]
    result = CliRunner().invoke(eval_command, arguments)
    assert result.exit_code == 2
    assert "--window" in result.stderr
