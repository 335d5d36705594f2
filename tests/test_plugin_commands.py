"""`remoe-edge plugin`, what it starts, what it refuses, and what `top` sees of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import plugged
import tiny_moe
from command_line import run
from remoe_edge.plugin import builds, libraries
from remoe_edge.plugin.environment import environment
from remoe_edge.telemetry import exposition
from remoe_edge.telemetry.running_metrics import families
from remoe_edge.telemetry.status import running


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the plug-ins of whoever runs the tests out of them."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_the_environment_is_printed_for_a_shell(
    no_home: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plugged.added()
    done = run(
        capsys, "plugin", "env", "--cache", "1500MiB", "--routers", str(tmp_path / "a b.gguf")
    )
    assert done.code == 0
    script = f'{done.out}\nprintf \'%s\\n\' "$GGML_BACKEND_PATH" "$REMOE_CACHE" "$REMOE_ROUTERS"'
    seen = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    entry, cache, routers = seen.stdout.splitlines()
    assert Path(entry).name == builds.ENTRY
    assert (cache, routers) == ("1500MiB", str(tmp_path / "a b.gguf"))
    assert "REMOE_POLICY" not in done.out  # what was not chosen is left to the environment


def test_the_environment_is_printed_for_a_unit_file(
    no_home: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plugged.added()
    words = ["plugin", "env", "--plain", "--cache", "30%", "--routers"]
    done = run(capsys, *words, str(tmp_path / "a b.gguf"))
    pairs = dict(line.split("=", 1) for line in done.out.splitlines())
    assert pairs["REMOE_CACHE"] == "30%"
    assert pairs["REMOE_ROUTERS"] == str(tmp_path / "a b.gguf")
    assert Path(pairs["GGML_BACKEND_PATH"]).name == builds.ENTRY
    assert "REMOE_ROUTERS" in run(capsys, *words, str(tmp_path / "a\nb")).error()


def test_what_is_chosen_holds_against_the_environment(
    no_home: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    plugged.added()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REMOE_ROUTERS", "default")
    words = ["plugin", "env", "--plain", "--routers", "off", "--status", "folder"]
    lines = run(capsys, *words).out.splitlines()
    assert "REMOE_ROUTERS=off" in lines
    assert f"REMOE_STATUS={tmp_path / 'folder'}" in lines
    assert "REMOE_ROUTERS=default" in run(capsys, *words[:4], "on").out.splitlines()


def test_a_path_that_cannot_be_preloaded_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plugged.added()
    folder = tmp_path / "two words/remoe-edge/plugin"
    folder.mkdir(parents=True)
    shutil.copy(builds.entry(None), folder)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "two words"))
    assert "two words" in run(capsys, "plugin", "env").error()


def test_a_backend_that_is_named_already_is_not_lost(
    no_home: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugged.added()
    monkeypatch.setenv("GGML_BACKEND_PATH", "/opt/libggml-other.so")
    assert "/opt/libggml-other.so" in run(capsys, "plugin", "env").error()
    monkeypatch.setenv("GGML_BACKEND_PATH", "/old/libremoe.so")
    assert "/old/libremoe.so" not in run(capsys, "plugin", "env").out


def test_a_program_is_started_in_that_environment(no_home: None) -> None:
    plugged.added()
    text = "import os, sys; print(os.environ['REMOE_CACHE'], os.environ['REMOE_LOG'], sys.argv[1:])"
    words = [
        "plugin",
        "run",
        "--cache",
        "30%",
        "--log",
        "error",
        "--",
        sys.executable,
        "-c",
        text,
        "-m",
        "x",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "remoe_edge.cli", *words], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout == "30% error ['-m', 'x']\n", done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--cache", "plan:250ms", "--", "true"], "remoe-edge plan"),
        (["run", "--cache", "lots", "--", "true"], "lots"),
        (["run", "--", "no-such-program-here"], "no-such-program-here"),
        (["build", "--llama-cpp", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    no_home: None, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert said in run(capsys, "plugin", *words).error()


def test_a_tree_without_libraries_or_headers_is_refused(
    no_home: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "src").mkdir()
    assert "BUILD_SHARED_LIBS" in run(capsys, "plugin", "build", "--llama-cpp", tmp_path).error()
    lib = libraries.package_folder() / "lib"
    words = ["plugin", "build", "--llama-cpp", tmp_path, "--libraries", lib]
    assert "ggml-backend-impl.h" in run(capsys, *words).error()


@pytest.mark.parametrize("other", ["9.8.7-abcdef", "{}-0123456789abcdef"])
def test_another_build_of_ggml_is_refused_by_name(tmp_path: Path, other: str) -> None:
    # The same plug-in under the name of another build: what a user has after an update of llama.cpp.
    # Its sources may have changed and its version not.
    plugged.added()
    ggml = libraries.of_package()
    core = builds.require_core(ggml, None, "llama-cpp-python")
    other = other.format(ggml.packaged_build)
    (tmp_path / "builds" / other).mkdir(parents=True)
    shutil.copy(core, tmp_path / "builds" / other / builds.CORE)
    entry = Path(shutil.copy(builds.entry(None), tmp_path))
    path = tiny_moe.make(tmp_path / "tiny.gguf", "qwen3moe", "Q8_0")
    text = plugged.PRELUDE + "print(bool(load(sys.argv[1])))"
    added = environment(entry, None, {"cache": "30%"}, {})
    done = subprocess.run(
        [sys.executable, "-c", text, str(path)], env={**os.environ, **added}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "True"  # the program runs, without the plug-in
    said = plugged.said(done)
    for word in (ggml.version, ggml.commit, ggml.id, other, "remoe-edge plugin build"):
        assert word in said
    assert "a cache of" not in said


def test_nothing_is_said_where_the_log_is_off(tmp_path: Path) -> None:
    plugged.added()
    (tmp_path / "builds").mkdir()
    entry = Path(shutil.copy(builds.entry(None), tmp_path))
    path = tiny_moe.make(tmp_path / "tiny.gguf", "qwen3moe", "Q8_0")
    text = plugged.PRELUDE + "print(bool(load(sys.argv[1])))"
    # No core for this build; and a core whose settings are refused.
    for made, loads in (
        (environment(entry, None, {"log": "off"}, {}), "True"),
        (plugged.added(cache="plenty", log="off"), "False"),
        (plugged.added(cache="1KiB", log="off"), "False"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", text, str(path)], env={**os.environ, **made},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.stdout.strip() == loads
        assert plugged.said(done) == ""


def test_the_names_of_builds_are_those_that_the_library_looks_for() -> None:
    ggml = libraries.Ggml("0.9", "ab c/d-dirty", Path("/"), "0123456789abcdef")
    assert ggml.build == "0.9-ab_c_d-dirty-0123456789abcdef"
    assert ggml.packaged_build == "0.9-ab_c_d-dirty"
    assert libraries.Ggml("0.9", "ab", Path("/")).build == "0.9-ab"
    source = (Path(__file__).parent.parent / "csrc/plugin/entry/entry.c").read_text()
    assert all(each in source for each in ("'.'", "'_'", "'-'"))


def test_top_shows_a_plugged_program(tmp_path: Path) -> None:
    path = tiny_moe.make(tmp_path / "tiny.gguf", "qwen3moe", "Q8_0")
    folder = tmp_path / "status"
    folder.mkdir(mode=0o700)
    script = plugged.PRELUDE + (
        "model = load(sys.argv[1]); ctx = context(model)\n"
        "for token in range(5, 45):\n    assert decode(ctx, [token]) == 0\n"
        "print('ready', flush=True); sys.stdin.read()\n"
        "lib.llama_free(ctx); lib.llama_model_free(model); print('freed', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **plugged.added(cache="30%", status=str(folder))},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    end = time.monotonic() + 300
    while time.monotonic() < end:
        (state,) = running([folder])
        if state["totals"]["n_generated"] == 40:
            break
        time.sleep(0.05)
    assert state["totals"]["n_generated"] == 40
    assert state["pid"] == process.pid
    assert state["model"] == str(path)
    assert state["policy"] == "reuse-biased"
    assert state["totals"]["hits"] + state["totals"]["misses"] > 0
    assert 0 < state["budget_bytes"] < path.stat().st_size
    figures = exposition.text(families(running([folder])))
    labels = f'{{model="{path}",pid="{process.pid}"}}'
    assert f"remoe_edge_generated_tokens_total{labels} 40.0" in figures
    assert f"remoe_edge_expert_hits_total{labels} {float(state['totals']['hits'])}" in figures
    process.stdin.close()
    assert process.stdout.readline() == "freed\n"
    assert process.wait() == 0
    assert running([folder]) == []
    assert list(folder.iterdir()) == []  # it took its file away itself


@pytest.mark.slow
def test_top_shows_a_program_of_another_language(tmp_path: Path) -> None:
    """llama-cli asks for its user's language: its status is read by programs, in none of them."""
    compiler = shutil.which("localedef")
    german = tmp_path / "de_DE.UTF-8"
    made = compiler and subprocess.run([compiler, "-i", "de_DE", "-f", "UTF-8", german])
    if not made or made.returncode:
        pytest.skip("no locale with a decimal comma can be made here")
    status = tmp_path / "status"
    status.mkdir(mode=0o700)
    path = tiny_moe.make(tmp_path / "tiny.gguf", "qwen3moe", "Q8_0")
    script = """
        import locale, os
        locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
        assert locale.localeconv()["decimal_point"] == ","
        model = load(sys.argv[1])
        from pathlib import Path
        from remoe_edge.telemetry.status import running
        print([each["pid"] for each in running([Path(sys.argv[2])])] == [os.getpid()])
    """
    os.environ["LOCPATH"] = str(tmp_path)
    try:
        done = plugged.script(script, path, status, cache="30%", status=str(status))
    finally:
        del os.environ["LOCPATH"]
    assert done.stdout.strip() == "True"


def test_each_setting_of_the_page_is_one_that_is_read() -> None:
    root = Path(__file__).parent.parent
    page = (root / "docs/plugin.md").read_text()
    table = set(re.findall(r"^\| `(REMOE_\w+)`", page, re.M))
    code = (root / "csrc/plugin/settings.cc").read_text()
    code += (root / "csrc/plugin/entry/entry.c").read_text()
    assert table == set(re.findall(r'"(REMOE_\w+)"', code))


def test_a_program_without_a_loader_is_not_run_to_find_its_libraries(tmp_path: Path) -> None:
    """LD_TRACE_LOADED_OBJECTS means nothing to a static program: it would simply begin."""
    assert libraries._has_loader(Path(sys.executable).read_bytes())
    whole = bytearray(Path(sys.executable).read_bytes())
    at, size, n = (
        int.from_bytes(whole[i : i + k], "little") for i, k in ((32, 8), (54, 2), (56, 2))
    )
    for i in range(n):
        if whole[at + i * size] == 3:  # PT_INTERP
            whole[at + i * size] = 0  # PT_NULL
    static = tmp_path / "static"
    static.write_bytes(whole)
    static.chmod(0o755)
    assert libraries.of_program(str(static), dict(os.environ)) == (static, None)
    for damaged in (whole[:40], whole[:64], b"\x7fELF" + b"\xff" * 100, b"#!/bin/sh\n", b""):
        static.write_bytes(damaged)
        assert libraries.of_program(str(static), dict(os.environ)) == (static, None)


def test_a_program_with_ggml_within_it_is_refused(
    no_home: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plugged.added()
    program = tmp_path / "llama-static"
    program.write_bytes(Path(sys.executable).read_bytes() + b"\0GGML_BACKEND_PATH\0")
    program.chmod(0o755)
    for words in (["run", "--", program], ["env", "--for", program]):
        assert "BUILD_SHARED_LIBS" in run(capsys, "plugin", *words).error()
    program.write_bytes(b"#!/bin/sh\nGGML_BACKEND_PATH=\0")  # no program of its own
    assert run(capsys, "plugin", "env", "--for", program).code == 0


def test_a_folder_that_cannot_be_made_is_said_before_minutes_are_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remoe_edge.plugin.compiler._run", lambda command: pytest.fail("it began"))
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "x", Path("/proc/nowhere")):
        said = run(capsys, "plugin", "build", "-o", folder)
        assert said.code == 1
        assert "cannot write" in said.error()
