"""Count the bytes that a plugged program reads from storage until its model is loaded.

python tools/plugin/load.py [MODEL] [--llama-cpp TREE [--libraries DIR]] [-o RESULT.json]

The file's pages are dropped first. A program on the public API (the installed llama-cpp-python), and
with --llama-cpp that tree's llama-server without its warm-up, load the model with and without the
plug-in; the kernel counts what the process has read from storage by then. With the plug-in it may be the
dense weights and 64 MiB. A llama-server computes a token of its own before it is ready: the experts of
that one, which the plug-in counts, are taken off. Without MODEL a random one of 340 MB is made.

The exit status is 1 if more was read.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path += [str(ROOT / "tests"), str(Path(__file__).parent)]

import memory  # noqa: E402

import llama_programs  # noqa: E402
import plugged  # noqa: E402
from remoe_edge import _core  # noqa: E402
from remoe_edge.cli.results import print_json, write_json  # noqa: E402
from remoe_edge.telemetry.status import running  # noqa: E402

SLACK_BYTES = 64 << 20
_STATUS_S = 3  # by then a program that is idle has written down what it did

_PROGRAM = """
model = load(sys.argv[1])
ctx = context(model)
assert model and ctx
print(open("/proc/self/io").read())
"""


def main() -> None:
    """Load with and without the plug-in, and write what was read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--libraries", type=Path)
    parser.add_argument("--cache", default="30%")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plugin-load-") as folder:
        model = given.model or memory.make_model(Path(folder) / "medium.gguf")
        dense_bytes = _core.ModelFile.open(str(model)).dense_bytes
        read = {
            name: count(model, lambda name=name: program_read(model, name, given.cache))
            for name in ("plugged", "stock")
        }
        record = {
            "model": model.name,
            "model_bytes": model.stat().st_size,
            "dense_bytes": dense_bytes,
            "read_bytes": read,
        }
        if given.llama_cpp is not None:
            programs = llama_programs.Programs(given.llama_cpp, given.libraries)
            record["server_read_bytes"] = {
                name: count(
                    model, lambda name=name: server_read(programs, model, name, given.cache)
                )
                for name in ("plugged", "stock")
            }
    counted = [record["read_bytes"], record.get("server_read_bytes", record["read_bytes"])]
    record["kept"] = all(each["plugged"] <= dense_bytes + SLACK_BYTES for each in counted)
    print_json(record)
    if given.output is not None:
        write_json(record, given.output)
    sys.exit(0 if record["kept"] else 1)


def count(model: Path, read: Callable[[], int]) -> int:
    """Have the kernel forget the model, then count. The program itself was read before, once."""
    read()
    with model.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return read()


def program_read(model: Path, name: str, cache: str) -> int:
    """Count the bytes that a program on the public API reads."""
    done = plugged.script(_PROGRAM, model, plugged=name == "plugged", cache=cache)
    return _read_bytes(done.stdout)


def server_read(programs: llama_programs.Programs, model: Path, name: str, cache: str) -> int:
    """Count the bytes that a llama-server reads until it is ready, less the experts of its own token."""
    with tempfile.TemporaryDirectory(prefix="status-") as status:
        settings = {"cache": cache, "status": status} if name == "plugged" else None
        with llama_programs.serving(programs, model, settings, "--no-warmup") as (process, _):
            time.sleep(_STATUS_S)
            shown = running([Path(status)])
            experts = sum(each["totals"]["bytes_read"] for each in shown)
            return _read_bytes(Path(f"/proc/{process.pid}/io").read_text()) - experts


def _read_bytes(account: str) -> int:
    return next(int(x.split()[1]) for x in account.splitlines() if x.startswith("read_bytes:"))


if __name__ == "__main__":
    main()
