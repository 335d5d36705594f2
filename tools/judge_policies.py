#!/usr/bin/env python3
"""Judge eviction policies on a model's own routing, by domain: one command from texts to figures.

    python tools/judge_policies.py MODEL --fit build/data/train --judge models/heldout -o found.json

Each folder holds one .txt for a domain. Their first characters are read by the model, token by token, and
the routing is recorded (`remoe-edge trace`). A profile is fitted to all traces of --fit (`remoe-edge
profile`), and each trace of --judge is replayed from a cold cache with and without it (`remoe-edge
simulate`). Prints the share of the LRU-to-optimum gap in misses that `reuse-biased` takes back. Traces
stay in --work, so an interrupted run goes on; another model or other routers want another folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from remoe_edge import Engine
from remoe_edge.cli.results import write_json
from remoe_edge.files.models import shipped_routers
from remoe_edge.profile import fit_profile, save_profile
from remoe_edge.routing.record_prompts import Recorded, record
from remoe_edge.routing.simulate import as_json, parse_cache, parse_policies, simulate
from remoe_edge.routing.trace import Trace, read_trace

POLICIES = "lru,reuse-biased,belady"
SIZES = ("10%", "25%", "50%")


def traced(text: Path, options: argparse.Namespace, kind: str) -> Trace:
    """Read a text's first characters with the model, unless that was done before; give its trace."""
    trace = options.work / f"{kind}-{text.stem}.trace"
    if not trace.exists():
        part = trace.with_name(f"{trace.name}.part")
        part.unlink(missing_ok=True)
        with Engine(
            options.model,
            cache="100%",
            n_ubatch=1,
            prefetch="off",
            routers=options.routers,
            trace=part,
        ) as engine:
            tokens = engine.tokenize(text.read_text()[: options.characters])
            record(engine, [tokens], 0, lambda _: None, Recorded())
        part.rename(trace)
    print(trace, flush=True)
    return read_trace(trace)


def judged(trace: Trace, profile: bytes | None) -> dict[str, Any]:
    """Replay a trace at all sizes."""
    slots = [parse_cache(size, trace.n_layers * trace.n_experts, None) for size in SIZES]
    report = as_json(trace, simulate(trace, parse_policies(POLICIES), slots, profile=profile))
    return {**report, "trace": Path(trace.path).name}


def shares(report: dict[str, Any]) -> list[float]:
    """Give the policy's share of the gap at each size."""
    return [row["gap_share"] for row in report["outcomes"] if row["policy"] == "reuse-biased"]


def main() -> None:
    """Trace, fit, judge, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--fit", type=Path, required=True, metavar="DIR")
    parser.add_argument("--judge", type=Path, required=True, metavar="DIR")
    parser.add_argument("--routers", help="an overlay, or `default`")
    parser.add_argument("--characters", type=int, default=13_500, help="of each text")
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="for traces and the profile"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    if options.routers == "default":
        options.routers = shipped_routers(options.model)
    options.work.mkdir(parents=True, exist_ok=True)
    fit = [traced(text, options, "fit") for text in sorted(options.fit.glob("*.txt"))]
    judge = {
        text.stem: traced(text, options, "judge") for text in sorted(options.judge.glob("*.txt"))
    }
    profile = fit_profile(fit).data
    save_profile(profile, options.work / "fitted.profile")
    named = options.routers and Path(options.routers).name
    found: dict[str, Any] = {
        "characters": options.characters,
        "routers": named or "the model's own",
    }
    for name, given in (("without_profile", None), ("with_profile", profile)):
        reports = {domain: judged(trace, given) for domain, trace in judge.items()}
        by_domain = {domain: shares(report) for domain, report in reports.items()}
        mean = np.mean(list(by_domain.values()), axis=0).tolist()
        for domain, row in {**by_domain, "mean": mean}.items():
            print(
                f"{name} {domain}: "
                + ", ".join(f"{s} {v:.1%}" for s, v in zip(SIZES, row, strict=True))
            )
        found[name] = {"mean_gap_share": dict(zip(SIZES, mean, strict=True)), "domains": reports}
    write_json(found, options.output)


if __name__ == "__main__":
    main()
