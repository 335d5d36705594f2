"""Run llama.cpp's own server tests twice: against its server, and against the same one plugged in.

python tools/plugin/server_tests.py --server build/bin/llama-server --tests llama.cpp/tools/server/tests \
    [--model models/remoe-small-q8_0.gguf] [-o docs/results/plugin-server-tests.json] [-- -k completion]

The tests load models from the network. Here every server gets one MoE model instead, so that tests fail
that expect another model's words; what counts is that the same tests pass with the plug-in as without.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# What the tests start: the server, with their model replaced.
_WRAPPER = """#!{python}
import os, sys
given, kept = sys.argv[1:], []
while given:
    word = given.pop(0)
    if word in ("--hf-repo", "--hf-file", "-hf", "--model", "-m"):
        given.pop(0)
    elif word != "--offline":
        kept.append(word)
command = {command} + ["--model", {model!r}] + kept
os.execvp(command[0], command)
"""


def main() -> None:
    """Run both, compare, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--server", type=Path, required=True)
    parser.add_argument("--tests", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=ROOT / "models/remoe-small-q8_0.gguf")
    parser.add_argument("--cache", default="30%")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("pytest", nargs="*", help="more for pytest, after --")
    given = parser.parse_args()
    stock = [str(given.server.resolve())]
    plugged = [
        sys.executable,
        "-m",
        "remoe_edge.cli",
        "plugin",
        "run",
        "--cache",
        given.cache,
        "--",
        *stock,
    ]
    outcomes = {
        name: run(name, command, given.tests, given.model.resolve(), given.pytest)
        for name, command in (("stock", stock), ("plugged", plugged))
    }
    passed = {
        name: {t for t, how in found.items() if how == "passed"} for name, found in outcomes.items()
    }
    lost = sorted(passed["stock"] - passed["plugged"])
    record = {
        "model": given.model.name,
        "cache": given.cache,
        "tests": len(outcomes["stock"]),
        "passed": {name: len(found) for name, found in passed.items()},
        "passed_without_the_plugin_only": lost,
        "passed_with_it_only": sorted(passed["plugged"] - passed["stock"]),
    }
    text = json.dumps(record, indent=1) + "\n"
    print(text, end="")
    if given.output is not None:
        given.output.write_text(text)
    sys.exit(1 if lost or not passed["stock"] else 0)


def run(name: str, command: list[str], tests: Path, model: Path, more: list[str]) -> dict[str, str]:
    """Run the tests against one server; return each test's outcome."""
    with tempfile.TemporaryDirectory(prefix="server-tests-") as folder:
        server = Path(folder) / "server"
        server.write_text(_WRAPPER.format(python=sys.executable, command=command, model=str(model)))
        server.chmod(0o755)
        report = Path(folder) / "report.xml"
        pytest = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "not slow",
            f"--junitxml={report}",
            *more,
        ]
        environment = {
            **os.environ, "LLAMA_SERVER_BIN_PATH": str(server),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        print(f"{name}: {shlex.join(pytest)}", file=sys.stderr)
        subprocess.run(pytest, cwd=tests, env=environment, stdout=sys.stderr, check=False)
        cases = xml.parse(report).getroot().iter("testcase")
        return {f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in cases}


def _outcome(case: xml.Element) -> str:
    found = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
    return found[0] if found else "passed"


if __name__ == "__main__":
    main()
