#!/usr/bin/env python3
"""Compare one cache pool for all layers with a pool for each, on traces, by replay.

    python tools/compare_pools.py TRACE [...] --policy lru,reuse-biased --steps 4000:4768 -o x.json

What `remoe-edge plan --trace` does, without a model or a machine: a miss costs 1 and computing
nothing, so that every number is in misses per token. Slots are shared out on the first half of the
counted tokens and judged on the second.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from remoe_edge.cli.results import write_json
from remoe_edge.errors import InputError, RemoeError
from remoe_edge.machine.storage import ProbePoint
from remoe_edge.plan.compute import ComputeModel
from remoe_edge.plan.latency import Machine
from remoe_edge.plan.layers import compare_pools
from remoe_edge.plan.misses import prepare
from remoe_edge.plan.reads import ReadModel
from remoe_edge.plan.sizes import LayerSizes, ModelSizes
from remoe_edge.routing.simulate import parse_cache, parse_policies
from remoe_edge.routing.trace import Trace, read_trace
from typed_command import typed_command

_EXPERT_BYTES = 1 << 20


def machine_that_counts(trace: Trace) -> Machine:
    """Make a machine whose milliseconds are misses."""
    layer = LayerSizes(trace.n_experts, _EXPERT_BYTES, 1, _EXPERT_BYTES)
    sizes = ModelSizes(
        trace.path, trace.fingerprint, trace.top_k, (layer,) * trace.n_layers, 0, 0,
        price=lambda n_slots: n_slots * _EXPERT_BYTES,
    )  # fmt: skip
    nothing = dict.fromkeys(ComputeModel.__dataclass_fields__, 0)
    points = (ProbePoint(_EXPERT_BYTES, 1, 1000, 1.0),)
    return Machine(sizes, ComputeModel(**nothing), ReadModel(points, 1))


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Replay every trace under every policy at every size."""
    rows = []
    for path in options.traces:
        whole = read_trace(path)
        if options.steps:
            begin, _, end = options.steps.partition(":")
            whole = whole.tokens(int(begin), int(end))
        trace = prepare(whole, whole.n_layers, whole.n_experts, whole.top_k, "")
        machine = machine_that_counts(trace)
        total = trace.n_layers * trace.n_experts
        for policy in parse_policies(options.policy):
            for text in options.cache.split(","):
                found = compare_pools(machine, trace, policy, parse_cache(text.strip(), total))
                if found is None:
                    raise InputError(f"--cache {text}: fewer than top-k slots a layer, or all fit")
                row = {
                    "trace": path.name,
                    "policy": policy,
                    "cache": text.strip(),
                    "slots": found.n_slots,
                    "misses_per_token": {each.name: each.misses for each in found.outcomes},
                    "winner": found.winner,
                    "slots_by_layer": {each.name: each.slots for each in found.outcomes},
                    "fit_relative_error": found.fit_relative,
                }
                rows.append(row)
                told = ", ".join(f"{name} {n:.2f}" for name, n in row["misses_per_token"].items())
                print(f"{path.name} {policy} {text}: {told}", flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; errors become one line on stderr."""
    parser = argparse.ArgumentParser(prog="compare_pools.py", description="One pool or many.")
    parser.add_argument("traces", type=Path, nargs="+", metavar="TRACE")
    parser.add_argument("--policy", default="lru,reuse-biased")
    parser.add_argument("--cache", default="10%,25%,50%")
    parser.add_argument("--steps", metavar="FROM:TO")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(arguments)
    try:
        rows = compare(options)
    except (RemoeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.out:
        write_json({"command": typed_command(), "rows": rows}, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
