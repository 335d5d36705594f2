"""What an arm's runs would have cost by a price table: `bench --price`.

The main host's memory is what the arm's process took at most, its time that of all prompts and tokens.
Workers that an arm asks are as large as the experts they hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from remoe_edge.placement.metered import FunctionUse, MainUse, Metered, metered
from remoe_edge.placement.price import PriceTable


def of_run(table: PriceTable, run: dict[str, Any]) -> Metered:
    """Bill one run of an arm."""
    prompts = run["prompts"]
    busy_ms = sum(each["ttft_ms"] + sum(each["tokens"]["token_ms"]) for each in prompts)
    life_ms = run["load_ms"] + busy_ms
    main = MainUse(run["peak_bytes"] or 0, 0.0, busy_ms, life_ms, run["load_ms"], len(prompts))
    expert_bytes = run["about"]["cache"].get("expert_bytes", 0) if "cache" in run["about"] else 0
    functions = {
        each["address"]: FunctionUse(
            each["experts"] * expert_bytes, life_ms, calls=each["remote_asked"],
            compute_ms=each["remote_compute_us"] / 1000,
            egress_bytes=each["remote_received_bytes"],
        )
        for each in (run.get("remote") or {}).get("peers", ())
    }  # fmt: skip
    return metered(table, main, functions)


def add_costs(record: dict[str, Any], table: PriceTable) -> None:
    """Put each arm's median cost of an answer into a record's summary, and each run's bill."""
    record["prices"] = table.as_dict()
    for arm, figures in record["summary"].items():
        costs = []
        for run in record["runs"]:
            if run["arm"] == arm:
                run["metered"] = of_run(table, run).as_dict()
                costs.append(run["metered"]["cost_an_answer"])
        figures["cost_an_answer"] = float(np.median(costs))
