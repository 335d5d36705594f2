"""Run llama.cpp's own server tests twice: against its server, and against the same one plugged in.

python tools/plugin/server_tests.py --server build/bin/llama-server --llama-cpp llama.cpp \
    [--model models/remoe-small-q8_0.gguf] [-o docs/results/plugin-server-tests.json] [-- -k completion]

--llama-cpp is the source tree; what its tools/server/tests/requirements.txt names must be installed. The
tests are run from a copy. They load models from the network; here every one is a MoE model instead, so
that tests fail that expect another model's words. What counts is that the same tests pass with the
plug-in as without it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

from server_models import ROOT, fill_cache, fill_tmp

from remoe_edge.cli.results import print_json, write_json

_TESTS = Path("tools/server/tests")
# What the tests start. Without --offline the server would ask the hub for newer files.
_WRAPPER = """#!/bin/sh
{environment}
exec {server} "$@" --offline
"""

# For pytest: the tests first start a server with each model, to have it downloaded. All are there.
_NO_DOWNLOADS = """
def pytest_sessionstart(session):
    import utils
    utils.ServerPreset.load_all = staticmethod(lambda: None)
"""


def main() -> None:
    """Run both, compare, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--server", type=Path, required=True)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=ROOT / "models/remoe-small-q8_0.gguf")
    parser.add_argument("--cache", default="30%")
    parser.add_argument(
        "--rounds", type=int, default=1, help="how often a test that fails is tried"
    )
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("pytest", nargs="*", help="more for pytest, after --")
    given = parser.parse_args()
    outcomes = {name: run(name, given) for name in ("stock", "plugged")}
    passed = {
        name: {t for t, how in found.items() if how == "passed"} for name, found in outcomes.items()
    }
    files = sorted({_file(test) for test in outcomes["stock"]})
    lost = sorted(passed["stock"] - passed["plugged"])
    record = {
        "model": given.model.name,
        "cache": given.cache,
        "tests": len(outcomes["stock"]),
        "passed": {name: len(found) for name, found in passed.items()},
        "passed_without_the_plugin_only": lost,
        "passed_with_it_only": sorted(passed["plugged"] - passed["stock"]),
        "files": {
            file: {
                "tests": sum(_file(test) == file for test in outcomes["stock"]),
                **{n: sum(_file(test) == file for test in found) for n, found in passed.items()},
            }
            for file in files
        },
    }
    print_json(record)
    if given.output is not None:
        write_json(record, given.output)
    sys.exit(1 if lost or not passed["stock"] else 0)


def run(name: str, given: argparse.Namespace) -> dict[str, str]:
    """Run the tests against one server; return each test's outcome, the best of all rounds."""
    plugged = name == "plugged"
    with tempfile.TemporaryDirectory(prefix="server-tests-") as folder:
        tests = copied(given.llama_cpp.resolve(), Path(folder))
        fill_tmp(tests / "tmp", given.model.resolve())
        fill_cache(Path(folder) / "hub", given.model.resolve())
        server = Path(folder) / "server"
        server.write_text(
            _WRAPPER.format(
                environment=plug(given.server, given.cache) if plugged else "",
                server=shlex.quote(str(given.server.resolve())),
            )
        )
        server.chmod(0o755)
        (Path(folder) / "no_downloads.py").write_text(_NO_DOWNLOADS)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([folder, str(tests), os.environ.get("PYTHONPATH", "")]),
            "LLAMA_SERVER_BIN_PATH": str(server),
            "LLAMA_CACHE": str(Path(folder) / "hub"),
        }
        found: dict[str, str] = {}
        for number in range(given.rounds):
            report = Path(folder) / "report.xml"
            words = ["-q", "-p", "no_downloads", "-m", "not slow", f"--junitxml={report}"]
            words += given.pytest
            if number:
                words += ["--last-failed", "--last-failed-no-failures=none"]
            print(f"{name}: pytest {shlex.join(words)}", file=sys.stderr)
            subprocess.run(
                [sys.executable, "-m", "pytest", *words],
                cwd=tests, env=environment, stdout=sys.stderr, check=False,
            )  # fmt: skip
            for case in xml.parse(report).getroot().iter("testcase"):
                test, how = f"{case.get('classname')}::{case.get('name')}", _outcome(case)
                if how == "passed" or test not in found:
                    found[test] = how
        return found


def copied(tree: Path, folder: Path) -> Path:
    """Copy the tests to where they find the tree's chat templates; return their folder."""
    tests = folder / "llama.cpp" / _TESTS
    shutil.copytree(tree / _TESTS, tests)
    (folder / "llama.cpp/models").symlink_to(tree / "models")
    (tests / "tmp").mkdir(exist_ok=True)
    return tests


def plug(server: Path, cache: str) -> str:
    """Ask for the environment that plugs a server in, as shell commands."""
    words = ["plugin", "env", "--cache", cache, "--status", "off", "--for", str(server.resolve())]
    return subprocess.run(
        [sys.executable, "-m", "remoe_edge.cli", *words], check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip


def _outcome(case: xml.Element) -> str:
    found = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
    return found[0] if found else "passed"


def _file(test: str) -> str:
    return test.split("::")[0].split(".")[1]


if __name__ == "__main__":
    main()
