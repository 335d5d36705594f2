"""Run many tuning settings on one loaded model and measure each on held-out text.

    python tools/tune_sweep.py MODEL SPEC.json --train DIR --heldout DIR --out DIR

SPEC.json holds {"common": {setting: value}, "runs": {name: {setting: value}}}, settings as in
remoe_edge/tune/settings.py. Each run writes NAME.safetensors, NAME.json and NAME.checkpoint; all
figures go to figures.json, misses against perplexity to pareto.png. Killed and started again it goes
on where it was. A run named `A*S` trains nothing: it measures the routers base + S (A - base).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from remoe_edge.tune.data import Domain, load_domains
from remoe_edge.tune.decoder import Decoder
from remoe_edge.tune.measure import DomainMeasure, measure_domain, summarise
from remoe_edge.tune.plots import draw_pareto
from remoe_edge.tune.record import base_fingerprint, load_routers, save_routers, write_whole
from remoe_edge.tune.settings import Settings
from remoe_edge.tune.trainer import Trainer
from remoe_edge.tune.weights import open_weights


def main() -> None:
    """Parse the arguments and run what is not yet done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--heldout", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--train-tokens", type=int, default=500_000, help="read of each domain")
    parser.add_argument("--heldout-tokens", type=int, default=8_193, help="read of each domain")
    parser.add_argument("--eval-window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    Sweep(arguments).run(json.loads(arguments.spec.read_text()))


class Sweep:
    """One loaded model, its data, and the figures so far."""

    def __init__(self, a: argparse.Namespace) -> None:
        device = torch.device(a.device)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.decoder = Decoder(open_weights(a.model), device, dtype)
        vocab = self.decoder.n_vocab
        self.model, self.out, self.window = a.model, a.out, a.eval_window
        self.train = load_domains(a.train, a.model, 512, vocab, a.train_tokens)
        self.heldout = load_domains(a.heldout, a.model, a.eval_window, vocab, a.heldout_tokens)
        self.out.mkdir(parents=True, exist_ok=True)
        self.file = self.out / "figures.json"
        self.figures: dict[str, Any] = (
            json.loads(self.file.read_text()) if self.file.exists() else {}
        )
        self.base = self._measure(self.decoder.routers)
        self.figures["base"] = summarise(self.base)

    def run(self, spec: dict[str, Any]) -> None:
        """Train and measure every run of the spec that has no figures yet."""
        for name, values in spec["runs"].items():
            if name in self.figures:
                continue
            start = time.monotonic()
            routers, record = self._routers(name, {**spec.get("common", {}), **values})
            trained = time.monotonic()
            summary = summarise(self._measure(routers), self.base)
            self.figures[name] = {"settings": record, "domains": summary}
            write_whole(self.file, json.dumps(self.figures, indent=1).encode())
            self._tell(name, summary, trained - start, time.monotonic() - trained)
        runs = {n: f["domains"] for n, f in self.figures.items() if n != "base"}
        draw_pareto(runs, self.out / "pareto.png")

    def _routers(self, name: str, values: dict[str, Any]) -> tuple[list[torch.Tensor], Any]:
        shape = self.decoder.shape
        if "*" in name:
            source, scale = name.split("*")
            tuned = load_routers(self.out / f"{source}.safetensors", shape)
            base = [router.cpu() for router in self.decoder.routers]
            return [b + float(scale) * (t - b) for b, t in zip(base, tuned, strict=True)], name
        trainer = Trainer(self.decoder, self.train, Settings(**values))
        state = self.out / f"{name}.checkpoint"
        if state.exists():
            trainer.resume(state)

        def on_step(report: dict[str, float]) -> None:
            if report["step"] % 10 == 0:
                terms = " ".join(f"{k}={v:.4f}" for k, v in report.items() if k != "step")
                print(f"{name} {report['step']:.0f} {terms}", file=sys.stderr, flush=True)

        trainer.run(on_step, state, 20)
        record = trainer.run_record()
        write_whole(self.out / f"{name}.json", json.dumps(record, indent=1).encode())
        brief = {key: value for key, value in record.items() if key != "history"}
        routers = trainer.averaged
        path = self.out / f"{name}.safetensors"
        save_routers(path, routers, shape, base_fingerprint(self.model), brief)
        return routers, trainer.settings.as_dict()

    def _measure(self, routers: list[torch.Tensor]) -> dict[str, DomainMeasure]:
        def one(domain: Domain) -> DomainMeasure:
            return measure_domain(self.decoder, routers, domain, self.window)

        return {domain.name: one(domain) for domain in self.heldout}

    @staticmethod
    def _tell(name: str, summary: dict[str, Any], train_s: float, measure_s: float) -> None:
        whole = summary.get("all") or next(iter(summary.values()))
        change = whole["change_percent"]
        domains = {d: s["change_percent"]["perplexity"]["value"] for d, s in summary.items()}
        worst = max(domains, key=lambda d: domains[d])
        missed = {k: v["value"] for k, v in change["misses_per_token"].items() if "lru" in k}
        print(
            f"{name}: EOR {whole['eor']['value']:.3f} ({change['eor']['value']:+.1f} %), "
            f"perplexity {change['perplexity']['value']:+.2f} % "
            f"(worst {worst} {domains[worst]:+.2f}), "
            + ", ".join(f"{k} {v:+.1f} %" for k, v in missed.items())
            + f"; {train_s:.0f} s + {measure_s:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
