"""Measure what a peer costs a layer's step that needs nothing of it: all experts are in the cache.

One engine has a worker for a peer, the other has none. They evaluate the same tokens in turn, and the
difference of their median times is divided by the layers that stream.

    python tools/remote_experiments/idle_cost.py MODEL --tokens 4000
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from remoe_edge import Engine
from remote_experiments.many_engines import worker_process

_CONTEXT = 1024
_PROMPT = [5, 6, 7, 8]
_TURN = 64  # tokens of one engine before the other goes on


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--memory", default="4GiB", help="of the worker")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    spent: dict[str, list[float]] = {"alone": [], "with a peer": []}
    settings = {"cache": "100%", "n_ctx": _CONTEXT, "threads": asked.threads, "prefetch": "off"}
    with (
        worker_process(asked.model, asked.memory) as (_, address),
        Engine(asked.model, **settings) as alone,
        Engine(asked.model, peers=address, **settings) as beside,
    ):
        engines = {"alone": alone, "with a peer": beside}
        for engine in engines.values():
            engine.evaluate(_PROMPT)
        for start in range(0, asked.tokens, _TURN):
            for name, engine in engines.items():
                row = engine.evaluate(_PROMPT)
                for _ in range(_TURN):
                    token = int(row.argmax())
                    clock = time.perf_counter()
                    row = engine.evaluate([token], reset=False)
                    if start:  # the first turn fills the cache
                        spent[name].append(time.perf_counter() - clock)
        layers = len(beside.misses_by_layer())
    medians = {name: 1e6 * statistics.median(times) for name, times in spent.items()}
    record = {
        **{f"{name}, µs a token": round(value, 2) for name, value in medians.items()},
        "layers": layers,
        "µs a layer": round((medians["with a peer"] - medians["alone"]) / layers, 3),
        "tokens": len(spent["alone"]),
    }
    print(json.dumps(record, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
