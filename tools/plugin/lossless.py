"""Compare greedy text and logits with and without the plug-in, for many models, formats and caches.

python tools/plugin/lossless.py [--llama-cpp TREE [--libraries DIR]] [-o RESULT.json]

Random models of six architectures in three formats, each with a cache of 100 %, of 30 %, and at the
floor. A program on the public API (the installed llama-cpp-python) writes 128 tokens, and every bit of
every row of logits is compared. With --llama-cpp, a tree with a llama-server, the same is asked of that
server: its tokens, and for each of them the logarithms of all probabilities.

The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "tests"))

import numpy as np  # noqa: E402

import llama_programs  # noqa: E402
import plugged  # noqa: E402
import stock  # noqa: E402
import tiny_moe  # noqa: E402
from remoe_edge.cli.results import write_json  # noqa: E402


def main() -> None:
    """Compare all, print a line for each model, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--libraries", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    programs = None
    if given.llama_cpp is not None:
        programs = llama_programs.Programs(given.llama_cpp, given.libraries)
    processes = {name: plugged.process(cache=cache) for name, cache in plugged.BUDGETS.items()}
    rows = []
    with tempfile.TemporaryDirectory(prefix="lossless-") as folder:
        for arch in plugged.ARCHS:
            for quant in plugged.FORMATS:
                path = tiny_moe.make(Path(folder) / f"{arch}-{quant}.gguf", arch, quant)
                row = {"architecture": arch, "format": quant, "api": by_api(path, processes)}
                if programs is not None:
                    row["server"] = by_server(path, programs)
                print(json.dumps(row), flush=True)
                rows.append(row)
                path.unlink()
    record = {"tokens": plugged.N_GREEDY, "models": rows, "differences": sum(map(wrong, rows))}
    if given.output is not None:
        write_json(record, given.output)
    sys.exit(1 if record["differences"] else 0)


def by_api(path: Path, processes: dict[str, stock.Process]) -> dict[str, str]:
    """Say for each budget what differs: how many logits, or "nothing"."""
    settings = stock.Settings(tuple(plugged.PROMPT), plugged.N_GREEDY)
    wanted = stock.run(path, plugged.PROMPT, plugged.N_GREEDY)
    found = {}
    for budget, process in processes.items():
        result = process.ask(path, settings)
        n = int(np.sum(result.logits.view(np.uint32) != wanted.logits.view(np.uint32)))
        same = n == 0 and result.tokens == wanted.tokens
        found[budget] = "nothing" if same else f"{n} of {wanted.logits.size} logits"
    return found


def by_server(path: Path, programs: llama_programs.Programs) -> dict[str, str]:
    """Say for each budget what differs: from which token on, or "nothing"."""
    wanted = llama_programs.probabilities(programs, path, None)
    assert len(wanted) == plugged.N_GREEDY
    found = {}
    for budget, cache in plugged.BUDGETS.items():
        got = llama_programs.probabilities(programs, path, {"cache": cache})
        n = next((i for i in range(plugged.N_GREEDY) if got[i : i + 1] != wanted[i : i + 1]), None)
        found[budget] = "nothing" if n is None else f"from token {n} on"
    return found


def wrong(row: dict[str, object]) -> int:
    """Count a model's differences."""
    return sum(
        how != "nothing"
        for found in row.values()
        if isinstance(found, dict)
        for how in found.values()
    )


if __name__ == "__main__":
    main()
