"""What can be held of the container recipes and the service without building or running them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from remoe_edge.cli import cli

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")

ROOT = Path(__file__).parent.parent
PACKAGING = ROOT / "packaging"
UNIT = PACKAGING / "systemd/remoe-edge.service"


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


@pytest.mark.parametrize(
    "path", sorted(PACKAGING.glob("*/Dockerfile")), ids=lambda p: p.parent.name
)
def test_recipes_use_instructions_extras_and_options_that_exist(path: Path) -> None:
    known = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "EXPOSE", "ENTRYPOINT", "CMD"}
    found = instructions(path)
    assert {word for word, _ in found} <= known
    assert next(word for word, _ in found if word != "ARG") == "FROM"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"\[([\w,]+)\]'", path.read_text())
    assert extras
    assert {each for some in extras for each in some.split(",")} <= set(
        project["optional-dependencies"]
    )
    # The llama.cpp that computes is the one that the core is built against, and it is built once.
    pinned = next(each for each in project["dependencies"] if each.startswith("llama-cpp-python=="))
    runs = [rest for word, rest in found if word == "RUN"]
    (llama,) = (run for run in runs if "llama-cpp-python" in run)
    assert pinned in llama
    assert "CMAKE_ARGS=" in llama
    (package,) = (run for run in runs if extras[0] in run)
    assert "--no-build-isolation" in package
    assert runs.index(llama) < runs.index(package)
    assert "GGML_CUDA_NO_VMM" in path.read_text()
    assert "CMAKE_CUDA_ARCHITECTURES=" in path.read_text()
    assert any(word == "CMD" and "doctor" in rest for word, rest in found)


def test_the_service_runs_a_command_that_exists() -> None:
    unit = UNIT.read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.M)
    words = shlex.split(line.replace("$MODEL", "model.gguf").replace("$OPTIONS", "--port 8080"))
    assert words[0].endswith("/remoe-edge")
    command = cli.get_command(None, words[1])  # type: ignore[arg-type]
    assert command is not None
    context = command.make_context(words[1], words[2:], resilient_parsing=True)
    assert context.params["cache"] == "auto"
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    grace = next(each for each in command.params if each.name == "grace_s")
    assert int(stop) > float(grace.default)
    assert "LimitMEMLOCK=infinity" in unit


def test_systemd_finds_nothing_but_the_absent_program() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True, check=False
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if "remoe-edge" in line]
    assert [line for line in said if "is not executable" not in line] == []
