#!/usr/bin/env python3
"""Remoe against others with real workers, small: cost, times and cold starts of one machine's processes.

    python tools/remote_experiments/compare_real.py MODEL.gguf TEXT.txt ... -o docs/results/x.json

Arms: everything loaded before the first token (MIX; without a GPU it is all-CPU too, and
all-resident), everything local but read on demand, streaming from storage with Remoe's memory and no
functions (fetch), and functions placed by similar prompts (Remoe), by frequency, at random, evenly, and
by an oracle that knows the judged prompts. Functions are worker processes; a start takes `--start` more
seconds, as a container's would. Each arm answers the same prompts in each round, all arms in turn. Every
answer has to be the one of the first arm: where experts are changes no bit.

With `--bits-per-s` (as root) two network namespaces stand for hosts: the engine runs on one, all workers
on the other, with a line of that rate and `--delay-us` each way between them, encrypted.

A cold start is the time from making the engine to its first token, where nothing is loaded, the page
cache is empty (as root), and no function runs. After the first prompt functions are waited for (not with
`--no-wait`), so that the other prompts show warm times. Costs are metered by every price table that
comes along, with and without the fee for each call, and all waiting is billed; intervals draw prompts,
and rounds, again. With `--seconds` a call ends after so long, and the same command goes on (its exit
code is 75).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.append(str(Path(__file__).resolve().parents[1]))
from pieces import Pieces, in_pieces
from remoe_edge.api import past_file
from remoe_edge.deploy.deploying import WorkerSizes
from remoe_edge.deploy.leases import Leases
from remoe_edge.deploy.metering import Metering
from remoe_edge.deploy.packing import Function, pack
from remoe_edge.deploy.record import Deployment, Ray
from remoe_edge.engine import engine as core
from remoe_edge.engine.settings import EngineSettings
from remoe_edge.errors import RemoeError
from remoe_edge.machine.disk import drop_page_cache
from remoe_edge.native import _core
from remoe_edge.placement.activation import Floats, even
from remoe_edge.placement.latency_curve import by_processors, curve
from remoe_edge.placement.planner import Options, Placement, place
from remoe_edge.placement.price import PriceTable
from remoe_edge.placement.price import load as load_prices
from remoe_edge.placement.request import Link, Request, Shape, Slo, Speed, Workload
from remoe_edge.predict.past_prompts import PastPrompts
from remote_experiments.network.two_hosts import NoNetwork
from remote_experiments.real import (
    Elsewhere,
    LocalFunctions,
    Model,
    Timed,
    answer,
    interval,
    on_two_hosts,
    prompts_of,
    until_serving,
)
from remote_experiments.setting import keep

Shares = npt.NDArray[np.floating]
PRICES = ("paper", "per-call", "lifetime")
# Settings that do not change what is measured, or not the pieces there are.
NOT_SETTINGS = ("model", "texts", "out", "arms", "rounds", "slo", "seconds")


@dataclass(frozen=True)
class Arm:
    """Hold one way of running: how many experts of a layer are local, and the functions of the rest.

    cache_bytes: None loads everything before anything is answered.
    """

    name: str
    cache_bytes: int | None
    placement: Placement | None = None
    functions: tuple[Function, ...] = ()
    past: Path | None = None


class Bench:
    """Hold the prompts, the prices and the arms."""

    def __init__(self, options: argparse.Namespace, pieces: Pieces) -> None:
        self.options, self.model = options, Model(options.model)
        self.elsewhere = Elsewhere.of_environment()
        self.table = load_prices(options.price)
        self.past_path = pieces.folder / "past"
        self.sizes = WorkerSizes(options.model)
        self.past, self.judged = pieces.get("prompts", self._prompts)
        known = pieces.get("shares", self._shares)
        self.frequency, self.truth, self.predicted = (np.asarray(each) for each in known)

    def _prompts(self) -> tuple[list[list[int]], list[list[int]]]:
        n_past, n_judged, length = (
            self.options.past, self.options.judged, self.options.prompt,
        )  # fmt: skip
        past: list[list[int]] = []
        judged: list[list[int]] = []
        with self._engine("100%") as engine:
            for path in self.options.texts:
                found = prompts_of(engine, path, 4 * (n_past + n_judged), length)
                past += found[:n_past]
                judged += found[-n_judged:]  # from later in the text
        return past, judged

    def _shares(self) -> list[Any]:
        """Learn from past prompts what experts are used, and what the judged ones use in truth.

        Gives the shares by frequency, in truth, and as predicted by similar prompts.
        """
        options = self.options
        self.past_path.unlink(missing_ok=True)
        with (
            self._engine("100%") as engine,
            self._engine(
                "100%", past_prompts=past_file(self.past_path, EngineSettings())
            ) as learning,
        ):
            frequency = _used(engine, self.past, options.tokens)
            truth = _used(engine, self.judged, options.tokens)
            for each in self.past:
                answer(learning, each, options.tokens)
        memory = PastPrompts(self.past_path, options.model, *frequency.shape)
        predicted = [memory.shares(each) for each in self.judged]
        known = [each for each in predicted if each is not None]
        return [each.tolist() for each in (frequency, truth, np.mean(known, axis=0))]

    def _engine(self, cache: str, **settings: Any) -> core.Engine:
        given = {"n_ctx": 512, "threads": self.options.threads, "prefetch": "off", **settings}
        if self.elsewhere is not None and "functions" in settings:
            given["peer_keys"] = self.elsewhere.client_keys
        return core.Engine(self.options.model, cache=cache, **given)

    def request(self) -> Request:
        """Put the model into the terms of a placement; speeds matter only for how memory is chosen."""
        model, file = self.sizes, _core.ModelFile.open(str(self.options.model))
        embed = file.unsigned(f"{file.architecture}.embedding_length") or 1
        shape = Shape(
            self.model.n_layers, self.model.n_experts, self.top_k,
            model.experts_bytes(2) - model.experts_bytes(1), file.dense_bytes, 8 * embed,
        )  # fmt: skip
        work = Workload(self.options.prompt, self.options.tokens)
        return Request(shape, Speed(1.0, 0.02, 1.0, 0.5, 0.02), Link(0.1, 1e9), Slo(1e9, 1e9), work)

    @property
    def top_k(self) -> int:
        """Give the experts that a token uses in a layer."""
        return int(_core.StreamedModel.open(str(self.options.model)).n_experts_used)

    def arms(self) -> list[Arm]:
        """Make the arms."""
        n_experts, n_layers = self.model.n_experts, self.model.n_layers
        n_local = round(self.options.local * n_experts)
        everything = self.sizes.main_cache_bytes(n_experts * n_layers)
        some = self.sizes.main_cache_bytes(n_local * n_layers)
        rng = np.random.default_rng(self.options.seed)
        random = rng.random(self.frequency.shape)
        made = curve(by_processors("worker", self.table.function, 0.02), stepwise=True)

        def placed(name: str, shares: Shares, past: Path | None = None) -> Arm:
            placement = place(self.request(), self.table, made, shares, Options(n_local=n_local))
            functions = pack(placement, self.options.functions, self.sizes.process_bytes)
            return Arm(name, some, placement, tuple(functions), past)

        return [
            Arm("all resident, loaded first (MIX)", None),
            Arm("everything local", everything),
            Arm("fetch from storage", some),
            placed("remoe (similar prompts)", self.predicted, self.past_path),
            placed("frequency", self.frequency),
            placed("random", random / random.sum(1, keepdims=True)),
            placed("even", even(n_layers, n_experts)),
            placed("oracle", self.truth),
        ]

    def run(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Start an arm from nothing and answer all prompts."""
        with tempfile.TemporaryDirectory() as folder:
            return self._run(arm, seed, Path(folder))

    def _run(self, arm: Arm, seed: int, scratch: Path) -> dict[str, Any]:
        options = self.options
        meters = [Metering(table) for table in tables()]
        leases = None
        drop_page_cache([options.model])
        if arm.placement is not None:
            deployed = Deployment(
                "local", str(options.model), "", Ray(""), arm.functions, arm.placement, options.threads
            )  # fmt: skip
            holder = LocalFunctions(
                self.model,
                arm.functions,
                start_s=options.start,
                sigma=options.sigma,
                seed=seed,
                elsewhere=self.elsewhere,
            )
            leases = Leases(deployed, holder, keep_s=1e9)
        begin = time.monotonic()
        more: dict[str, Any] = {}
        if arm.past is not None:
            # A copy: no round may learn from another what the judged prompts use.
            past = Path(shutil.copy(arm.past, scratch))
            more["past_prompts"] = past_file(past, EngineSettings())
        if leases is not None:
            more["functions"] = leases
        if arm.cache_bytes is None:
            more["stream"] = False
        cold_ms, cold, timed = 0.0, Timed(0.0), list[Timed]()
        with self._engine(
            "100%" if arm.cache_bytes is None else str(arm.cache_bytes), **more
        ) as engine:
            for meter in meters:
                engine.add_observer(meter)
                meter.watch(engine)
            for i, prompt in enumerate(self.judged):
                engine.reset()
                before = time.monotonic()
                each = answer(engine, prompt, options.tokens)
                if i:
                    timed.append(each)
                else:
                    cold_ms, cold = 1000 * (before - begin) + each.ttft_ms, each
                    if leases is not None and options.wait:
                        self._wait_for(engine, leases)
                if options.pause:
                    time.sleep(options.pause)
            found = [meter.read() for meter in meters]
            stats = engine.stats()
        told = (stats.remote or {}).get("functions", [])
        return {
            "cold_start_ms": cold_ms,
            "ttft_ms": [each.ttft_ms for each in timed],
            "tpot_ms": [each.tpot_ms for each in timed],
            "cold_tpot_ms": cold.tpot_ms,
            "tokens": [each.tokens for each in (cold, *timed)],
            "functions_ready": sum(each["leases"] for each in told),
            "functions_woken": sum(each["leases"] + each["starting"] > 0 for each in told),
            "remote_rows": sum(each["rows"] for each in told),
            "bills": {each.table.name: each.bill.total / each.answers for each in found if each},
            "gb_s": {each.table.name: each.as_dict()["gb_s"] for each in found if each},
        }

    @staticmethod
    def _wait_for(engine: core.Engine, leases: Leases) -> None:
        """Wait until all that was woken is leased, and proven."""
        end = time.monotonic() + 600
        while not leases.ready() and time.monotonic() < end:
            time.sleep(0.02)
        peers = (engine.stats().remote or {}).get("peers", [])
        until_serving(engine, len(peers))


def tables() -> list[PriceTable]:
    """Give the prices that come along, with the fee for each call and without."""
    loaded = [load_prices(name) for name in PRICES]
    return [*loaded, *(each.without_fee() for each in loaded if each.function.request)]


def _used(engine: core.Engine, prompts: list[list[int]], n_tokens: int) -> Floats:
    """Count which experts prompts and their answers use, in shares of each layer."""
    native = engine.native
    assert native is not None
    before = native.choices().astype(np.int64)
    for each in prompts:
        engine.reset()
        answer(engine, each, n_tokens)
    counts = (native.choices() - before).reshape(native.n_layers, native.n_experts)
    return np.asarray(counts / counts.sum(1, keepdims=True), np.float64)


def summed(runs: list[dict[str, Any]], slo: tuple[float, float], seed: int) -> dict[str, Any]:
    """Put an arm's rounds together."""
    ttft = [each for run in runs for each in run["ttft_ms"]]
    tpot = [each for run in runs for each in run["tpot_ms"]]
    late = [t > slo[0] or f > slo[1] for t, f in zip(tpot, ttft, strict=True)]
    return {
        "cold_start_ms": interval([run["cold_start_ms"] for run in runs], seed=seed),
        "cold_tpot_ms": interval([run["cold_tpot_ms"] for run in runs], seed=seed),
        "ttft_ms": interval(ttft, seed=seed),
        "tpot_ms": interval(tpot, seed=seed),
        "slo_missed": float(np.mean(late)),
        "cost_an_answer": {
            name: interval([run["bills"][name] for run in runs], seed=seed)
            for name in runs[0]["bills"]
        },
        **{name: [run[name] for run in runs]
           for name in ("functions_ready", "functions_woken", "remote_rows", "gb_s")},
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run all arms in turn."""
    parser = argparse.ArgumentParser(prog="compare_real.py", description="Compare placements.")
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT.txt")
    parser.add_argument("--price", default="lifetime")
    parser.add_argument("--prompt", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--past", type=int, default=12, help="past prompts of each text")
    parser.add_argument("--judged", type=int, default=4, help="judged prompts of each text")
    parser.add_argument("--local", type=float, default=0.25, help="share of experts kept local")
    parser.add_argument("--functions", type=int, default=3)
    parser.add_argument("--start", type=float, default=2.0, help="seconds that a start takes more")
    parser.add_argument("--sigma", type=float, default=0.3)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between prompts")
    parser.add_argument(
        "--slo", type=float, nargs=2, default=(250.0, 3000.0), metavar=("TPOT", "TTFT")
    )
    parser.add_argument("--wait", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--bits-per-s", type=float, help="of a line to another host, as root")
    parser.add_argument("--delay-us", type=int, default=200, help="of that line, each way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", help="parts of the names of those to run, with commas between")
    parser.add_argument("--seconds", type=float, help="end after so long; the next call goes on")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.bits_per_s is not None and Elsewhere.of_environment() is None:
            given = sys.argv[1:] if arguments is None else arguments
            return on_two_hosts(
                [__file__, *given], delay_us=options.delay_us, bits_per_s=options.bits_per_s
            )
        settings = {
            name: value for name, value in vars(options).items() if name not in NOT_SETTINGS
        }
        told = {"model": options.model.name, "texts": [path.name for path in options.texts]}
        with in_pieces(options.out, {**told, **settings}, options.seconds) as pieces:
            found = compared(Bench(options, pieces), pieces)
            keep({**told, "settings": settings, "slo": options.slo, **found}, options.out)
    except (RemoeError, NoNetwork) as error:
        raise SystemExit(str(error)) from error
    return 1 if found["answers_differ"] else 0


def compared(bench: Bench, pieces: Pieces) -> dict[str, Any]:
    """Run all arms in turn, in as many rounds; put them together and print them."""
    options = bench.options
    arms = [
        arm for arm in bench.arms()
        if options.arms is None or any(part in arm.name for part in options.arms.split(","))
    ]  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    tokens, differ = None, []
    for number in range(options.rounds):
        for arm in arms:
            found = pieces.get(
                f"round {number + 1}, {arm.name}",
                lambda arm=arm, seed=options.seed + number: bench.run(arm, seed),
            )
            tokens = found["tokens"] if tokens is None else tokens
            if found["tokens"] != tokens:
                differ.append(arm.name)
            runs[arm.name].append(found)
            print(f"round {number + 1}, {arm.name}: cold {found['cold_start_ms']:.0f} ms, TPOT "
                  f"{np.mean(found['tpot_ms']):.2f} ms, {found['remote_rows']} rows remote",
                  flush=True)  # fmt: skip
    rows = {name: summed(each, tuple(options.slo), options.seed) for name, each in runs.items()}
    for name, row in rows.items():
        costs = ", ".join(f"{each['mean']:.4g}" for each in row["cost_an_answer"].values())
        print(f"{name}: cold {row['cold_start_ms']['mean']:.0f} ms, TTFT {row['ttft_ms']['mean']:.0f}, "
              f"TPOT {row['tpot_ms']['mean']:.2f}, an answer costs {costs}")  # fmt: skip
    return {"judged": len(bench.judged), "answers_differ": differ, "arms": rows,
            "disturbed": pieces.disturbed()}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
