"""Time decoding and the first token against stock llama.cpp, in one run, arms interleaved.

    python tools/compare_stock.py model.gguf --memory 1600MiB --cache 1000MiB -o docs/results/x.json

Every arm is a process of its own, in a memory cgroup of its own (page cache included), with a cold page
cache and the disk's read-ahead at 128 KiB, which is stock's best where memory is short. Arms: `stock`
(mmap, `--no-repack`: repacked weights would not fit) and `stream`; with --resident, without a memory
limit: `stock-resident` and `stream-resident`, timed once everything has been touched. All arms get the
same tokens; if the tokens that they would choose differ, the run fails. Needs root for the cgroup,
the caches and the read-ahead; what could not be set is said in the result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memory_cgroup
from remoe_edge.native import llama_cpp
from remoe_edge.units import parse_bytes

PROGRAM = """
import json, sys, time
started = float(sys.argv[1])
arm, path, prompt, forced, n, threads, cache, policy, warm = json.loads(sys.argv[2])
times, tokens, extra = [], [], {}
if arm.startswith("stock"):
    import os
    os.environ.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="2000")
    import llama_cpp as lib, numpy as np
    log = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(log, None)
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.use_extra_bufts, params.load_mode = False, lib.LLAMA_LOAD_MODE_MMAP
    model = lib.llama_model_load_from_file(path.encode(), params)
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 1024, 512, 512
    settings.n_threads = settings.n_threads_batch = threads
    context = lib.llama_init_from_model(model, settings)
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    def decode(batch):
        array = (lib.llama_token * len(batch))(*batch)
        assert lib.llama_decode(context, lib.llama_batch_get_one(array, len(batch))) == 0
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n_vocab,))
    evaluate = lambda batch, reset: decode(batch)
else:
    from remoe_edge import Engine
    engine = Engine(path, cache=cache, policy=policy, n_ctx=1024, threads=threads)
    evaluate = lambda batch, reset: engine.evaluate(batch, reset=reset)
loaded = time.time()
row = evaluate(prompt, True)
first = time.time()
for i in range(warm + n):
    tokens.append(int(row.argmax()))
    token = forced[i] if forced else tokens[-1]
    clock = time.perf_counter()
    if i == warm and arm.startswith("stream"):
        before = engine._model.counts()
    row = evaluate([token], False)
    if i >= warm:
        times.append(1000 * (time.perf_counter() - clock))
if arm.startswith("stream"):
    after = engine._model.counts()
    keys = ("hits", "misses", "bytes_read", "stall_ns", "ffn_ns")
    extra = {key: (after[key] - before[key]) / n for key in keys}
    extra["cache"] = engine.stats()["cache"]["budget_bytes"]
    extra["io"] = engine.stats()["io"]
print(json.dumps({"arm": arm, "load_s": loaded - started, "first_token_s": first - started,
                  "token_ms": times, "tokens": tokens, **extra}))
"""


@contextlib.contextmanager
def read_ahead(path: Path, kib: int) -> Iterator[str]:
    """Set the read-ahead of the disk under `path`; yield what holds."""
    device = subprocess.run(
        ["findmnt", "-no", "SOURCE", "-T", str(path)], capture_output=True, text=True
    ).stdout.strip()
    file = Path("/sys/class/block") / Path(device).name / "queue/read_ahead_kb"
    if not file.exists():
        file = file.parents[2] / "queue/read_ahead_kb"
    try:
        old = file.read_text()
        file.write_text(str(kib))
    except OSError as error:
        yield f"not set: {error}"
        return
    try:
        yield f"{kib} KiB"
    finally:
        file.write_text(old)


def run(arm: str, arguments: argparse.Namespace, limit_bytes: int | None) -> dict[str, Any]:
    """Run one arm in a process of its own and return what it printed."""
    subprocess.run(["sync"], check=True)
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
    tokens, n_prompt = arguments.text_tokens, arguments.prompt
    warm = 24 if arm.endswith("resident") else 4
    prompt, forced = tokens[:n_prompt], tokens[n_prompt : n_prompt + warm + arguments.tokens]
    if forced and len(forced) < warm + arguments.tokens:
        raise SystemExit(f"the text has {len(tokens)} tokens, too few for this run")
    resident = arm.endswith("resident")
    job = [arm, str(arguments.model.resolve()), prompt, forced, arguments.tokens, arguments.threads]
    job += ["100%" if resident else arguments.cache, arguments.policy, warm]
    with contextlib.ExitStack() as stack:
        group = None
        if limit_bytes is not None:
            group = stack.enter_context(memory_cgroup.limited(limit_bytes))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(time.time()), json.dumps(job)],
            preexec_fn=group.join if group else None,
            cwd="/",  # not the checkout, whose sources hold no compiled core
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise SystemExit(f"{arm} ended with {done.returncode}: {done.stderr[-800:]}")
        result: dict[str, Any] = json.loads(done.stdout)
        result["peak_bytes"] = group.peak_bytes() if group else None
    result["median_token_ms"] = statistics.median(result["token_ms"])
    result["mean_token_ms"] = statistics.mean(result["token_ms"])
    print(
        f"{arm:16} {result['mean_token_ms']:8.1f} ms/token (median {result['median_token_ms']:.1f}), "
        f"first token after {result['first_token_s']:.2f} s",
        file=sys.stderr,
        flush=True,
    )
    return result


def main() -> None:
    """Run the arms A B A B and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", help="the cgroup's limit, for example 1600MiB")
    parser.add_argument("--cache", default="1000MiB")
    parser.add_argument("--policy", default="lru")
    parser.add_argument("--resident", action="store_true", help="the resident arms instead")
    parser.add_argument("--prompt", type=int, default=25, help="tokens")
    parser.add_argument(
        "--text",
        type=Path,
        help="read this text token by token, instead of made-up tokens and greed",
    )
    parser.add_argument("--tokens", type=int, default=24, help="timed tokens per arm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    arms = ["stock-resident", "stream-resident"] if arguments.resident else ["stock", "stream"]
    limit_bytes = parse_bytes(arguments.memory) if arguments.memory else None
    if arguments.text:
        vocabulary = llama_cpp.Llama(str(arguments.model), vocab_only=True, verbose=False)
        arguments.text_tokens = vocabulary.tokenize(arguments.text.read_bytes())
        vocabulary.close()
    else:
        arguments.text_tokens = [100 + 7 * i % 900 for i in range(arguments.prompt)]
    with read_ahead(arguments.model, 128) as ahead:
        runs = [run(arm, arguments, limit_bytes) for _ in range(arguments.rounds) for arm in arms]
    if len({tuple(each["tokens"]) for each in runs}) != 1:
        raise SystemExit("the arms' greedy answers differ")
    summary: dict[str, Any] = {}
    for arm in arms:
        mine = [each for each in runs if each["arm"] == arm]
        for key in ("mean_token_ms", "median_token_ms", "first_token_s", "load_s"):
            summary.setdefault(arm, {})[key] = statistics.median(each[key] for each in mine)
    stock, ours = (summary[arm] for arm in arms)
    ratio = {
        key: stock[key] / ours[key] for key in ("mean_token_ms", "median_token_ms", "first_token_s")
    }
    record = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "kernel": platform.release(),
        },
        "model_bytes": arguments.model.stat().st_size,
        "memory_limit_bytes": limit_bytes,
        "read_ahead": ahead,
        "summary": summary,
        "stock_over_stream": ratio,
        "runs": runs,
    }
    print(json.dumps({"summary": summary, "stock_over_stream": ratio}, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
