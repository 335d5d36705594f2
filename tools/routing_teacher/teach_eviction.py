#!/usr/bin/env python3
"""Measure what of eviction can be learned: a sequence model over routing evicts in the replayer.

    python tools/routing_teacher/teach_eviction.py --fit CODE.npz --judge GENERAL.npz -o found.json

A small network (a GRU over tokens, sums over layers) is fitted to the traces of --fit: which experts
come within the next steps, given all routing up to an event and the policy's own score. How much of
its correction counts is chosen by misses on the last session of --fit, which it has not seen. Each
trace of --judge is replayed through the engine's cache from cold, with victims by the network's
scores. Reported is the share of the LRU-to-optimum gap in misses that is taken back, beside that of
the policy alone, with intervals of 95 % from redrawn blocks of 50 tokens. The network is far too
slow for a token's path; it says how much there is to gain. Needs torch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

sys.path.append(str(Path(__file__).resolve().parents[1]))

from remoe_edge import _core
from remoe_edge.cli.results import write_json
from remoe_edge.routing.replay import misses_by_event
from remoe_edge.routing.trace import Trace, from_routed, read_trace
from routing_teacher.network import Teacher
from routing_teacher.routing import Session, cold_sessions, session

BLOCK_TOKENS = 50
DRAWS = 1000
SHARES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of the correction
CHUNK_TOKENS = 50  # over which the network is unrolled


def fit(
    sessions: Sequence[Session], horizons: Sequence[int], options: argparse.Namespace
) -> tuple[Teacher, float]:
    """Fit a teacher to sessions, several at a time; give also the scale of the policy's scores."""
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    first = sessions[0]
    layers, experts = first.scores.shape[1:]
    teacher = Teacher(layers, experts, first.inputs(0, 1).shape[2], options.width, options.dropout)
    descent = torch.optim.AdamW(teacher.parameters(), options.rate, weight_decay=options.decay)
    slope, at_zero = line(sessions, horizons)
    tokens = min(len(each.chosen) for each in sessions) - max(horizons)
    starts = range(0, tokens - CHUNK_TOKENS + 1, CHUNK_TOKENS)
    together = min(options.together, len(sessions))
    steps = options.epochs * len(starts) * (len(sessions) // together)
    schedule = torch.optim.lr_scheduler.OneCycleLR(descent, options.rate, total_steps=steps)
    for epoch in range(options.epochs):
        order = rng.permutation(len(sessions))
        losses = []
        for at in range(0, len(order) - together + 1, together):
            group = [sessions[i] for i in order[at : at + together]]
            state = None
            for begin in starts:
                end = begin + CHUNK_TOKENS
                inputs, scores, soon = (
                    torch.from_numpy(np.stack(rows))
                    for rows in (
                        [each.inputs(begin, end) for each in group],
                        [each.scores[begin:end] for each in group],
                        [each.soon(begin, end, horizons) for each in group],
                    )
                )
                correction, state = teacher(inputs, state)
                logits = scores * slope + at_zero
                loss = binary_cross_entropy_with_logits(logits + correction, soon)
                descent.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1)
                descent.step()
                schedule.step()
                with torch.no_grad():
                    plain = binary_cross_entropy_with_logits(logits, soon)
                losses.append((loss.item(), plain.item()))
        found, plain = np.mean(losses, axis=0)
        print(
            f"epoch {epoch + 1}: log-loss {found:.4f}, the policy's {plain:.4f}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return teacher.eval(), slope


def line(sessions: Sequence[Session], horizons: Sequence[int]) -> tuple[float, float]:
    """Find the line that makes the policy's scores logits, by Newton's method on some tokens."""
    rows = [
        (each.scores[at : at + 20], each.soon(at, at + 20, horizons))
        for each in sessions
        for at in range(200, len(each.chosen) - max(horizons) - 20, 200)
    ]
    x, y = (np.concatenate([row[i].reshape(-1) for row in rows]).astype(float) for i in (0, 1))
    found = np.array([1.0, -2.0])
    inputs = np.stack([x, np.ones_like(x)], 1)
    for _ in range(40):
        chance = 1 / (1 + np.exp(-inputs @ found))
        curve = (inputs * (chance * (1 - chance))[:, None]).T @ inputs
        step = np.linalg.solve(curve + 1e-6 * np.eye(2), inputs.T @ (chance - y))
        found -= np.clip(step, -0.3, 0.3)
    return float(found[0]), float(found[1])


@torch.no_grad()
def corrections(teacher: Teacher, run: Session) -> npt.NDArray[np.float32]:
    """Give what the teacher adds to logits after every event: [event, expert]."""
    parts, state = [], None
    for begin in range(0, len(run.chosen), 100):
        end = min(begin + 100, len(run.chosen))
        correction, state = teacher(torch.from_numpy(run.inputs(begin, end))[None], state)
        parts.append(correction[0].numpy())
    return np.concatenate(parts).reshape(-1, run.scores.shape[2])


def replayable(run: Session) -> Trace:
    """Make a trace of a run's choices."""
    return from_routed(run.chosen.transpose(1, 0, 2).astype(np.int16), run.scores.shape[2])


def misses(
    run: Session, correction: npt.NDArray[np.float32], n_slots: int
) -> npt.NDArray[np.int32]:
    """Replay a run with victims by its scores and a correction; give the misses of each event."""
    trace = replayable(run)
    scores = run.scores.reshape(correction.shape) + correction
    return _core.replay_scored(trace.columns(), trace.n_layers, trace.n_experts, n_slots, scores)


def judge(
    trace: Trace, n_slots: int, profile: bytes | None, warm: int, teacher: Teacher, weight: float
) -> dict[str, Any]:
    """Replay a trace by each policy; give misses per token and shares of the gap."""
    run = session(trace, n_slots, profile)
    by_event = {
        name: misses_by_event(trace, n_slots, name, profile)
        for name in ("lru", "belady", "reuse-biased")
    }
    by_event["teacher"] = misses(run, weight * corrections(teacher, run), n_slots)
    tokens = {
        name: each.reshape(-1, trace.n_layers).sum(1)[warm:] for name, each in by_event.items()
    }
    found: dict[str, Any] = {
        "trace": trace.path,
        "tokens": len(tokens["lru"]),
        "misses_per_token": {name: float(each.mean()) for name, each in tokens.items()},
    }
    for name in ("reuse-biased", "teacher"):
        low, high = interval(tokens, name)
        found[name] = {"gap_share": gap_share(tokens, name), "interval": [low, high]}
    return found


def gap_share(tokens: dict[str, npt.NDArray[np.int32]], name: str) -> float:
    """Give the share of the gap that a policy takes back."""
    lru, best, mine = (int(tokens[each].sum()) for each in ("lru", "belady", name))
    return (lru - mine) / (lru - best or 1)


def interval(tokens: dict[str, npt.NDArray[np.int32]], name: str) -> tuple[float, float]:
    """Give the interval of 95 % that redrawn blocks of tokens say."""
    rng = np.random.default_rng(0)
    blocks = len(tokens[name]) // BLOCK_TOKENS
    sums = {
        each: of[: blocks * BLOCK_TOKENS].reshape(blocks, -1).sum(1) for each, of in tokens.items()
    }
    draws = rng.integers(0, blocks, (DRAWS, blocks))
    lru, best, mine = (sums[each][draws].sum(1) for each in ("lru", "belady", name))
    low, high = np.quantile((lru - mine) / np.maximum(lru - best, 1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Fit, judge, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fit", type=Path, nargs="+", required=True, metavar="TRACE")
    parser.add_argument("--judge", type=Path, nargs="+", required=True, metavar="TRACE")
    parser.add_argument("--range", nargs="+", default=[], metavar="A:B", help="tokens to judge")
    parser.add_argument("--warm", type=int, default=0, help="tokens that are not counted")
    parser.add_argument("--cache", type=float, default=0.25, help="share of the experts that fit")
    parser.add_argument("--horizons", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--profile", type=Path, help="the policy's, below the teacher's correction")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--together", type=int, default=2, help="sessions in a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.process_time()
    profile = options.profile.read_bytes() if options.profile else None
    traces = [read_trace(path) for path in options.fit]
    n_slots = max(round(options.cache * traces[0].n_layers * traces[0].n_experts), traces[0].top_k)
    *sessions, kept = cold_sessions(traces, n_slots, profile)
    teacher, slope = fit(sessions, options.horizons, options)
    correction = corrections(teacher, kept) / np.float32(slope)
    by_share = {
        share: int(misses(kept, np.float32(share) * correction, n_slots).sum()) for share in SHARES
    }
    bounds = {
        name: int(misses_by_event(replayable(kept), n_slots, name).sum())
        for name in ("lru", "belady")
    }
    weight = min(SHARES, key=by_share.__getitem__) / slope
    judged = []
    for path in options.judge:
        whole = read_trace(path).per_token()
        for text in options.range or [f"0:{whole.total_tokens}"]:
            begin, end = (int(part) for part in text.split(":"))
            found = judge(
                whole.tokens(begin, end),
                n_slots,
                profile,
                options.warm,
                teacher,
                np.float32(weight),
            )
            judged.append({**found, "range": text, "trace": path.name})
            shares = ", ".join(
                f"{name} {found[name]['gap_share']:.1%} "
                f"({found[name]['interval'][0]:.1%} to {found[name]['interval'][1]:.1%})"
                for name in ("reuse-biased", "teacher")
            )
            print(f"{path.name} {text}: {shares}", flush=True)
    record = {
        "fit": [path.name for path in options.fit],
        "settings": {
            name: value
            for name, value in vars(options).items()
            if name not in ("fit", "judge", "output", "profile")
        },
        "profile": options.profile.name if options.profile else None,
        "slots": n_slots,
        "session_kept_back": {**bounds, "teacher_by_share": by_share},
        "judged": judged,
        "mean": {
            name: float(np.mean([each[name]["gap_share"] for each in judged]))
            for name in ("reuse-biased", "teacher")
        },
        "cpu_seconds": round(time.process_time() - began),
    }
    print(", ".join(f"mean {name} {share:.1%}" for name, share in record["mean"].items()))
    if options.output:
        write_json(record, options.output)


if __name__ == "__main__":
    main()
