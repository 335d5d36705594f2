"""The process of an arm: `python -m remoe_edge.bench.worker`.

A job comes as one line of JSON on stdin; lines of JSON go out: what was loaded, each prompt's and each
token's figures, and at last "done" or "error". The process then lives, so that the kernel's account
of it can be read, until stdin closes; when that happens earlier, it ends at once.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remoe_edge.bench.measure import Model


def main() -> None:
    """Do one job."""
    # Whatever a library prints must not come between the lines.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    watch = threading.Thread(target=_end_with_stdin, daemon=True)
    watch.start()
    try:
        _run(job, out)
    except Exception as error:
        _say(out, error=str(error), kind=type(error).__name__)
    watch.join()


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def _run(job: dict[str, Any], out: IO[str]) -> None:
    from remoe_edge.bench.measure import answer

    make = _maker(job)  # imports stay out of the time
    clock = time.perf_counter()
    model = make()
    _say(out, load_ms=round((time.perf_counter() - clock) * 1000, 3), about=model.about())
    usage_file = Path(job["usage_file"]) if job["usage_file"] else None
    first_token_ms = None
    for prompt in job["prompts"]:
        _say(out, prompt=prompt["name"])
        for figures in answer(
            model, prompt["tokens"], prompt["forced"], job["n_tokens"], usage_file
        ):
            if first_token_ms is None:
                # CLOCK_MONOTONIC is one for all processes.
                first_token_ms = round((time.monotonic() - job["started"]) * 1000, 3)
            _say(out, **figures)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _say(
        out,
        done=True,
        first_token_ms=first_token_ms,
        major_faults=used.ru_majflt,
        cpu_seconds=round(used.ru_utime + used.ru_stime, 3),
        remote=model.remote(),
        drafts=model.drafts(),
    )


def _maker(job: dict[str, Any]) -> Callable[[], Model]:
    if job["kind"] == "stream":
        from remoe_edge.bench.streamed import StreamedArm

        return functools.partial(StreamedArm, job["path"], **job["settings"])
    from remoe_edge.bench.stock import StockModel

    return functools.partial(StockModel, job["path"], job["kind"], **job["settings"])


def _say(out: IO[str], **fields: Any) -> None:
    out.write(json.dumps(fields, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
