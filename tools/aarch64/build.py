"""What is compiled on this machine for aarch64: llama.cpp, the package, and the C++ tests.

All goes through scikit-build-core and CMake, as `pip install` has it, with toolchain.cmake besides.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from aarch64.steps import PROJECT, Place, StepError

TOOLCHAIN = Path(__file__).with_name("toolchain.cmake")
QUICK_LLAMA = Path(__file__).with_name("quick_llama.cmake")
# Cortex-A78AE, the processor of Orin; and one that has what newer Arm processors have.
ORIN_ARCH = "armv8.2-a+dotprod+fp16"
NEWER_ARCH = "armv8.2-a+dotprod+fp16+i8mm+sve"


def llama_version() -> str:
    """Return the pinned version of llama-cpp-python."""
    text = (PROJECT / "pyproject.toml").read_text()
    found = re.search(r'"llama-cpp-python==([\d.]+)"', text)
    if found is None:
        raise StepError("pyproject.toml pins no llama-cpp-python")
    return found.group(1)


class Build:
    """Own the build folders in a place."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._python = ".".join(map(str, sys.version_info[:2]))
        self._host = place.folder / "host"
        self.source = place.folder / f"llama_cpp_python-{llama_version()}"
        self.llama_site = place.folder / "llama"  # what pip would unpack of llama-cpp-python

    def host(self) -> None:
        """Make the environment of this machine's own tools."""
        self._place.command("host", [sys.executable, "-m", "venv", self._host])
        self._place.command("host", [
            self._host / "bin/pip", "install", "scikit-build-core>=0.10", "pybind11>=2.13", "cmake",
            "ninja", "gguf>=0.17",
        ])  # fmt: skip

    def packages(self, wanted: tuple[str, ...], site: Path) -> None:
        """Have this machine's pip unpack aarch64 wheels: an emulated pip would take minutes."""
        platforms = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
        self._place.command("packages", [
            self._host / "bin/pip", "install", "--target", site, "--upgrade", "--only-binary=:all:",
            "--implementation=cp", f"--python-version={self._python}",
            *(f"--platform={platform}" for platform in platforms), *wanted,
        ])  # fmt: skip

    def fetch_llama(self) -> None:
        """Fetch and unpack llama-cpp-python's source, and leave out what the package does not use."""
        version = llama_version()
        self._place.command("llama", [
            self._host / "bin/pip", "download", "--no-deps", "--no-build-isolation",
            "--no-binary=llama-cpp-python", "--dest", self._place.folder,
            f"llama-cpp-python=={version}",
        ], environment=self._environment())  # fmt: skip
        self._place.command("llama", [
            "tar", "-xf", f"{self.source}.tar.gz", "-C", self._place.folder
        ])  # fmt: skip
        # libllama-common serves llama.cpp's programs and pictures: half of the compile time.
        rules = self.source / "CMakeLists.txt"
        rules.write_text(
            rules.read_text().replace("set(LLAMA_BUILD_COMMON ON", "set(LLAMA_BUILD_COMMON OFF")
        )

    def llama(self) -> None:
        """Build llama-cpp-python's wheel for Orin's processor and unpack it."""
        self._wheel(self.source, "build-llama", [
            "-DGGML_NATIVE=OFF", f"-DGGML_CPU_ARM_ARCH={ORIN_ARCH}", "-DLLAVA_BUILD=OFF",
            f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={QUICK_LLAMA}",
        ])  # fmt: skip
        shutil.rmtree(self.llama_site, ignore_errors=True)
        self._place.command("llama", [
            sys.executable, "-m", "zipfile", "-e", self.wheel("llama_cpp_python"), self.llama_site
        ])  # fmt: skip

    def newer_kernels(self) -> Path:
        """Build ggml's processor backend alone, for i8mm and SVE; return the library."""
        build = self._place.folder / "build-newer"
        ggml = self.source / "vendor/llama.cpp/ggml"
        (ggml / "ggml.pc.in").touch()  # not in the archive
        self._place.command("newer", [
            self._tool("cmake"), "-S", ggml, "-B", build, *self._common(), "-DGGML_NATIVE=OFF",
            f"-DGGML_CPU_ARM_ARCH={NEWER_ARCH}", "-DGGML_BUILD_TESTS=OFF",
            "-DGGML_BUILD_EXAMPLES=OFF", "-DBUILD_SHARED_LIBS=ON",
        ])  # fmt: skip
        self._place.command("newer", [
            self._tool("cmake"), "--build", build, "--target", "ggml-cpu", f"-j{self._place.jobs}"
        ])  # fmt: skip
        return next(build.rglob("libggml-cpu.so"))

    def core(self) -> None:
        """Build the package's wheel against that llama.cpp, quickly: it is what computes that counts."""
        self._wheel(PROJECT, "build-core", [
            "-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF",
            f"-DPYTHON_MODULE_EXTENSION={self._suffix()}",
        ])  # fmt: skip

    def cxx_tests(self, sanitizers: str) -> Path:
        """Build the C++ unit tests, the device's too; return the build folder."""
        build = self._place.folder / f"build-tests-{sanitizers.replace(',', '-') or 'plain'}"
        self._place.command("tests", [
            self._tool("cmake"), "-S", PROJECT, "-B", build, *self._common(), "-DREMOE_EXTENSION=OFF",
            "-DREMOE_TESTS=ON", "-DREMOE_DEVICE_TESTS=ON", f"-DREMOE_SANITIZE={sanitizers}",
            f"-DPython_EXECUTABLE={self._host}/bin/python", "-DCMAKE_BUILD_TYPE=None",
            "-DCMAKE_CXX_FLAGS=-O1",
        ], environment=self._environment())  # fmt: skip
        self._place.command(
            "tests", [self._tool("cmake"), "--build", build, f"-j{self._place.jobs}"]
        )
        return build

    def wheel(self, name: str) -> Path:
        """Return the newest wheel of a package."""
        found = sorted(
            (self._place.folder / "wheels").glob(f"{name}-*.whl"), key=lambda w: w.stat().st_mtime
        )
        if not found:
            raise StepError(f"no wheel of {name} in {self._place.folder}/wheels")
        return found[-1]

    def _tool(self, name: str) -> Path:
        return self._host / "bin" / name

    def _common(self) -> list[str]:
        launcher = []
        if shutil.which("ccache"):
            launcher = [f"-DCMAKE_{each}_COMPILER_LAUNCHER=ccache" for each in ("C", "CXX")]
        return ["-G", "Ninja", f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}", *launcher]

    def _suffix(self) -> str:
        return f".cpython-{self._python.replace('.', '')}-aarch64-linux-gnu.so"

    def _environment(self) -> dict[str, str]:
        """Return what makes Python's build tools name another machine, and find its llama.cpp."""
        return {
            "PATH": f"{self._host / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.llama_site),
            "_PYTHON_HOST_PLATFORM": "linux-aarch64",
            "SETUPTOOLS_EXT_SUFFIX": self._suffix(),
            "CMAKE_BUILD_PARALLEL_LEVEL": str(self._place.jobs),
        }

    def _wheel(self, source: Path, build: str, options: list[str]) -> None:
        generator = [word for word in self._common() if word not in ("-G", "Ninja")]
        self._place.command(build, [
            "nice", self._host / "bin/pip", "wheel", "-v", "--no-deps",
            "--no-build-isolation", f"--config-settings=build-dir={self._place.folder / build}",
            "--wheel-dir", self._place.folder / "wheels", source,
        ], environment={
            **self._environment(),
            "CMAKE_ARGS": " ".join([*generator, *options, os.environ.get("CMAKE_ARGS", "")]),
        })  # fmt: skip
