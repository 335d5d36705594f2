"""Run one engine and print, as JSON, what its tokens took: an arm of time_two_hosts.py."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from remoe_edge import Engine

PROMPT = "The sea is wide, and the river that runs into it is long. Once upon a time"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--peers", default="")
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--warm", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prefetch", default="auto")
    asked = parser.parse_args()
    with Engine(
        asked.model, cache=asked.cache, peers=asked.peers, peer_keys=asked.keys,
        threads=asked.threads, prefetch=asked.prefetch, n_ctx=1024,
    ) as engine:  # fmt: skip
        tokens = engine.tokenize(PROMPT)
        begun = time.perf_counter()
        row = engine.evaluate(tokens)
        ttft_ms = (time.perf_counter() - begun) * 1000
        said, spent = [], []
        for i in range(asked.warm + asked.tokens):
            token = int(row.argmax())
            said.append(token)
            clock = time.perf_counter()
            row = engine.evaluate([token], reset=False)
            if i >= asked.warm:
                spent.append((time.perf_counter() - clock) * 1000)
        spent.sort()
        stats = engine.stats().to_dict()
    json.dump(
        {
            "ttft_ms": round(ttft_ms, 3),
            "tpot_ms": round(sum(spent) / len(spent), 3),
            "tpot_p50_ms": round(spent[len(spent) // 2], 3),
            "tokens": said,
            "remote": stats.get("remote"),
            "peak_rss_bytes": stats["peak_rss_bytes"],
            "notes": stats["notes"],
        },
        sys.stdout,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
