"""A telemetry file: JSON lines of samples, steps and answers, usable however the run ends.

Each line is written whole and at once, with no buffer in between, so that a crash loses nothing but
the line that was being written. When the file can no longer be written, that is said once and the
run goes on.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import remoe_edge
from remoe_edge.engine.observers import Step
from remoe_edge.engine.stats import AnswerStats
from remoe_edge.errors import InputError
from remoe_edge.files.atomic import descriptor_of, refuse_to_replace_model
from remoe_edge.machine.description import describe
from remoe_edge.telemetry.sample import Sample
from remoe_edge.telemetry.sampler import Sampler

FORMAT, VERSION = "remoe-edge-telemetry", 1
IDLE_S = 3.0


class Lines:
    """Append whole lines to a file; safe to use from several threads.

    note: told once, in one line, when the file can no longer be written.
    """

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        refuse_to_replace_model(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        number = descriptor_of(path)
        try:
            self._fd = os.open(path, flags, 0o644) if number is None else os.dup(number)
        except OSError as error:
            raise InputError(f"{path}: telemetry cannot be written: {error.strerror}") from error
        self._path, self._note = path, note
        self._lock = threading.Lock()

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record; nothing after the file has failed or is closed."""
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        # Bytes of a path that are no UTF-8 are lone surrogates here, which JSON writes as escapes.
        line = text.encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            if self._fd < 0:
                return
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._fd, line[written:])
            except OSError as error:
                self._give_up(written, error)

    def _give_up(self, written: int, error: OSError) -> None:
        try:  # leave no half line
            if written:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
        except OSError:
            pass
        self._close()
        self._note(f"telemetry stops: {self._path}: {error.strerror}")

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Recording:
    """Write what an engine does and what the machine does meanwhile; made with `start`.

    Owns its file and its sampler; both end with the engine.
    """

    def __init__(self, lines: Lines, sampler: Sampler, note: Callable[[str], None]) -> None:
        self.sampler = sampler
        self._lines, self._note = lines, note
        self._early: list[Sample] | None = []
        self._answers = self._steps = self._noted = 0
        self._n_running, self._alone = 0, True
        self._began_s = self._first_s = 0.0
        self._lock = threading.Lock()

    @classmethod
    def start(
        cls,
        path: str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] | None = None,
        hz: float = 2.0,
        sampler: Sampler | None = None,
        idle_s: float = IDLE_S,
        note: Callable[[str], None] = lambda line: None,
    ) -> Recording:
        """Open the file, start sampling and, with a power sensor, measure idle for `idle_s`.

        sampler: one that has not been started, instead of one made from `model` and `hz`.
        Raises InputError when the file cannot be written or `hz` is not 1 to 10.
        """
        sampler = sampler or Sampler(model, hz=hz, keep=2)
        recording = cls(Lines(Path(path), note), sampler, note)
        sampler.on_sample = recording.on_sample
        sampler.start()
        try:
            missing = sampler.missing_line()
            if missing:
                note(missing)
            sampler.measure_idle(idle_s)
        except BaseException:
            recording.on_close()
            raise
        return recording

    # --- what is told ---

    def on_sample(self, sample: Sample) -> None:
        """Write a sample; those from before the header wait for it."""
        with self._lock:
            if self._early is not None:
                self._early.append(sample)
                return
        self._lines.write({"record": "sample", **sample.as_json()})

    def on_load(self, facts: Mapping[str, Any]) -> None:
        """Write the header."""
        self._header(facts)

    def on_begin(self, n_prompt: int) -> None:
        """Mark where the energy of an answer begins."""
        self._answers += 1
        self._n_running += 1
        self._alone = self._n_running == 1
        self._steps = 0
        self._first_s = self._began_s = self.sampler.edge()

    def on_step(self, step: Step) -> None:
        """Write what a prompt or a token cost."""
        record: dict[str, Any] = {
            "record": "token",
            "answer": self._answers,
            "index": self._steps,
            "phase": step.phase,
            "n_tokens": step.n_tokens,
            "t_s": round(step.end_s, 6),
            "ttft_ms" if step.phase == "prefill" else "tpot_ms": round(step.ms, 4),
            **step.told(),
        }
        self._steps += 1
        if step.phase == "prefill":
            self._first_s = step.end_s
        self._lines.write(record)

    def on_answer(self, answer: AnswerStats) -> None:
        """Write what the answer cost in all, its energy too, and tell the answer of that."""
        end_s = self.sampler.edge()
        self._n_running -= 1
        # Of answers made side by side nobody knows which took what.
        energy = self.sampler.energy(self._began_s, end_s) if self._alone else None
        self._alone = self._alone or self._n_running == 0
        if energy is not None:
            answer.energy = energy.as_json(answer.n_generated)
            decode = self.sampler.energy(self._first_s, end_s)
            if decode is not None and answer.n_generated > 1:
                told = decode.as_json(answer.n_generated - 1)
                names = ("energy_j", "joules_per_token", "tokens_per_joule")
                answer.energy |= {f"decode_{name}": told[name] for name in names}
        self._lines.write(
            {
                "record": "answer",
                "answer": self._answers,
                "start_s": round(self._began_s, 6),
                "end_s": round(end_s, 6),
                "n_prompt": answer.n_prompt,
                "n_generated": answer.n_generated,
                "stop": answer.stop,
                "ttft_ms": round(answer.ttft_ms, 3) if answer.n_generated else None,
                "tpot_ms": answer.tpot_ms(),
                "hits": answer.hits,
                "misses": answer.misses,
                "bytes_read": answer.bytes_read,
                "stall_ms": round(answer.stall_ms, 3),
                "energy": answer.energy,
            }
        )
        for line in self.sampler.lost[self._noted :]:
            self._note(line)
        self._noted = len(self.sampler.lost)

    def on_close(self) -> None:
        """End the sampling and write the last record. Idempotent."""
        self.sampler.stop()
        self._header({})  # a load that failed has none yet
        self._lines.write(
            {
                "record": "end",
                "t_s": round(time.perf_counter(), 6),
                "sampler_cpu_s": round(self.sampler.cpu_s, 4),
                "lost": list(self.sampler.lost),
            }
        )
        self._lines.close()

    def _header(self, facts: Mapping[str, Any]) -> None:
        sampler = self.sampler
        header = {
            "record": "header",
            "format": FORMAT,
            "version": VERSION,
            "remoe_edge": remoe_edge.__version__,
            "clock": {"t_s": round(time.perf_counter(), 6), "unix_s": round(time.time(), 6)},
            "machine": describe(),
            "engine": dict(facts),
            "sampling": {
                "hz": round(1 / sampler.interval_s, 3),
                "sources": sampler.sources,
                "power_source": sampler.power_source,
                "missing": sampler.missing,
                "idle": None if sampler.idle is None else sampler.idle.as_json(),
            },
        }
        with self._lock:  # samples that come meanwhile follow it
            if self._early is None:
                return
            self._lines.write(header)
            for sample in self._early:
                self._lines.write({"record": "sample", **sample.as_json()})
            self._early = None
