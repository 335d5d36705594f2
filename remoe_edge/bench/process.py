"""Run one arm once, in a process and a box of its own, and gather what it says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from remoe_edge.bench.arms import Arm
from remoe_edge.bench.box import Box
from remoe_edge.bench.settings import Settings
from remoe_edge.errors import RemoeError
from remoe_edge.units import mib

# Called with what an arm is at: a prompt's name, and the tokens that it has answered.
Progress = Callable[[str, int], None]


class ArmFailedError(RemoeError):
    """Say which arm could not be run, and why."""


@dataclass(frozen=True)
class Question:
    """Hold a prompt as tokens; forced: what is fed instead of the model's own choices, or None."""

    name: str
    tokens: list[int]
    forced: list[int] | None = None


def run(
    arm: Arm,
    path: str,
    questions: Sequence[Question],
    settings: Settings,
    box: Box,
    progress: Progress,
) -> dict[str, Any]:
    """Run an arm on all questions; return what it said and the kernel's account.

    Whatever ends this, Ctrl-C included, ends the process. Raises ArmFailedError.
    """
    job = {
        "kind": arm.kind,
        "path": path,
        "settings": _settings_of(arm, settings),
        "prompts": [question.__dict__ for question in questions],
        "n_tokens": settings.warm + settings.tokens,
        "usage_file": None if box.usage_file is None else str(box.usage_file),
        "started": time.monotonic(),
    }
    with tempfile.TemporaryFile() as log, _process(box, log) as process:
        result = _listen(arm, process, job, log, box, settings, progress)
        # It lives until its stdin closes.
        account = box.account(process.pid)
        result["peak_bytes"] = account.peak_bytes
        result["peak_source"] = account.source
    return result


@contextlib.contextmanager
def _process(box: Box, log: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        box.command([sys.executable, "-m", "remoe_edge.bench.worker"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        errors="replace",
        cwd="/",  # not the checkout, whose sources hold no compiled core
        start_new_session=True,  # Ctrl-C is ours to pass on
    )
    try:
        yield process
    finally:
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _listen(
    arm: Arm,
    process: subprocess.Popen[str],
    job: dict[str, Any],
    log: Any,
    box: Box,
    settings: Settings,
    progress: Progress,
) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    result: dict[str, Any] = {"prompts": []}
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
    answer: dict[str, Any] = {}
    for line in process.stdout:
        said = json.loads(line)
        if "error" in said:
            raise ArmFailedError(f"{arm.name}: {said['error']}")
        if "done" in said:
            return {**result, **{name: said[name] for name in said if name != "done"}}
        if "load_ms" in said:
            box.check(process.pid)
            result.update(said)
            progress("", 0)
        elif "prompt" in said:
            answer = {"name": said["prompt"]}
            result["prompts"].append(answer)
            progress(said["prompt"], 0)
        elif "ttft_ms" in said:
            answer["ttft_ms"] = said.pop("ttft_ms")
            answer["chosen"] = [said.pop("chosen")]
            answer["decoding"] = [said.pop("at")] * 2
            answer["prefill"] = said
            answer["tokens"] = {}
        else:
            answer["chosen"].append(said.pop("chosen"))
            answer["decoding"][1] = said.pop("at")
            for name, value in said.items():
                answer["tokens"].setdefault(name, []).append(value)
            progress(answer["name"], len(answer["chosen"]) - 1)
    raise ArmFailedError(f"{arm.name}: {_death(process, box, settings, log)}")


def _death(process: subprocess.Popen[str], box: Box, settings: Settings, log: Any) -> str:
    """Say how a process ended that was not done."""
    status = process.wait()
    limit = settings.limits.memory_bytes
    kills = box.oom_kills()
    if kills or (kills is None and status == -signal.SIGKILL and limit is not None):
        sure = "" if kills else "probably "
        return f"{sure}killed by the kernel: it needs more than {mib(limit or 0)}"
    log.seek(0)
    lines = log.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
    ended = f"signal {-status}" if status < 0 else f"status {status}"
    return f"ended with {ended}: {lines[-1] if lines else 'it said nothing'}"


def _settings_of(arm: Arm, settings: Settings) -> dict[str, Any]:
    common: dict[str, Any] = {
        "threads": arm.threads,
        "repack": arm.repack,
        "n_ctx": settings.n_ctx,
        "n_batch": settings.n_batch,
        "n_ubatch": settings.n_ubatch,
        "gpu_layers": settings.gpu_layers,
    }
    if arm.is_stock:
        return common
    return {
        **common,
        "cache": arm.cache,
        "policy": arm.policy,
        "routers": arm.overlay,
        **dict(arm.options),
    }
