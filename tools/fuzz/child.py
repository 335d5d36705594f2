"""The process that dies in the fuzzer's stead: opens, checks, loads and runs each file it is told.

Reads a path a line, writes a JSON object a line: `end` is "answered", "refused" (by this package before
llama.cpp saw the file), "llama.cpp" (llama.cpp said no), or "bug" (an exception that is no RemoeError,
or `info` and the engine of two minds); `text` says why. With --needless, what is refused is run all the
same: "needless" is a refusal of what gives an answer, and an abort is one that was rightly refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys

from remoe_edge import Engine
from remoe_edge.errors import RemoeError
from remoe_edge.inspect.info import describe
from remoe_edge.native import _core

ADDRESS_SPACE_BYTES = 8 << 30
_CHECK = _core.ModelFile.check


def run(path: str, needless: bool) -> tuple[str, str]:
    """Load one file and generate from it; return how it ended and why."""
    refusal = None
    try:
        file = _core.ModelFile.open(path)
        _CHECK(file)
    except RemoeError as error:
        refusal = str(error)
    described = None
    try:
        json.dumps(describe(path), allow_nan=False)
    except RemoeError as error:
        described = str(error)
    if needless:
        described = refusal
    if refusal is not None:
        if described is None:
            return "bug", f"info accepts what is refused: {refusal}"
        if not needless:
            return "refused", refusal
    try:
        with Engine(path, cache="100%", n_ctx=64, threads=1, publish=False) as engine:
            list(engine.generate("hello there", max_tokens=2, temperature=0))
            with contextlib.suppress(RemoeError):
                engine.render([{"role": "user", "content": "hi"}])
    except RemoeError as error:
        text = str(error)
        return ("llama.cpp" if "llama.cpp refused" in text else "refused"), text
    if refusal is not None:
        return "needless", refusal
    if described is not None:
        return "bug", f"info refuses what runs: {described}"
    return "answered", ""


def main() -> None:
    """Serve until stdin ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    needless = sys.argv[1:] == ["--needless"]
    if needless:
        _core.ModelFile.check = lambda self: None  # type: ignore[assignment,method-assign]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            end, text = run(line.rstrip("\n"), needless)
        except Exception as error:
            end, text = "bug", f"{type(error).__name__}: {error}"
        answers.write(json.dumps({"end": end, "text": text}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
