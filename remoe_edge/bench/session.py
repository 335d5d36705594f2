"""A bench: every arm once a round, A B A B, and what came of it as one record."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from remoe_edge.bench import conditions, summary
from remoe_edge.bench.arms import Arm
from remoe_edge.bench.box import boxed, sweep
from remoe_edge.bench.disturbances import DisturbanceMeter
from remoe_edge.bench.host_memory import bring_back
from remoe_edge.bench.power import PowerMeter
from remoe_edge.bench.process import ArmFailedError, Question, run
from remoe_edge.bench.record import FORMAT, VERSION
from remoe_edge.bench.settings import Settings
from remoe_edge.engine.interrupt import held_back
from remoe_edge.engine.kv_cache import kv_bytes
from remoe_edge.errors import InputError
from remoe_edge.machine import memory
from remoe_edge.machine.description import describe
from remoe_edge.machine.disk import disk_of, drop_page_cache, read_ahead
from remoe_edge.native import _core
from remoe_edge.units import MIB, mib

# What a process takes besides the model: Python, llama.cpp's code, its compute buffers.
_PROCESS_BYTES = 384 * MIB


@dataclass
class Session:
    """Run arms on a model and fill in `record`, which is whole and true after every run.

    say: takes a line for people. progress: takes arm, round, prompt and tokens answered, often.
    saved: called with the record after every run.
    """

    path: Path
    arms: Sequence[Arm]
    questions: Sequence[Question]
    settings: Settings
    command: str
    say: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, str, int], None] = lambda arm, round_, prompt, n: None
    saved: Callable[[dict[str, Any]], None] = lambda record: None
    record: dict[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Run all rounds and return the record.

        Ctrl-C is raised again, the record then holds what was finished and says so. Arms that fail are
        left out from then on, and named under `failed`. Tokens that differ between arms of the same
        bits end the run: they stand under `differs`.
        """
        file = _core.ModelFile.open(str(self.path))
        if self.settings.n_ctx == 0:
            self.settings = replace(self.settings, n_ctx=self._needed_context())
        self._check_context()
        sweep()
        disk = disk_of(self.path)
        with boxed(self.settings.limits, disk):
            pass  # rather refused now than after the probe
        self.record.update(self._head(disk))
        arms = [arm for arm in self.arms if self._fits(arm, file)]
        if not arms:
            raise InputError("; ".join(self.record["skipped"].values()))
        with read_ahead(disk, self.settings.read_ahead_kib) as set_to:
            self.record["read_ahead"] = set_to.__dict__
            self.say(f"read-ahead: {set_to.kib} KiB ({set_to.note})")
            meter = PowerMeter.of(self.path, self.settings.idle_seconds)
            self.record["power"] = meter.about()
            self.say(f"power: {self.record['power']['source'] or 'no sensor of the total'}")
            try:
                self._rounds(arms, file, disk, meter)
            except KeyboardInterrupt:
                self.record["ended"] = "interrupted"
                raise
            finally:
                with held_back():
                    meter.close()
                    self._finish()
        return self.record

    def _rounds(self, arms: list[Arm], file: _core.ModelFile, disk: Any, meter: PowerMeter) -> None:
        limit = self.settings.limits.memory_bytes
        most_used = sum(file.file_bytes) + _PROCESS_BYTES if limit is None else limit
        is_virtual = bool(self.record["machine"]["virtual"])
        said_dropped = ""
        for number in range(1, self.settings.rounds + 1):
            for arm in arms:
                if arm.name in self.record["failed"]:
                    continue
                dropped = drop_page_cache(file.paths)
                if dropped != said_dropped:
                    self.say(f"page cache: {dropped}")
                    said_dropped = self.record["page_cache"] = dropped
                self.record["touched_bytes"] = bring_back(most_used) if is_virtual else 0
                try:
                    result = self._run(arm, number, disk, meter)
                except ArmFailedError as error:
                    self.record["failed"][arm.name] = str(error)
                    self.say(str(error))
                    continue
                self.record["runs"].append(result)
                self._tell(result)
                difference = summary.difference(self.record)
                if difference is not None:
                    self.record["differs"] = difference
                    self.record["ended"] = "tokens differ"
                    return
                self.saved(self.record)
        self.record["complete"] = True
        self.record["ended"] = "done"

    def _run(self, arm: Arm, number: int, disk: Any, meter: PowerMeter) -> dict[str, Any]:
        with boxed(self.settings.limits, disk) as box:
            self.record["box"] = box.how
            watch = DisturbanceMeter(in_box=self.settings.limits.memory_bytes is not None)

            def progress(prompt: str, n_tokens: int) -> None:
                watch.tick()
                self.progress(arm.name, number, prompt, n_tokens)

            meter.start()
            path = str(self.path.absolute())  # shards are found beside the link, not its target
            result = run(arm, path, self.questions, self.settings, box, progress)
        windows = [prompt.pop("decoding") for prompt in result["prompts"]]
        n_tokens = sum(len(prompt["tokens"]["token_ms"]) for prompt in result["prompts"])
        power = meter.stop(windows, n_tokens)
        found = watch.finish(result["cpu_seconds"])
        return {
            "arm": arm.name,
            "round": number,
            **result,
            **power,
            "marks": found.marks,
            "machine": found.figures,
        }

    def _tell(self, run: dict[str, Any]) -> None:
        timed = [
            each
            for prompt in run["prompts"]
            for each in prompt["tokens"]["token_ms"][self.settings.warm :]
        ]
        disturbed = ", disturbed" if run["marks"] else ""
        self.say(
            f"round {run['round']} of {self.settings.rounds}, {run['arm']}: "
            f"{sum(timed) / len(timed):.1f} ms/token, first token after "
            f"{run['first_token_ms'] / 1000:.2f} s{disturbed}"
        )

    def _needed_context(self) -> int:
        longest = max(len(question.tokens) for question in self.questions)
        needed = longest + self.settings.warm + self.settings.tokens
        return -(-needed // 256) * 256

    def _check_context(self) -> None:
        for question in self.questions:
            needed = len(question.tokens) + self.settings.warm + self.settings.tokens
            if needed > self.settings.n_ctx:
                raise InputError(
                    f"{question.name} needs {needed} tokens of context and there are "
                    f"{self.settings.n_ctx}: raise --ctx"
                )

    def _fits(self, arm: Arm, file: _core.ModelFile) -> bool:
        """Say whether an arm that holds all weights has room for them; note it if not."""
        if arm.kind != "stock-resident" and not (arm.is_stock and arm.repack):
            return True
        weights = sum(file.file_bytes)
        need = weights + (kv_bytes(file, self.settings.n_ctx) or 0) + _PROCESS_BYTES
        limit = self.settings.limits.memory_bytes
        room = memory.available().available_bytes if limit is None else limit
        if need <= room:
            return True
        whole = "" if arm.kind == "stock-resident" else " (rearranged weights are not mapped)"
        reason = f"{arm.name} does not fit: it holds all weights{whole}, about {mib(need)} in all, "
        self.record["skipped"][arm.name] = reason + f"and has {mib(room)}"
        self.say(self.record["skipped"][arm.name])
        return False

    def _head(self, disk: Any) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "command": self.command,
            "started": _now(),
            "finished": None,
            "complete": False,
            "ended": "running",
            "machine": describe(),
            "software": conditions.software(),
            "storage": conditions.storage(self.path, disk, self.settings.probe_seconds),
            "model": conditions.model(self.path),
            "settings": self.settings.as_json(),
            "box": "none",
            "page_cache": "",
            "touched_bytes": 0,
            "read_ahead": None,
            "power": None,
            "arms": {arm.name: arm.as_json() for arm in self.arms},
            "prompts": [
                {"name": each.name, "n_tokens": len(each.tokens), "forced": each.forced is not None}
                for each in self.questions
            ],
            "skipped": {},
            "failed": {},
            "differs": None,
            "runs": [],
            "summary": {},
        }

    def _finish(self) -> None:
        self.record["finished"] = _now()
        if self.record["ended"] == "running":
            self.record["ended"] = "failed"
        with contextlib.suppress(KeyError):
            self.record["summary"] = summary.summarise(self.record)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
