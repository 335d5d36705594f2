#!/usr/bin/env python3
"""Hold the simulator against 1 to 4 real workers: the same requests, and both times of a token.

    python tools/remote_experiments/validate_simulator.py -o docs/results/remote-validation.json

Each layer keeps some experts on the main host, the rest is split among the workers. The simulator is told
where tokens are routed (recorded), how long the main host and a worker take for a row, and what a round
trip costs. Those come from other prompts than the ones that are judged: an engine with everything
resident gives the main host's times, and how much slower they are while another one computes beside it;
one worker with everything gives a row there, and the round trip is what makes the simulated time of that
one arm equal to the measured one. All other arms are predictions. Host and workers are simulated as what
they are here: processes that share one machine's processors.
Within 15 % is the target. The engine keeps what was planned: nothing is read because it has become hot.
That the same rows go to workers is counted, and has to be exact. Prompts have eight tokens, so that every
step goes to workers. Each prompt runs several times and counts by its best time, which other programs
have disturbed least. With `--seconds` a call ends after so long, and the same command goes on (its exit
code is 75).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.append(str(Path(__file__).resolve().parents[1]))
from pieces import Pieces, in_pieces
from remoe_edge.api import Engine
from remoe_edge.deploy.deploying import WorkerSizes
from remoe_edge.errors import RemoeError
from remoe_edge.files.models import shipped_model
from remoe_edge.native import _core
from remoe_edge.placement.latency_curve import by_processors, curve
from remoe_edge.placement.planner import Options, Placement, place
from remoe_edge.placement.price import load as load_prices
from remoe_edge.placement.request import Link, Request, Shape, Slo, Speed, Workload
from remoe_edge.predict.store import activation
from remoe_edge.routing.trace import read_trace
from remote_experiments.real import (
    Model,
    Timed,
    answer,
    interval,
    prompts_of,
    until_serving,
    workers,
)
from remote_experiments.setting import keep
from remote_experiments.simulate_placements import mask_of
from remote_experiments.simulator.memory import Placed
from remote_experiments.simulator.run import simulate
from remote_experiments.simulator.sharing import Sharing
from remote_experiments.simulator.world import Arrival, World

N_PROMPT = 8
TARGET = 0.15
Routed = npt.NDArray[np.int64]


class Known:
    """Hold what is known before anything is judged: prompts, routing, and the main host's times."""

    def __init__(self, model: Model, options: argparse.Namespace, pieces: Pieces) -> None:
        self.model, self.options = model, options
        found = pieces.get("resident", self._resident)
        self.prompts, ffn_ms = found["prompts"], found["ffn_ms"]
        self.routed: list[Routed] = [np.asarray(each, np.int64) for each in found["routed"]]
        tpot_ms = np.asarray(found["tpot_ms"])
        n = options.prompts
        self.judged, self.others = slice(0, n), slice(n, 2 * n)
        streamed = _core.StreamedModel.open(str(model.path))
        width = streamed.n_experts_used
        rows = model.n_layers * width
        tpot = float(tpot_ms[self.others].mean())
        row_ms = ffn_ms / rows
        file = _core.ModelFile.open(str(model.path))
        embed = file.unsigned(f"{file.architecture}.embedding_length") or 1
        self.request = Request(
            Shape(model.n_layers, model.n_experts, width, streamed.budget_for(1), file.dense_bytes,
                  8 * embed),
            Speed(max(0.0, tpot - ffn_ms), row_ms, 0.0, max(0.0, tpot - ffn_ms), row_ms),
            Link(0.0, 2e9), Slo(1e9, 1e9), Workload(N_PROMPT, options.tokens),
        )  # fmt: skip
        self.resident_tpot_ms = tpot
        busy_ms = pieces.get("two at once", self._two_at_once)
        alone_ms = ffn_ms * (N_PROMPT + options.tokens - 1)
        self.sharing = Sharing(len(os.sched_getaffinity(0)), max(1.0, busy_ms / alone_ms))
        self.shares = np.asarray(
            activation(np.concatenate(self.routed[self.others], 1), model.n_experts), np.float64
        )

    def _resident(self) -> dict[str, Any]:
        """Run all prompts with everything resident, recorded once and timed once."""
        options = self.options
        with self._engine("100%") as engine:
            prompts = prompts_of(engine, options.text, 2 * options.prompts, N_PROMPT)
            if len(prompts) < 2 * options.prompts:
                raise SystemExit(f"{options.text} has {len(prompts)} prompts, too few")
            answer(engine, prompts[0], options.tokens)
            timed: list[Timed] = []
            spent = np.full(len(prompts), np.inf)
            n_tokens = N_PROMPT + options.tokens - 1  # a prompt's rows count like as many tokens
            for number in range(options.rounds):
                for i, each in enumerate(prompts):
                    engine.reset()
                    before = engine.counts()["ffn_ns"]
                    found = answer(engine, each, options.tokens)
                    spent[i] = min(spent[i], engine.counts()["ffn_ns"] - before)
                    if not number:
                        timed.append(found)
                    elif found.tpot_ms < timed[i].tpot_ms:
                        timed[i] = found
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace"
            with self._engine("100%", trace=path) as engine:
                for each, said in zip(prompts, timed, strict=True):
                    engine.evaluate(each, every=True)
                    for token in said.tokens[:-1]:
                        engine.evaluate([token], reset=False)
            routed = split(path)
        return {
            "prompts": prompts, "routed": [each.tolist() for each in routed],
            "tpot_ms": [each.tpot_ms for each in timed],
            "ffn_ms": float(spent.mean()) / 1e6 / n_tokens,
        }  # fmt: skip

    def _two_at_once(self) -> float:
        """Give the main host's time for the experts of a prompt while another engine computes too."""
        options, spent = self.options, []
        over = threading.Event()
        with self._engine("100%") as engine, self._engine("100%") as other:
            prompts = self.prompts[self.others]
            for each in (engine, other):
                for prompt in self.prompts:  # what they use is resident then
                    each.reset()
                    answer(each, prompt, options.tokens)

            def compute() -> None:
                while not over.is_set():
                    other.evaluate(prompts[0])
                    for token in prompts[0] * 4:
                        other.evaluate([token], reset=False)

            beside = threading.Thread(target=compute)
            beside.start()
            try:
                for prompt in prompts * options.rounds:
                    engine.reset()
                    before = engine.counts()["ffn_ns"]
                    answer(engine, prompt, options.tokens)
                    spent.append((engine.counts()["ffn_ns"] - before) / 1e6)
            finally:
                over.set()
                beside.join()
        return float(np.mean(np.reshape(spent, (options.rounds, -1)).min(0)))

    def _engine(self, cache: str, **settings: Any) -> Engine:
        return Engine(
            self.model.path, cache=cache, n_ctx=512, threads=self.options.threads, prefetch="off",
            **settings,
        )  # fmt: skip

    def placement(self, n_local: int, n_workers: int) -> Placement:
        """Keep so many experts of each layer local, and split the rest among workers."""
        table = load_prices("lifetime")
        remote = self.model.n_experts - n_local
        made = curve(by_processors("worker", table.function, 1.0), stepwise=True)
        options = Options(-(-remote // n_workers), n_local=n_local)
        return place(self.request, table, made, self.shares, options)

    def measured(self, placement: Placement, n_workers: int) -> dict[str, Any]:
        """Run the judged prompts with real workers; the first pass fills the cache."""
        parts: list[list[int]] = [[] for _ in range(n_workers)]
        n_experts, seen = self.model.n_experts, dict[int, int]()
        for each in placement.functions:
            at = seen.get(each.group.layer, 0)
            seen[each.group.layer] = at + 1
            parts[at] += [each.group.layer * n_experts + expert for expert in each.group.experts]
        cache = WorkerSizes(self.model.path).main_cache_bytes(sum(map(len, placement.local)))
        chosen = slice(0, 2 * self.options.prompts)
        with (
            workers(self.model, parts) as running,
            keeping_to_the_plan(),
            self._engine(
                str(cache), peers=[each.address for each in running], hedge=False
            ) as engine,
        ):
            until_serving(engine, n_workers)
            for each in self.prompts[chosen]:
                engine.reset()
                answer(engine, each, self.options.tokens)
            before, misses = engine.stats().remote or {}, engine.counts()["misses"]
            tpot = np.full(2 * self.options.prompts, np.inf)
            for _ in range(self.options.rounds):
                for i, each in enumerate(self.prompts[chosen]):
                    engine.reset()
                    tpot[i] = min(tpot[i], answer(engine, each, self.options.tokens).tpot_ms)
            after = engine.stats().remote or {}
            rows = after["remote_rows"] - before["remote_rows"]
            spent = after["remote_compute_us"] - before["remote_compute_us"]
            return {
                "tpot_ms": tpot.tolist(),
                "worker_row_ms": spent / rows / 1000 if rows else 0.0,
                "rows": rows,
                "rows_a_round": rows / self.options.rounds,
                "read": engine.counts()["misses"] - misses,
            }

    def simulated(self, placement: Placement, row_ms: float, round_trip_ms: float) -> list[float]:
        """Simulate all prompts, each alone on a warm host with warm functions."""
        mask = mask_of(placement)
        world = World(
            placement, lambda: Placed(mask), row_ms=(row_ms,) * len(placement.functions),
            round_trip_ms=round_trip_ms, always_on=True, sharing=self.sharing,
        )  # fmt: skip
        asked = [Arrival(i * 1e7, routed, N_PROMPT) for i, routed in enumerate(self.routed)]
        served = sorted(simulate(world, asked).served, key=lambda each: each.at_ms)
        return [each.tpot_ms for each in served]

    def planned_rows(self, placement: Placement) -> int:
        """Count the rows of all prompts that a placement sends to workers."""
        mask = mask_of(placement)
        return sum(
            int((~mask[layer][experts]).sum())
            for routed in self.routed
            for layer, experts in enumerate(routed)
        )

    def fitted_round_trip(self, placement: Placement, row_ms: float, tpot_ms: float) -> float:
        """Find the round trip with which the simulated mean of the other prompts is the measured one."""
        low, high = 0.0, 20.0
        for _ in range(40):
            middle = (low + high) / 2
            if np.mean(self.simulated(placement, row_ms, middle)[self.others]) < tpot_ms:
                low = middle
            else:
                high = middle
        return (low + high) / 2


@contextlib.contextmanager
def keeping_to_the_plan() -> Iterator[None]:
    """Let engines read no expert that a worker has, however hot it becomes."""
    connect = _core.connect_peers
    _core.connect_peers = partial(connect, move_bytes_per_s=0)  # type: ignore[misc]
    try:
        yield
    finally:
        _core.connect_peers = connect  # type: ignore[misc]


def split(path: Path) -> list[Routed]:
    """Cut a recording of prompts and their answers into one routing for each, [layer, token, k]."""
    trace = read_trace(path)
    steps, first = np.unique(trace.step, return_index=True)
    decode = trace.phase[first].astype(bool)
    sizes = trace.n_tokens[first].astype(int)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    begins = [int(starts[i]) for i in range(len(steps)) if not decode[i]]
    whole = np.asarray(trace.routed(), np.int64)
    return [
        whole[:, begin:end]
        for begin, end in zip(begins, [*begins[1:], whole.shape[1]], strict=True)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure and predict every arm."""
    parser = argparse.ArgumentParser(prog="validate_simulator.py", description="Validate it.")
    parser.add_argument("model", type=Path, nargs="?", default=shipped_model())
    parser.add_argument("--text", type=Path, default=Path(__file__).with_name("prompts.txt"))
    parser.add_argument("--prompts", type=int, default=8, help="judged; as many others calibrate")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="each prompt counts by its best")
    parser.add_argument("--workers", default="1,2,3,4")
    parser.add_argument("--local", default="0,0.25,0.5,0.75", help="shares of a layer's experts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="end after so long; the next call goes on")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(arguments)
    model = Model(options.model)
    settings = {
        "model": options.model.name, "prompts": options.prompts, "tokens": options.tokens,
        "rounds": options.rounds, "threads": options.threads,
    }  # fmt: skip
    try:
        with in_pieces(options.out, settings, options.seconds) as pieces:
            found = {**settings, **validated(Known(model, options, pieces), pieces)}
            print(f"{found['within_target']} of {found['judged']} arms within {TARGET:.0%}")
            keep(found, options.out)
    except RemoeError as error:
        raise SystemExit(str(error)) from error
    return 0


def validated(known: Known, pieces: Pieces) -> dict[str, Any]:
    """Measure and predict every arm."""
    model, options = known.model, known.options
    row_ms, trip_ms, rows = None, 0.0, []
    for n_workers in (int(each) for each in options.workers.split(",")):
        for share in (float(each) for each in options.local.split(",")):
            n_local = round(share * model.n_experts)
            placement = known.placement(n_local, n_workers)
            real = pieces.get(
                f"{n_workers} workers, {n_local} local",
                partial(known.measured, placement, n_workers),
            )
            if row_ms is None:
                row_ms = real["worker_row_ms"]
                others = float(np.mean(real["tpot_ms"][known.others]))
                trip_ms = known.fitted_round_trip(placement, row_ms, others)
            sim = known.simulated(placement, row_ms, trip_ms)[known.judged]
            mine = real["tpot_ms"][known.judged]
            error = float(np.mean(sim) / np.mean(mine) - 1)
            rows.append(
                {
                    "workers": n_workers, "n_local": n_local, "calibrates": not rows,
                    "measured_tpot_ms": interval(mine), "simulated_tpot_ms": interval(sim),
                    "error": error, "within": abs(error) <= TARGET,
                    "worker_row_ms": real["worker_row_ms"],
                    "rows_a_round": real["rows_a_round"],
                    "planned_rows": known.planned_rows(placement),
                    "read_from_storage": real["read"],
                }
            )  # fmt: skip
            print(f"{n_workers} workers, {n_local} of {model.n_experts} local: measured "
                  f"{np.mean(mine):.2f} ms a token, simulated {np.mean(sim):.2f}: {error:+.1%}",
                  flush=True)  # fmt: skip
    judged = [row for row in rows if not row["calibrates"]]
    return {
        "resident_tpot_ms": known.resident_tpot_ms, "speed": vars(known.request.speed),
        "row_ms": row_ms, "round_trip_ms": trip_ms, "sharing": vars(known.sharing),
        "target": TARGET, "rows": rows,
        "within_target": sum(row["within"] for row in judged), "judged": len(judged),
        "worst_error": max((abs(row["error"]) for row in judged), default=None),
        "disturbed": pieces.disturbed(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
