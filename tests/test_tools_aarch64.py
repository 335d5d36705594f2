"""tools/aarch64: what it takes, what its steps leave, and which tests its passes name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import test_lossless
import tiny_moe
import wheels
from aarch64 import emulate, passes, root
from aarch64.build import TOOLCHAIN, llama_version
from aarch64.steps import Place, StepError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "arguments",
    [[], ["f", "--only", "nothing"], ["f", "--again", "nothing"], ["f", "--jobs", "0"],
     ["f", "--suite", "bullseye"]],
    ids=" ".join,
)  # fmt: skip
def test_what_it_does_not_take(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        emulate.parse(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_passes_name_tests_that_exist() -> None:
    assert set(passes.ARCHITECTURES) <= set(tiny_moe.ARCHS)
    assert set(passes.FORMATS) <= set(tiny_moe.QUANTS)
    named = [word for each in passes.all_passes() for word in each.command if "test_" in word]
    assert named
    for word in named:
        file, _, test = word.partition("::")
        assert (ROOT / "tests" / file).is_file()
        if test:
            assert hasattr(test_lossless, test.partition("[")[0])
    names = [each.name for each in passes.all_passes()]
    assert len(names) == len(set(names))


def test_the_emulator_is_told_what_to_be() -> None:
    command = passes.tests("test_storage.py")
    each = passes.Pass("x", command, cpu="max", newer_kernels=True, page_bytes=65536)
    assert each.variables() == {
        "QEMU_CPU": "max", "QEMU_PAGESIZE": "65536", "PYTHONPATH": "/newer"
    }  # fmt: skip
    assert passes.Pass("y", command).variables() == {
        "QEMU_CPU": "cortex-a76", "PYTHONPATH": "/site"
    }  # fmt: skip


def test_a_step_is_done_once_and_again_when_asked(tmp_path: Path) -> None:
    place, times = Place(tmp_path, 1), []
    for _ in range(2):
        place.once("build", lambda: times.append("built"))
    assert times == ["built"]
    place.forget("build")
    place.once("build", lambda: times.append("built"))
    assert times == ["built", "built"]


def test_a_step_that_fails_is_not_done(tmp_path: Path) -> None:
    place = Place(tmp_path, 1)
    words = [sys.executable, "-c", "print('what was wrong'); raise SystemExit(3)"]
    with pytest.raises(StepError, match=r"(?s)failed with 3; .*what was wrong") as said:
        place.once("build", lambda: place.command("build", words))
    assert not place.done("build")
    assert "logs/build.log" in str(said.value)


class Here:
    """Runs on this machine what a root would run emulated."""

    def words(self, command: Sequence[str], cwd: str) -> list[str]:
        """Return the command as it is."""
        return list(command)


@pytest.mark.parametrize(
    ("program", "says", "passed", "counts"),
    [
        ("print('DOTPROD')", "DOTPROD", True, {}),
        ("print('something else')", "DOTPROD", False, {}),
        ("print('DOTPROD'); raise SystemExit(1)", "DOTPROD", False, {}),
    ],
)
def test_a_pass_counts_what_was_said(
    tmp_path: Path, program: str, says: str, passed: bool, counts: dict[str, int]
) -> None:
    each = passes.Pass("x", (sys.executable, "-c", program), says=says)
    result = emulate.run(each, Here(), tmp_path / "log")
    assert (result.passed, result.counts) == (passed, counts)


@pytest.mark.parametrize(
    ("last", "counts"),
    [
        ("3 passed in 2.1s", {"passed": 3}),
        ("1 failed, 2 passed, 4 skipped in 61.00s (0:01:01)",
         {"failed": 1, "passed": 2, "skipped": 4}),
        ("no tests ran in 0.01s", {}),
    ],
)  # fmt: skip
def test_closing_lines_are_counted(last: str, counts: dict[str, int]) -> None:
    assert emulate.counted(last) == counts


def test_programs_run_inside_with_mounts_of_their_own(tmp_path: Path) -> None:
    inner = root.Root(Place(tmp_path / "a b", 1), "bookworm")
    words = inner.words(["python3", "-c", "print(1)"], "/project")
    assert words[:3] == ["unshare", "--mount", "--fork"]
    assert f"chroot '{inner.path}' /usr/bin/env -C /project python3 -c 'print(1)'" in words[-1]


def test_the_toolchain_is_read(tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    script = tmp_path / "say.cmake"
    script.write_text(
        f'include("{TOOLCHAIN}")\n'
        'message("${CMAKE_SYSTEM_PROCESSOR} ${CMAKE_C_COMPILER} ${CMAKE_CXX_COMPILER}")\n'
    )
    said = subprocess.run(["cmake", "-P", script], capture_output=True, text=True, check=True)
    assert said.stderr.split() == ["aarch64", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++"]


def test_the_pinned_llama_is_built() -> None:
    from remoe_edge.native import LLAMA_CPP_PYTHON

    assert llama_version() == LLAMA_CPP_PYTHON


# --- wheels ---


@pytest.mark.parametrize(
    "arguments",
    [["f", "--llama", "w"], ["f", "--machine", "riscv64", "--llama", "w"], ["f", "--machine", "x86_64"],
     ["f", "--machine", "x86_64", "--llama", "w", "--jobs", "0"]],
    ids=" ".join,
)  # fmt: skip
def test_what_wheels_are_not_made_of(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        wheels.parse(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_wheel_of_another_machine_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "llama_cpp_python-1-py3-none-linux_x86_64.whl"
    for llama in (tmp_path / "absent_aarch64.whl", other):
        other.touch()
        words = [str(tmp_path / "out"), "--machine", "aarch64", "--llama", str(llama)]
        assert wheels.main(words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "is no wheel of llama-cpp-python for aarch64" in line


def test_the_compiler_is_told_machine_and_c_library(tmp_path: Path) -> None:
    paths = wheels.wrappers(tmp_path / "zig", Path("/own/python"), "aarch64")
    assert set(paths) == {"cc", "c++", "ar", "ranlib"}
    said = paths["c++"].read_text()
    assert said.endswith('-m ziglang c++ -target aarch64-linux-gnu.2.28 "$@"\n')
    assert paths["ar"].read_text().endswith('-m ziglang ar "$@"\n')
    suffix = ".cpython-311-aarch64-linux-gnu.so"
    for machine in wheels.MACHINES:
        options = wheels.compiling(paths, machine, suffix)
        assert f"-DCMAKE_CXX_COMPILER={paths['c++']}" in options
        assert any("toolchain.cmake" in option for option in options) == (machine == "aarch64")
