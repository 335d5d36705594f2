"""The process that dies in a trial's stead: tries each set of options that it is told.

Reads {"options": [...]} a line, writes {"end": ..., "text": ...} a line: "right", "refused" or "wrong",
and why.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from pairs.material import Material
from pairs.options import BITS
from pairs.trial import BESIDE, KEPT, Heard, Trial, Wrong
from remoe_edge.engine.lossy import BY_RESIDENTS, MEANS
from remoe_edge.errors import RemoeError

WAIT_S = 10.0  # for threads to end


def _held() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def _left_after(before: tuple[int, int]) -> bool:
    """Say whether more descriptors or threads are there than before, after a while."""
    gc.collect()
    end = time.monotonic() + WAIT_S
    while any(now > then for now, then in zip(_held(), before, strict=True)):
        if time.monotonic() > end:
            return True
        time.sleep(0.01)
    return False


class Trials:
    """Run trials one after another. material: models and files, which stay."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self._references: dict[tuple[str, ...], Heard] = {}

    def run(self, names: Sequence[str]) -> tuple[str, str]:
        """Return how a trial ended and why: "right", "refused" or "wrong"."""
        names = sorted(names)
        try:
            return self._tried(names)
        except Wrong as wrong:
            return "wrong", str(wrong)
        except Exception:
            return "wrong", traceback.format_exc()

    def _tried(self, names: list[str]) -> tuple[str, str]:
        before = _held()
        refused = self._whole(names)
        if _left_after(before):
            # The first of its kind may have made what stays for all: a pool of threads, a library.
            before = _held()
            self._whole(names)
            if _left_after(before):
                raise Wrong(f"descriptors and threads: {before} before, {_held()} afterwards")
        return ("right", "") if refused is None else ("refused", refused)

    def _whole(self, names: list[str]) -> str | None:
        options = dict(each.split("=") for each in names)
        expected: Heard | None = None
        by_residents = any(name in options for name in BY_RESIDENTS)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            trial = Trial(names, self._material, folder)
            refusal = self._refusal(trial, folder)
            if refusal is not None:
                return refusal
            if not by_residents:
                expected = self.reference(names)
            try:
                heard = trial.run(expected)
            except RemoeError as error:
                raise Wrong(f"refused the second time only: {error}") from error
            if expected is not None:
                # In steps of several tokens floats round otherwise, and one token's long context is
                # not split among threads (docs/drafts.md).
                spoils = options.get("model") == "dense" or {"threads", "repack"} & options.keys()
                exact = not ("draft" in options and spoils)
                heard.check(expected, "both", exact=exact)
            elif options.get("cache") not in ("auto", "plan"):  # which follow what memory is free
                other = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                again = Trial(names, self._material, other).run(None)
                if "parallel" in options:
                    # Whose turn is next follows the clock, and what the cache holds follows that.
                    again.answers = {k: v for k, v in again.answers.items() if BESIDE not in k}
                again.check(heard, "the same once more")
            self._read_by_others(trial, options)
        return None

    def _refusal(self, trial: Trial, folder: Path) -> str | None:
        """Open and close it; give the line with which it is refused, None where it is not."""
        try:
            with trial.opened(folder):
                pass
        except RemoeError as error:
            line = str(error)
            if "\n" in line:
                raise Wrong(f"an error of several lines: {line!r}") from error
            if left := list(folder.iterdir()):
                raise Wrong(f"refused ({line}), and files are there: {left}") from error
            return line
        for each in folder.iterdir():
            if each.is_file():
                each.unlink()
        return None

    def _read_by_others(self, trial: Trial, options: dict[str, str]) -> None:
        """Have what was written under an option read by an engine without it."""
        for name in KEPT:
            if name in options:
                # Past prompts are those of the routers that they were answered with.
                keeps = (name, "model", *(["routers"] if name == "past_prompts" else []))
                plain = [f"{k}={v}" for k, v in options.items() if k in keeps]
                expected = self.reference(plain)
                try:
                    Trial(plain, self._material, trial._folder).read_after(trial, expected)
                except RemoeError as error:
                    raise Wrong(f"{name}, read without the other: {error}") from error

    def reference(self, names: Sequence[str]) -> Heard:
        """Give what the plainest engine with the same bits answers."""
        key = tuple(each for each in names if each.partition("=")[0] in BITS)
        if key not in self._references:
            options = [*key, "cache=100%", "prefetch=off"]
            if not any(each.partition("=")[0] in (*MEANS, "routers") for each in key):
                options.append("stream=off")
            with tempfile.TemporaryDirectory() as folder:
                trial = Trial(options, self._material, Path(folder))
                with trial.opened(Path(folder)) as engine:
                    self._references[key] = trial._ask(engine, None)
        return self._references[key]


def main() -> None:
    """Serve until stdin ends. The first argument: the folder of models."""
    folder = Path(sys.argv[1])
    for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        os.environ[name] = str(folder / "home")
    (folder / "home").mkdir(exist_ok=True)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    trials = Trials(Material(folder))
    for line in sys.stdin:
        end, text = trials.run(json.loads(line)["options"])
        print(json.dumps({"end": end, "text": text}), file=answers, flush=True)


if __name__ == "__main__":
    main()
