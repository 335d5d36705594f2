"""Time decoding and prefill with reading ahead off and on, interleaved, at several bandwidths.

    python tools/compare_prefetch.py model.gguf --memory 1400MiB --cache 900MiB --text prose.txt \
        --bandwidths 300M,1200M,none --rounds 3 -o docs/results/prefetch.json
    python tools/compare_prefetch.py model.gguf --prompt 512 --tokens 0 --resident \
        --memory 1400MiB --cache 900MiB --text prose.txt --bandwidths 300M,none

Every arm is a process of its own, in a memory cgroup and under a bandwidth cap of its own, with a cold
page cache, and reads the same text token by token; if the arms would choose different tokens, the run
fails. Arms are `off` and `on`, or those of --arms (`auto` too). --resident adds an arm that holds
everything and is timed warm: its prefill is the other side of the floor that a cold prefill is held
against, max(expert bytes touched / bandwidth, resident prefill). Bandwidth is the cap, or what the
engine probed, if that is less. Needs root for the cgroups and the caches.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import bandwidth_cgroup
import memory_cgroup
from compare_stock import read_ahead
from remoe_edge.native import llama_cpp
from remoe_edge.units import parse_bytes

PROGRAM = """
import json, sys, time
path, prompt, forced, warm, settings = json.loads(sys.argv[1])
resident = settings["prefetch"] == "resident"
if resident:
    settings.update(prefetch="off", cache="100%")
from remoe_edge import Engine
engine = Engine(path, **settings)
if resident:
    engine.evaluate(prompt)
before = engine._model.counts()
clock = time.perf_counter()
row = engine.evaluate(prompt)
prefill_s = time.perf_counter() - clock
between = engine._model.counts()
times, tokens = [], [int(row.argmax())]
for i, token in enumerate(forced):
    if i == warm:
        between_steps = engine._model.counts()
    clock = time.perf_counter()
    row = engine.evaluate([token], reset=False)
    if i >= warm:
        times.append(1000 * (time.perf_counter() - clock))
    tokens.append(int(row.argmax()))
after = engine._model.counts()
cache, io = engine.stats()["cache"], engine.stats()["io"]
since = lambda new, old, n: {key: (new[key] - old[key]) / n for key in new}
print(json.dumps({
    "prefill_s": prefill_s, "prefill": since(between, before, 1), "token_ms": times,
    "per_token": since(after, between_steps, len(times)) if times else {}, "tokens": tokens,
    "slots": cache["slots"], "budget_bytes": cache["budget_bytes"], "prefetch": cache["prefetch"],
    "io": io, "threads": settings["threads"],
}))
"""


def run(
    arm: str, cap: int | None, tokens: list[int], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Run one arm in a process of its own and return what it printed."""
    subprocess.run(["sync"], check=True)
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
    n = arguments.prompt
    warm = arguments.warm if arguments.tokens else 0
    forced = [] if arm == "resident" else tokens[n : n + warm + arguments.tokens]
    settings = {
        "prefetch": arm, "cache": arguments.cache, "policy": arguments.policy,
        "threads": arguments.threads, "n_ctx": max(1024, n + warm + arguments.tokens + 8),
    }  # fmt: skip
    job = [str(arguments.model.resolve()), tokens[:n], forced, warm, settings]
    with contextlib.ExitStack() as stack:
        joins = []
        if arm != "resident":
            if arguments.memory:
                limit = memory_cgroup.limited(parse_bytes(arguments.memory))
                joins.append(stack.enter_context(limit).join)
            if cap is not None:
                joins.append(
                    stack.enter_context(bandwidth_cgroup.limited(arguments.model, cap)).join
                )
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(job)],
            preexec_fn=lambda: [join() for join in joins] and None,
            cwd="/",  # not the checkout, whose sources hold no compiled core
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        raise SystemExit(f"{arm} ended with {done.returncode}: {done.stderr[-800:]}")
    result: dict[str, Any] = {"arm": arm, "cap": cap, **json.loads(done.stdout)}
    result["mean_token_ms"] = statistics.mean(result["token_ms"]) if result["token_ms"] else None
    each = result["per_token"]
    mib = {key: each[key] / 2**20 for key in each if "bytes" in key}
    decode = (
        f"{result['mean_token_ms']:7.1f} ms/token, {mib['bytes_read']:.1f} MiB/token of which "
        f"{mib['ahead_useful_bytes']:.1f} ahead, {mib['ahead_wasted_bytes']:.1f} wasted, stall "
        f"{each['stall_ns'] / 1e6:.1f} ms, "
        if each
        else ""
    )
    print(
        f"{arm:8} {decode}prefill {result['prefill_s']:.2f} s, "
        f"{result['prefill']['bytes_read'] / 2**20:.0f} MiB "
        f"+ {result['prefill']['ahead_wasted_bytes'] / 2**20:.0f} wasted",
        file=sys.stderr,
        flush=True,
    )
    return result


def summary(runs: list[dict[str, Any]], arms: list[str], cap: int | None) -> dict[str, Any]:
    """Take medians per arm, and the prefill's share of its floor."""
    told: dict[str, Any] = {"cap_bytes_per_s": cap}
    resident = [each["prefill_s"] for each in runs if each["arm"] == "resident"]
    for arm in arms:
        mine = [each for each in runs if each["arm"] == arm and each["cap"] == cap]
        told[arm] = {"prefill_s": statistics.median(each["prefill_s"] for each in mine)}
        if mine[0]["token_ms"]:
            told[arm]["token_ms"] = statistics.median(each["mean_token_ms"] for each in mine)
        probed = statistics.median(each["io"]["probed_bytes_per_s"] for each in mine)
        bandwidth = min(cap or probed, probed or cap or 0)
        if resident and bandwidth:
            touched = statistics.median(each["prefill"]["bytes_read"] for each in mine)
            floor = max(touched / bandwidth, statistics.median(resident))
            told[arm] |= {
                "touched_bytes": touched,
                "bandwidth": bandwidth,
                "floor_s": floor,
                "prefill_over_floor": told[arm]["prefill_s"] / floor,
            }
    if resident:
        told["resident_prefill_s"] = statistics.median(resident)
    if "off" in told and "token_ms" in told["off"]:
        told["off_over"] = {
            arm: told["off"]["token_ms"] / told[arm]["token_ms"] for arm in arms if arm != "off"
        }
    return told


def main() -> None:
    """Run the arms A B A B at each bandwidth and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="read token by token")
    parser.add_argument("--memory", help="the cgroup's limit, for example 1400MiB")
    parser.add_argument("--cache", default="900MiB")
    parser.add_argument("--policy", default="lru")
    parser.add_argument("--arms", default="off,on")
    parser.add_argument("--resident", action="store_true", help="time the resident prefill too")
    parser.add_argument("--bandwidths", default="300M,1200M,none", help="caps, bytes a second")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--warm", type=int, default=48, help="tokens before the timed ones")
    parser.add_argument("--tokens", type=int, default=64, help="timed tokens per arm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    vocabulary = llama_cpp.Llama(str(arguments.model), vocab_only=True, verbose=False)
    tokens = vocabulary.tokenize(arguments.text.read_bytes())
    vocabulary.close()
    if len(tokens) < arguments.prompt + arguments.warm + arguments.tokens:
        raise SystemExit(f"the text has {len(tokens)} tokens, too few for this run")
    arms = arguments.arms.split(",")
    caps = [
        None if each == "none" else parse_bytes(each) for each in arguments.bandwidths.split(",")
    ]
    runs = []
    with read_ahead(arguments.model, 128) as ahead:
        for cap in caps:
            print(f"at {cap or 'the disk’s own'} bytes/s:", file=sys.stderr)
            for _ in range(arguments.rounds):
                runs += [run(arm, cap, tokens, arguments) for arm in arms]
                if arguments.resident:
                    runs.append(run("resident", None, tokens, arguments))
    chosen = {arm: {tuple(each["tokens"]) for each in runs if each["arm"] == arm} for arm in arms}
    if len(set().union(*chosen.values())) != 1:
        raise SystemExit("the arms would choose different tokens")
    told = [summary(runs, arms, cap) for cap in caps]
    record = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "kernel": platform.release(),
        },
        "model_bytes": arguments.model.stat().st_size,
        "read_ahead": ahead,
        "summary": told,
        "runs": runs,
    }
    print(json.dumps(told, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
