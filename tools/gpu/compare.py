#!/usr/bin/env python3
"""Compare the engine with stock llama.cpp on the same GPU: small models of every architecture and format.

    python tools/gpu/compare.py -o cases.json --minutes 3 --jobs 12

One case is a model, the place of its experts (`cpu`, `gpu`) and whether the backend may fuse operations.
Each runs in a process of its own, so that one that dies or hangs takes no other along. For each cache,
prefetch and prompt length it tells whether all bits are stock's, and else by how much logits differ, and
whether every argmax agrees; and whether routers are seen as they are without a GPU. The file is written
as cases end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

from gpu.step import run_step  # noqa: E402

TESTS = ROOT / "tests"
ALL = 1 << 20  # layers
N_GREEDY = 3
FUSION = ("GGML_CUDA_DISABLE_FUSION", "GGML_VK_DISABLE_FUSION")


def cases() -> list[str]:
    """Name all cases, those that say most first."""
    import tiny_moe
    from test_lossless import ROTATION

    models = [(arch, ROTATION[i % len(ROTATION)]) for i, arch in enumerate(tiny_moe.ARCHS)]
    models += [
        ("qwen3moe", quant) for quant in tiny_moe.QUANTS if ("qwen3moe", quant) not in models
    ]
    places = (("gpu", "fused"), ("cpu", "fused"), ("gpu", "plain"))
    return [f"{arch}:{quant}:{place}:{how}" for place, how in places for arch, quant in models]


def run_case(name: str, lengths: tuple[int, ...]) -> dict[str, Any]:
    """Compare one model in this process."""
    import numpy as np

    import stock
    import tiny_moe
    from remoe_edge import Engine
    from test_lossless import prompt

    arch, quant, place, _ = name.split(":")
    found: dict[str, Any] = {"runs": {}}
    settings: dict[str, Any] = {"n_ctx": 1024, "n_batch": 1024, "threads": 2}
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_moe.make(Path(folder) / "m.gguf", arch, quant)
        references = {
            n: stock.run(
                path, prompt(n), N_GREEDY, n_threads=2, use_extra_bufts=False, gpu_layers=ALL,
                experts_on_cpu=place == "cpu",
            )
            for n in lengths
        }  # fmt: skip
        for cache, prefetch in (("100%", "off"), ("50%", "off"), ("50%", "on")):
            with Engine(
                path, cache=cache, prefetch=prefetch, gpu_layers="all", experts_on=place, **settings
            ) as engine:
                for n, reference in references.items():
                    rows = [engine.evaluate(prompt(n))]
                    rows += [engine.evaluate([t], reset=False) for t in reference.tokens]
                    found["runs"][f"{cache} {prefetch} {n}"] = difference(
                        np.stack(rows), reference.logits
                    )
                seen = (engine.native.router_probabilities, engine.native.prefetch["why_not"])
                if prefetch == "on":
                    found["prefetch"] = {
                        name: value
                        for name, value in engine.native.prefetch.items()
                        if isinstance(value, (int, str))
                    }
        with Engine(path, cache="50%", prefetch="on", gpu_layers="off", **settings) as engine:
            engine.evaluate(prompt(7))
            engine.evaluate([5], reset=False)
            without = (engine.native.router_probabilities, engine.native.prefetch["why_not"])
    found["router_probabilities"], found["prefetch_why_not"] = seen
    found["seen_as_without_gpu"] = seen == without
    found["equal"] = all(each["equal"] for each in found["runs"].values())
    found["argmax"] = all(each["argmax"] for each in found["runs"].values())
    return found


def difference(rows: Any, wanted: Any) -> dict[str, Any]:
    """Tell how far logits are apart, after the prompt and after each greedy token."""
    import numpy as np

    same = (rows.view(np.uint32) == wanted.view(np.uint32)).all(axis=1)
    told: dict[str, Any] = {
        "equal": bool(same.all()),
        "argmax": bool((rows.argmax(axis=1) == wanted.argmax(axis=1)).all()),
    }
    if not told["equal"]:
        told |= {
            "rows_equal": [bool(each) for each in same],
            "max_difference": float(np.abs(rows - wanted).max()),
            "largest": float(np.abs(wanted).max()),
        }
    return told


class Runs:
    """Hold the results so far, and start a process for each case."""

    def __init__(self, output: Path, ends: float, case_seconds: float, lengths: str) -> None:
        self.output, self.ends, self.case_seconds, self.lengths = (
            output,
            ends,
            case_seconds,
            lengths,
        )
        self.found: dict[str, Any] = {}
        self._writing = threading.Lock()  # cases end side by side

    def one(self, name: str) -> None:
        """Run a case, unless time is up."""
        left = min(self.ends - time.monotonic(), self.case_seconds)
        if left < 5:
            with self._writing:
                self.found[name] = {"status": "not started"}
            return
        environment = {"OMP_WAIT_POLICY": "passive"}
        if name.endswith(":plain"):
            environment |= dict.fromkeys(FUSION, "1")
        line = [sys.executable, __file__, "--case", name, "--lengths", self.lengths]
        result = run_step(line, left, environment=environment)
        with self._writing:
            self.found[name] = result
            self.write()

    def write(self) -> None:
        """Write what is known."""
        from remoe_edge.cli.results import write_json

        write_json(self.found, self.output)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Count by place and way, and name what is not equal."""
    told: dict[str, Any] = {}
    for name, result in found.items():
        group = told.setdefault(
            ":".join(name.split(":")[2:]),
            {
                "cases": 0,
                "equal": 0,
                "argmax": 0,
                "seen_as_without_gpu": 0,
                "failed": [],
                "differ": {},
            },
        )
        group["cases"] += 1
        if result["status"] != 0:
            group["failed"].append(name)
            continue
        for key in ("equal", "argmax", "seen_as_without_gpu"):
            group[key] += bool(result[key])
        if not result["equal"]:
            worst = max(
                (each for each in result["runs"].values() if not each["equal"]),
                key=lambda each: each["max_difference"] / each["largest"],
            )
            group["differ"][name] = [worst["max_difference"], worst["largest"], result["argmax"]]
    return told


def main() -> None:
    """Read the command line; run one case, or all."""
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("cases.json"))
    parser.add_argument("--minutes", type=float, default=3.0, help="to end within (3)")
    parser.add_argument("--jobs", type=int, default=2, help="cases at once (2)")
    parser.add_argument("--case-seconds", type=float, default=60.0, help="for one case (60)")
    parser.add_argument("--lengths", default="1,7,100", help="tokens of the prompts (1,7,100)")
    parser.add_argument(
        "--only", default="", help="cases that hold one of these words, comma between"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)  # in this process
    asked = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(TESTS)]
    if asked.case:
        lengths = tuple(int(each) for each in asked.lengths.split(","))
        print(json.dumps(run_case(asked.case, lengths)))
        return
    ends = time.monotonic() + 60 * asked.minutes
    runs = Runs(asked.output.absolute(), ends, asked.case_seconds, asked.lengths)
    words = asked.only.split(",")
    chosen = [name for name in cases() if any(word in name for word in words)]
    with ThreadPoolExecutor(asked.jobs) as pool:
        list(pool.map(runs.one, chosen))
    runs.write()
    print(json.dumps(summary(runs.found)))


if __name__ == "__main__":
    main()
