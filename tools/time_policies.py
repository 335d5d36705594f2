"""Measure what the eviction policies cost per event, in microseconds of CPU.

    python tools/time_policies.py [--layers 48 --experts 128 --top-k 8 --slots 1500 --steps 600]

An event is one layer of one step. Routing is synthetic, with the locality of real routers; the
replay is the engine's own code, so that a figure is what the engine pays, trace decoding included.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from remoe_edge.native import _core
from remoe_edge.profile.pack import pack
from remoe_edge.routing.trace import Trace, from_routed


def synthetic(layers: int, experts: int, top_k: int, steps: int, seed: int = 0) -> Trace:
    """Make a trace in which about half of a layer's experts stay from step to step."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((layers, experts)).astype(np.float32)
    routed = np.empty((layers, steps, top_k), np.int16)
    probs = np.empty((steps, layers, experts), np.uint8)
    for step in range(steps):
        scores = 0.9 * scores + 0.44 * rng.standard_normal(scores.shape).astype(np.float32)
        routed[:, step] = np.argsort(-scores, axis=1)[:, :top_k]
        powers = np.exp(2 * scores)
        probs[step] = _core.to_prob8(powers / powers.sum(axis=1, keepdims=True))
    trace = from_routed(routed, experts)
    trace.data = probs.reshape(-1)
    trace.probs_at = np.arange(0, probs.size, experts, dtype=np.int64)
    trace.n_prob_tokens = np.ones(trace.n_events, np.uint16)
    return trace


def profile(layers: int, experts: int, links: bool) -> bytes:
    """Make a profile in which every column weighs something, so that all are computed."""
    names = _core.feature_names()
    weights = np.full(len(names), 0.01, np.float32)
    tables = layers * 5 if links else 0
    rng = np.random.default_rng(1)
    values = rng.integers(-9, 9, tables * experts * experts).astype(np.int8)
    held = np.full(tables, 0.01, np.float32), values
    return pack([1], weights, held, n_layers=layers, n_experts=experts)


def main() -> None:
    """Print a line per policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("layers", 48), ("experts", 128), ("top-k", 8), ("slots", 1500), ("steps", 600), ("rounds", 5),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    trace = synthetic(options.layers, options.experts, options.top_k, options.steps)
    columns = trace.columns()
    bare = {**columns, "data": None}
    fitted = {
        "reuse-biased, every column": profile(options.layers, options.experts, False),
        "reuse-biased, every column and links": profile(options.layers, options.experts, True),
    }
    cases = [(name, name, None, bare) for name in _core.live_policy_names()]
    cases += [(label, "reuse-biased", data, columns) for label, data in fitted.items()]
    for label, policy, data, log in cases:
        taken = []
        for _ in range(options.rounds):
            start = time.process_time()
            _core.simulate(
                log, options.layers, options.experts, options.slots, policy, 0, data
            )  # fmt: skip
            taken.append((time.process_time() - start) / trace.n_events * 1e6)
        print(f"{label:40s} {np.median(taken):6.2f} µs of CPU an event (least {min(taken):.2f})")


if __name__ == "__main__":
    main()
