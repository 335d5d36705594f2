"""The layers are kept: includes, imports, circles, environment; and the checks do find what is wrong."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rules import cpp_includes, exceptions, layers, python_imports

ROOT = Path(__file__).parent.parent


def unexcused(said: list[str], excused: frozenset[str]) -> list[str]:
    """Leave out what exceptions.py lists, by its text without the line number."""
    return [line for line in said if re.sub(r":\d+:", ":", line, count=1) not in excused]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_imports_point_downwards() -> None:
    assert unexcused(python_imports.upward(ROOT), exceptions.UPWARD_IMPORTS) == []


def test_packages_of_others_stay_in_their_rooms() -> None:
    assert unexcused(python_imports.outside(ROOT), exceptions.OUTSIDE_IMPORTS) == []


def test_the_core_comes_in_by_native_alone() -> None:
    """It brings llama.cpp's libraries in first, wherever they lie, and refuses another build of them."""
    direct = re.compile(
        r"^ *from remoe_edge import .*_core|^ *import remoe_edge\._core", re.MULTILINE
    )
    found = [each for each in ROOT.glob("remoe_edge/**/*.py") if direct.search(each.read_text())]
    assert [each.name for each in found] == ["native.py"]


def test_no_import_circle() -> None:
    circles = [set(each) for each in python_imports.circles(ROOT)]
    assert [each for each in circles if not each <= exceptions.CIRCULAR_MODULES] == []


def test_rooms_do_not_import_each_other() -> None:
    circles = [set(each) for each in python_imports.room_circles(ROOT)]
    assert [each for each in circles if not each <= exceptions.CIRCULAR_ROOMS] == []


def test_environment_variables_are_read_in_cli_only() -> None:
    assert unexcused(python_imports.environment(ROOT), exceptions.ENVIRONMENT) == []


def test_every_imported_package_is_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    declared = {name.lower() for name in re.findall(r'"([A-Za-z][\w.-]*)(?:\[\w+\])?[=<>~]', text)}
    names = importlib.metadata.packages_distributions()
    aliases = {"jtop": ["jetson-stats"]}
    undeclared = {
        package: where
        for package, where in python_imports.third_parties(ROOT).items()
        if package not in sys.stdlib_module_names
        and not {package, *names.get(package, aliases.get(package, [])), *aliases.get(package, [])}
        & {*declared, *(each.replace("-", "_") for each in declared)}
        and package not in exceptions.UNDECLARED_PACKAGES
    }
    assert undeclared == {}


def test_the_picture_shows_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = page.partition("```\n")[2].partition("```")[0]
    folders = [*(ROOT / "remoe_edge").iterdir(), *(ROOT / "csrc").iterdir()]
    rooms = {each.name for each in folders if each.is_dir() and not each.name.startswith("_")}
    assert sorted(room for room in rooms - {"testing"} if f"{room}/" not in picture) == []


def test_includes_point_downwards() -> None:
    assert unexcused(cpp_includes.violations(ROOT), exceptions.INCLUDES) == []


def test_cmake_links_what_the_table_says() -> None:
    table = {name: frozenset(below) for name, below in layers.CPP_LAYERS.items()}
    del table["testing"]  # headers of tests: made with the tests, links nothing
    assert cpp_includes.linked(ROOT) == table


def test_siblings_stand_on_base_alone() -> None:
    for sibling in ("gguf", "storage", "cache", "trace"):
        assert cpp_includes.reach(sibling) == {sibling, "base"}


def test_a_layer_does_not_build_with_a_header_it_may_not_see(tmp_path: Path) -> None:
    """Compile, with the include roots that CMake hands out, what the layers forbid and allow."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    if compiler is None or cmake is None or ninja is None:
        pytest.skip("no compiler, cmake or ninja on PATH")
    project = tmp_path / "project"
    shutil.copytree(ROOT / "csrc", project / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", project)
    configure = [cmake, "-G", "Ninja", "-S", str(project), "-B", str(tmp_path / "build")]
    options = ["-DREMOE_EXTENSION=OFF", "-DREMOE_URING=OFF"]
    subprocess.run([*configure, *options], check=True, capture_output=True)
    include = tmp_path / "build" / "include"

    def builds(layer: str, header: str) -> bool:
        roots = [f"-I{include / each}" for each in cpp_includes.reach(layer)]
        source = project / "csrc" / layer / "try.cc"
        source.write_text(f'#include "{header}"\n')
        command = [compiler, "-std=c++17", "-fsyntax-only", *roots, str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 or f"{header}: No such file" in done.stderr, done.stderr
        return done.returncode == 0

    assert builds("cache", "base/status.h")
    assert builds("runtime", "cache/cache.h")
    assert not builds("cache", "storage/reader.h")  # a sibling
    assert not builds("storage", "cache/cache.h")
    assert not builds("base", "gguf/types.h")  # above
    assert not builds("prefetch", "runtime/slab.h")


def test_a_forbidden_include_is_found(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "csrc/cache/a.cc": '#include "cache/a.h"\n#include "storage/reader.h"\n#include <vector>\n',
            "csrc/base/b.h": '#include "../cache/a.h"\n',
            "csrc/runtime/c.cc": "#include <ggml-cpu.h>\n",
            "csrc/device/d.cc": '#include "ggml.h"\n#include "runtime/c.h"\n',
            "csrc/trace/e.cc": '#include "testing/check.h"\n',
            "csrc/trace/e_test.cc": '#include "testing/check.h"\n#  include "gguf/g.h"\n',
            "csrc/device/f.cc": '#include "pybind11/pybind11.h"\n#include "d.h"\n',
            "csrc/storage/test_reads.h": '#include "testing/check.h"\n',
            "csrc/device/testing/t.h": '#include "testing/check.h"\n#include "bindings/b.h"\n',
            "csrc/attic/g.h": "",
        },
    )
    assert cpp_includes.violations(tmp_path) == [
        "csrc/attic/g.h: no layer is called attic; add it to rules/layers.py",
        "csrc/base/b.h:1: ../cache/a.h goes around the include roots",
        "csrc/cache/a.cc:2: cache may not include storage/reader.h",
        "csrc/device/f.cc:1: only bindings may see pybind11/pybind11.h",
        "csrc/device/f.cc:2: d.h names no layer: write layer/file.h",
        "csrc/device/testing/t.h:2: device may not include bindings/b.h",
        "csrc/runtime/c.cc:1: only device, plugin may see ggml-cpu.h",
        "csrc/trace/e.cc:1: trace may not include testing/check.h",
        "csrc/trace/e_test.cc:2: trace may not include gguf/g.h",
    ]


FORBIDDEN = {
    "at the top": "import remoe_edge.cli.chat\n",
    "from": "from remoe_edge.cli import chat\n",
    "relative": "from ..cli import chat\n",
    "in a function": "def f():\n    from remoe_edge.cli.chat import main\n",
    "in a class, under if": "class A:\n    if True:\n        from remoe_edge.cli import chat\n",
    "for types": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from remoe_edge.cli import chat\n"
    ),
    "else of types": (
        "import typing as t\nif t.TYPE_CHECKING:\n    pass\nelse:\n    from ..cli import chat\n"
    ),
}


@pytest.mark.parametrize("text", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_forbidden_import_is_found(tmp_path: Path, text: str) -> None:
    package = {"remoe_edge/cli/__init__.py": "", "remoe_edge/cli/chat.py": ""}
    write(tmp_path, {**package, "remoe_edge/engine/a.py": text})
    (said,) = python_imports.upward(tmp_path)
    assert re.fullmatch(r"remoe_edge/engine/a\.py:\d+: remoe_edge\.cli.* is above engine", said)


def test_other_imports_that_are_refused(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "remoe_edge/engine/a.py": "from remoe_edge import Engine, __version__\n",
            "remoe_edge/engine/b.py": "import remoe_edge\nx = remoe_edge.__version__\n",
            "remoe_edge/engine/c.py": "import remoe_edge\nx = remoe_edge.Engine\n",
            "remoe_edge/attic/b.py": "from remoe_edge.errors import X\nimport click\n",
            "remoe_edge/errors.py": "import torch.nn\nfrom llama_cpp.server import app\n",
            "remoe_edge/cli/c.py": "import click\nfrom remoe_edge.engine import a\n",
            "remoe_edge/plan/d.py": "import os\nfrom os import getenv\nx = os.environ['A']\n",
        },
    )
    assert python_imports.upward(tmp_path) == [
        "remoe_edge/attic/b.py:1: no layer holds attic; add it to rules/layers.py",
        "remoe_edge/engine/a.py:1: imports from the facade remoe_edge more than its version",
        "remoe_edge/engine/c.py:1: imports from the facade remoe_edge more than its version",
    ]
    assert python_imports.outside(tmp_path) == [
        "remoe_edge/attic/b.py:2: click belongs to cli",
        "remoe_edge/errors.py:1: torch belongs to tune",
        "remoe_edge/errors.py:2: llama_cpp.server belongs to serve",
    ]
    assert python_imports.environment(tmp_path) == [
        "remoe_edge/plan/d.py:2: reads the environment",
        "remoe_edge/plan/d.py:3: reads the environment",
    ]


def test_circles_are_found_and_types_close_none(tmp_path: Path) -> None:
    typing = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
    write(
        tmp_path,
        {
            "remoe_edge/__init__.py": "from remoe_edge.files.a import x\n",
            "remoe_edge/files/a.py": "from remoe_edge import __version__\nimport remoe_edge.files.b\n",
            "remoe_edge/files/b.py": "def f():\n    from remoe_edge.machine import c\n",
            "remoe_edge/machine/c.py": "from remoe_edge.files.a import f\n",
            "remoe_edge/inspect/f.py": "from remoe_edge.telemetry import g\n",
            "remoe_edge/telemetry/g.py": "import inspect\n",  # Python's own
            "remoe_edge/machine/d.py": f"{typing}from remoe_edge.routing import e\n",
            "remoe_edge/routing/e.py": "from remoe_edge.machine.d import f\n",
        },
    )
    assert python_imports.circles(tmp_path) == [
        ("remoe_edge.files.a", "remoe_edge.files.b", "remoe_edge.machine.c")
    ]
    assert python_imports.room_circles(tmp_path) == [("files", "machine")]


def test_exceptions_are_still_needed() -> None:
    """What no longer breaks a rule leaves the list, so that it only shrinks."""
    checks = [
        (python_imports.upward, exceptions.UPWARD_IMPORTS),
        (python_imports.outside, exceptions.OUTSIDE_IMPORTS),
        (python_imports.environment, exceptions.ENVIRONMENT),
        (cpp_includes.violations, exceptions.INCLUDES),
    ]
    for check, excused in checks:
        said = {re.sub(r":\d+:", ":", line, count=1) for line in check(ROOT)}
        assert sorted(excused - said) == []
    assert set().union(*python_imports.circles(ROOT)) >= exceptions.CIRCULAR_MODULES
    assert set().union(*python_imports.room_circles(ROOT)) >= exceptions.CIRCULAR_ROOMS
