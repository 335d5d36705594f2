"""The record of a bench as one row for each token."""

from __future__ import annotations

import csv
import io
from typing import Any

from remoe_edge.engine.counters import PER_TOKEN

COLUMNS = (
    "arm", "round", "prompt", "token", "timed", "chosen", "token_ms", PER_TOKEN[0], "compute_ms",
    *PER_TOKEN[1:], "storage_bytes", "major_faults", "memory_bytes",
)  # fmt: skip


def tokens_csv(record: dict[str, Any]) -> str:
    """Write all tokens of all runs; what an arm does not have is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    warm = record["settings"]["warm"]
    for run in record["runs"]:
        for prompt in run["prompts"]:
            tokens = prompt["tokens"]
            for i, token_ms in enumerate(tokens["token_ms"]):
                row = {name: tokens[name][i] for name in COLUMNS if name in tokens}
                row.update(
                    {
                        "arm": run["arm"],
                        "round": run["round"],
                        "prompt": prompt["name"],
                        "token": i,
                        "timed": int(i >= warm),
                        "chosen": prompt["chosen"][i + 1],
                    }
                )
                if "stall_ms" in tokens:
                    row["compute_ms"] = round(token_ms - tokens["stall_ms"][i], 3)
                writer.writerow(row)
    return out.getvalue()
