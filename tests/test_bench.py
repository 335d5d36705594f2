"""`remoe-edge bench`, whole runs on tiny models: what is counted, what must agree, what stays behind."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import tiny_dense
import tiny_moe
from command_line import Outcome, run, start
from remoe_edge.bench import box, process
from remoe_edge.bench.box import Cgroup, Limits, NoBoxError, boxed
from remoe_edge.convert.extract import extract
from remoe_edge.files import overlay as overlays
from remoe_edge.files import pictures
from remoe_edge.machine.disk import disk_of
from remoe_edge.native import _core
from remoe_edge.units import MIB

N_LAYERS, TOP_K = 3, 2
SHORT = ("--raw", "--limit", "1", "-n", "4", "--warm", "1", "--rounds", "2", "--probe-seconds", "0")
SHORT += ("--workload", "gsm8k", "-t", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    return tiny_moe.make(path, "olmoe", "Q4_0")


def bench(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[Outcome, dict[str, Any]]:
    json_path = Path.cwd() / "record.json"
    json_path.unlink(missing_ok=True)
    outcome = run(capsys, "bench", *args, "-o", json_path)
    return outcome, json.loads(json_path.read_text()) if json_path.exists() else {}


def test_arms_alternate_and_agree(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv_path = tmp_path / "tokens.csv"
    outcome, record = bench(
        capsys, model, *SHORT, "--arms", "stock-mmap,stock-resident,stream:lru,stream:lfu",
        "--cache", "40%", "--csv", csv_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    names = ["stock-mmap", "stock-resident", "stream:lru", "stream:lfu"]
    assert [(r["round"], r["arm"]) for r in record["runs"]] == [
        (round_, name) for round_ in (1, 2) for name in names
    ]
    assert record["complete"]
    assert record["ended"] == "done"
    assert record["differs"] is None
    assert list(record["summary"]) == names
    assert all(name in outcome.out for name in names)
    assert "arms of the same bits: same tokens" in outcome.out
    chosen = {str(each["prompts"][0]["chosen"]) for each in record["runs"]}
    assert len(chosen) == 1
    assert record["model"]["file"] == "tiny.gguf"
    assert record["command"].startswith("remoe-edge bench tiny.gguf --raw")
    assert str(tmp_path) not in json.dumps(record)
    assert (record["touched_bytes"] > model.stat().st_size) == record["machine"]["virtual"]
    check_counts(record, model)

    rows = list(csv.DictReader(io.StringIO(csv_path.read_text())))
    assert len(rows) == len(names) * 2 * 5
    assert [row["timed"] for row in rows[:5]] == ["0", "1", "1", "1", "1"]
    streamed = [row for row in rows if row["arm"] == "stream:lru"]
    assert sum(int(row["misses"]) for row in streamed) == sum(
        sum(each["prompts"][0]["tokens"]["misses"])
        for each in record["runs"]
        if each["arm"] == "stream:lru"
    )
    assert rows[0]["misses"] == ""


def check_counts(record: dict[str, Any], model: Path) -> None:
    file = _core.ModelFile.open(str(model))
    assert len(file.expert_layers) == N_LAYERS
    sizes = {layer.expert_bytes for layer in file.expert_layers}
    for each in record["runs"]:
        prompt = each["prompts"][0]
        tokens = prompt["tokens"]
        assert len(tokens["token_ms"]) == 5
        assert len(prompt["chosen"]) == 6
        assert each["peak_bytes"] > 0
        assert each["major_faults"] >= sum(tokens["major_faults"])
        if each["arm"].startswith("stock"):
            assert "hits" not in tokens
            continue
        by_layer = zip(tokens["layer_hits"], tokens["layer_misses"], strict=True)
        for i, (hits, misses) in enumerate(by_layer):
            assert len(hits) == len(misses) == N_LAYERS
            assert all(h + m == TOP_K for h, m in zip(hits, misses, strict=True))
            assert sum(hits) == tokens["hits"][i]
            assert sum(misses) == tokens["misses"][i]
            assert tokens["bytes_read"][i] == tokens["misses"][i] * next(iter(sizes))
        assert sum(prompt["prefill"]["layer_misses"]) == prompt["prefill"]["misses"]
        assert sum(tokens["misses"]) > 0  # 40 % of the experts are too few


def test_a_text_is_read_token_by_token(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 3)
    more = tmp_path / "more.txt"
    more.write_text("a lazy fox jumps over the quick brown dog " * 3)
    text.with_suffix(".md").write_text(more.read_text())
    outcome, record = bench(
        capsys, model, *SHORT, "--rounds", "1", "--text", text, "--text", more, "--text-prompt", "7",
        "--arms", "stock-mmap,stream:lru", "--cache", "50%",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert record["prompts"] == [
        {"name": "text/text.txt", "n_tokens": 7, "forced": True},
        {"name": "text/more.txt", "n_tokens": 7, "forced": True},
    ]
    for command in (("bench", "--arms", "stream:lru"), ("price",)):
        outcome = run(capsys, *command, model, "--text", text, "--text", text.with_suffix(".md"))
        assert outcome.code == 2
        assert "two texts are named text: name one otherwise" in outcome.err
    text.write_text("short")
    outcome, _ = bench(capsys, model, *SHORT, "--text", text)
    assert "has 5 tokens, and 32 + 5 are to be read" in outcome.error()


@pytest.mark.parametrize("forced", [True, False])
def test_an_arm_guesses_tokens_and_chooses_the_same(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], forced: bool
) -> None:
    what: tuple[str | Path, ...] = ("--workload", "gsm8k")
    if forced:
        text = tmp_path / "text.txt"
        text.write_text("the quick brown fox jumps over the lazy dog. " * 6)
        what = ("--text", text, "--text-prompt", "90")
    outcome, record = bench(
        capsys, model, "--raw", "--limit", "1", "-n", "24", "--warm", "1", "--rounds", "1", "-t", "1",
        "--probe-seconds", "0", *what, "--arms", "stock-mmap,stream:lru,stream:lru+draft=on",
        "--cache", "50%",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    stock, plain, drafted = record["runs"]
    assert stock["drafts"] is plain["drafts"] is None
    assert plain["prompts"][0]["chosen"] == drafted["prompts"][0]["chosen"]
    tokens = drafted["prompts"][0]["tokens"]
    assert len(tokens["token_ms"]) == 25
    guessed, right = drafted["drafts"]["guessed"], drafted["drafts"]["right"]
    assert f"stream:lru+draft=on: {right} of {guessed} guesses right" in outcome.out
    if forced:
        assert right > 6  # the text goes on as it went before, whatever the model would say
        # Tokens that were guessed rightly cost no step of their own.
        of_no_step = [
            hits + misses for hits, misses in zip(tokens["hits"], tokens["misses"], strict=True)
        ]
        assert of_no_step.count(0) == right


def test_lists_make_every_combination(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome, record = bench(
        capsys, model, *SHORT, "--rounds", "1", "-t", "1,2", "--cache", "40%,100%",
        "--arms", "stock-mmap,stream:lru+repack",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert list(record["arms"]) == [
        "stock-mmap threads=1", "stock-mmap threads=2",
        "stream:lru+repack cache=40% threads=1", "stream:lru+repack cache=40% threads=2",
        "stream:lru+repack cache=100% threads=1", "stream:lru+repack cache=100% threads=2",
    ]  # fmt: skip
    assert {arm["bits"] for arm in record["arms"].values()} == {
        "plain, threads 1", "plain, threads 2", "repacked, threads 1", "repacked, threads 2",
    }  # fmt: skip
    assert "other bits (repacked, threads 2 against plain, threads 1)" in outcome.out
    whole = record["runs"][-1]
    assert sum(whole["prompts"][0]["tokens"]["misses"]) < sum(
        record["runs"][2]["prompts"][0]["tokens"]["misses"]
    )


def test_a_dense_model_has_no_cache_to_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_dense.make(tmp_path / "dense.gguf")
    page_path = tmp_path / "page.html"
    outcome, record = bench(
        capsys, path, *SHORT, "--rounds", "1", "--arms", "stock-mmap,stream:lru",
        "--html", page_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert record["model"]["expert_layers"] == 0
    assert "hits" not in record["runs"][1]["prompts"][0]["tokens"]
    if pictures.available():
        assert "No arm has an expert cache." in page_path.read_text()


def test_a_limit_that_cannot_be_set_is_said_before_anything_runs(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NoBoxError("no controller")

    monkeypatch.setattr(box, "Cgroup", refuse)
    monkeypatch.setenv("PATH", str(tmp_path))
    error = run(capsys, "bench", model, *SHORT, "--memory-limit", "1G").error()
    assert "no limit can be set here: no cgroup of our own (no controller)" in error
    assert "run as root" in error


def test_tuned_routers_are_arms_of_their_own(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tmp_path / "tuned.gguf"
    tiny_moe.make(tuned, "olmoe", "Q4_0", seed=1)
    base = tmp_path / "base.gguf"
    base.write_bytes(model.read_bytes())
    overlay = tmp_path / "base.routers.gguf"
    write_overlay(base, tuned, overlay)
    outcome, record = bench(
        capsys, base, *SHORT, "--rounds", "1", "--arms", "stock-mmap,stream:lru", "--cache", "50%",
        "--routers", "off,default",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert list(record["arms"]) == [
        "stock-mmap", "stream:lru routers=off", "stream:lru routers=default",
    ]  # fmt: skip
    stock, off, tuned = (each["prompts"][0]["chosen"] for each in record["runs"])
    assert stock == off
    assert off != tuned
    assert "stream:lru routers=default" in outcome.out
    assert "other bits (plain, threads 1, routers default against plain, threads 1)" in outcome.out


def write_overlay(base: Path, tuned: Path, overlay: Path) -> None:
    """Make an overlay of another model's routers: what they say does not matter here."""
    extract(tuned, overlay, base, rebase=True)
    assert overlays.read_record(overlay)


def test_tokens_that_differ_fail_the_run_and_say_where(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from remoe_edge.bench import session

    honest = process.run

    def tampered(arm: Any, *args: Any) -> dict[str, Any]:
        result = honest(arm, *args)
        if not arm.is_stock:
            result["prompts"][0]["chosen"][3] += 1
        return result

    monkeypatch.setattr(session, "run", tampered)
    outcome, record = bench(capsys, model, *SHORT, "--arms", "stock-mmap,stream:lru")
    assert outcome.code == 1
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith(
        "Error: tokens differ: stock-mmap and stream:lru part at prompt gsm8k/1, token 3: "
    )
    assert record["differs"]["prompt"] == "gsm8k/1"
    assert record["ended"] == "tokens differ"
    assert not record["complete"]
    assert len(record["runs"]) == 2


# --- limits ---


def limited() -> None:
    try:
        with boxed(Limits(64 * MIB)) as held:
            if isinstance(held, Cgroup):
                return
    except NoBoxError as error:
        pytest.skip(str(error))
    pytest.skip("cgroups only through systemd here")


def test_a_memory_limit_holds_for_every_arm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited()
    sizes = {"n_layer": 6, "n_embd": 512, "n_ff_exp": 512, "n_expert": 48, "n_expert_used": 4}
    path = tiny_moe.make(tmp_path / "medium.gguf", "qwen3moe", "Q8_0", **sizes)
    limit = 240 * MIB
    outcome, record = bench(
        capsys, path, *SHORT, "--rounds", "1", "--memory-limit", str(limit), "--cache", "64MiB",
        "--arms", "stock-mmap,stock-resident,stock-mmap+repack,stream:lru",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert record["settings"]["limits"] == {"memory_bytes": limit, "read_bytes_per_s": None}
    assert record["box"].startswith("cgroup")
    assert [each["arm"] for each in record["runs"]] == ["stock-mmap", "stream:lru"]
    assert set(record["skipped"]) == {"stock-resident", "stock-mmap+repack"}
    assert "stock-resident does not fit" in outcome.err
    for each in record["runs"]:
        assert each["peak_source"].startswith("cgroup")
        assert each["peak_bytes"] <= limit
        assert all(n <= limit for n in each["prompts"][0]["tokens"]["memory_bytes"])
    stock, ours = (each["prompts"][0]["tokens"] for each in record["runs"])
    # What the kernel read for ours is what the engine says it read, to the page.
    assert sum(ours["storage_bytes"]) >= sum(ours["bytes_read"]) > 0
    # Stock's mapping does not fit either, and it is read by faults; ours asks for what it wants.
    assert sum(stock["major_faults"]) > sum(ours["major_faults"])
    assert not leftovers()


def test_an_arm_that_the_kernel_kills_is_told_and_the_others_go_on(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited()
    outcome, record = bench(
        capsys, model, *SHORT, "--memory-limit", "24MiB", "--arms", "stream:lru,stock-mmap",
    )  # fmt: skip
    assert outcome.code == 1
    assert set(record["failed"]) == {"stream:lru", "stock-mmap"}
    assert "killed by the kernel: it needs more than 24.00 MiB" in record["failed"]["stream:lru"]
    assert record["runs"] == []
    assert not leftovers()


def leftovers() -> list[Path]:
    mine = f"{box.PREFIX}-{os.getpid()}-*"
    return [*box.CGROUPS.glob(f"*/{mine}"), *box.CGROUPS.glob(mine)]


# --- ends ---


def workers(parent: psutil.Process) -> list[psutil.Process]:
    found = parent.children(recursive=True)
    return [each for each in found if "remoe_edge.bench.worker" in " ".join(each.cmdline())]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_but_a_usable_record(
    model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    record_path, page_path = tmp_path / "part.json", tmp_path / "part.html"
    disk = disk_of(model)
    ahead = None if disk is None else disk.read_ahead_file.read_text()
    args = [
        "bench", model, *SHORT, "--rounds", "100", "--arms", "stock-mmap,stream:lru",
        "-o", record_path, "--html", page_path,
    ]  # fmt: skip
    with start(*args, state=tmp_path) as running:
        running.wait_for("round 1 of 100, stream:lru")
        parent = psutil.Process(running.process.pid)
        children: list[psutil.Process] = []
        while not children:
            children = workers(parent)
        running.process.send_signal(number)
        running.process.send_signal(number)  # impatience spoils nothing
        outcome = running.end()
    assert outcome.code == 130, outcome
    assert "Traceback" not in outcome.err
    assert not [each for each in children if each.is_running() and each.status() != "zombie"]
    name = f"{box.PREFIX}-{parent.pid}-*"
    assert not [*box.CGROUPS.glob(f"*/{name}"), *box.CGROUPS.glob(name)]
    if disk is not None:
        assert disk.read_ahead_file.read_text() == ahead
    record = json.loads(record_path.read_text())
    assert record["ended"] == "interrupted"
    assert not record["complete"]
    assert len(record["runs"]) >= 2
    assert set(record["summary"]) == {"stock-mmap", "stream:lru"}
    assert "not complete: interrupted" in outcome.out
    assert ("<svg" in page_path.read_text()) == pictures.available()


def test_a_killed_bench_takes_its_worker_along(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_path = tmp_path / "part.json"
    # Nobody is left to put the read-ahead back, so it is not touched.
    args = ["bench", model, *SHORT, "--rounds", "100", "--arms", "stream:lru"]
    args += ["--read-ahead", "keep"]
    with start(*args, "-o", record_path, state=tmp_path) as running:
        running.wait_for("round 2 of 100")
        parent = psutil.Process(running.process.pid)
        children: list[psutil.Process] = []
        while not children:
            children = workers(parent)
        running.process.kill()
        running.process.wait()
    gone, alive = psutil.wait_procs(children, timeout=600)
    assert gone
    assert not alive
    # What was written after each run can be compared, although nobody could sum it up.
    outcome = run(capsys, "bench", "compare", record_path, record_path)
    assert outcome.code == 0, outcome
    assert "A is not complete: running" in outcome.err
    box.sweep()
    name = f"{box.PREFIX}-{parent.pid}-*"
    assert not [*box.CGROUPS.glob(f"*/{name}"), *box.CGROUPS.glob(name)]


def test_a_full_disk_is_said_in_a_line_and_the_table_is_not_lost(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name.endswith(".partial"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    target = tmp_path / "record.json"
    outcome = run(
        capsys, "bench", model, *SHORT, "--rounds", "1", "--arms", "stream:lru", "-o", target
    )
    assert outcome.code == 1
    line = f"Error: cannot write {target}: No space left on device; free some space"
    assert outcome.err.splitlines()[-1] == line
    assert "stream:lru" in outcome.out
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_really_full(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        target = small / "tokens.csv"
        outcome = run(
            capsys, "bench", model, *SHORT, "--arms", "stream:lru", "--rounds", "1", "-n", "90",
            "--csv", target,
        )  # fmt: skip
        assert outcome.code == 1
        assert f"cannot write {target}: No space left on device" in outcome.err
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- mistakes ---


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--arms", "stock"), "no arm 'stock'"),
        (("--arms", " , "), "there is no arm to run"),
        (("--workload", "mmlu"), "no workload 'mmlu'"),
        (("--cache", "lots"), "'lots' is not a size"),
        (("--memory-limit", "big"), "'big' is not a size"),
        (("--read-bandwidth", "0"), "a read bandwidth is at least a byte a second"),
        (("--read-ahead", "x"), "--read-ahead x: give KiB, or keep"),
        (("--routers", "/no/such.gguf"), "no routers at /no/such.gguf"),
        (("-o", "/no/such/folder/a.json"), "/no/such/folder does not exist"),
        (("--ctx", "16"), "raise --ctx"),
        (("--text", "/no/such.txt"), "cannot read the text /no/such.txt"),
    ],
)
def test_a_mistake_is_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str
) -> None:
    outcome = run(capsys, "bench", model, *SHORT, *args)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("Error: ")
    assert said in outcome.err
    assert outcome.out == ""


def test_a_record_is_not_written_over_the_model(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = model.read_bytes()
    assert "is the input" in run(capsys, "bench", model, *SHORT, "-o", model).error()
    assert model.read_bytes() == before
    assert "no model at" in run(capsys, "bench", "/no/such.gguf").error()


def test_stock_is_alone_in_its_process(model: Path) -> None:
    job = {
        "kind": "stock-mmap", "path": str(model), "n_tokens": 1, "usage_file": None, "started": 0,
        "settings": {
            "threads": 1, "repack": False, "n_ctx": 64, "n_batch": 32, "n_ubatch": 32,
        },
        "prompts": [{"name": "p", "tokens": [1, 2, 3], "forced": None}],
    }  # fmt: skip
    worker = subprocess.Popen(
        [sys.executable, "-m", "remoe_edge.bench.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps(job) + "\n")
    worker.stdin.flush()
    lines = []
    while not lines or not ({"done", "error"} & lines[-1].keys()):
        lines.append(json.loads(worker.stdout.readline()))
    maps = Path(f"/proc/{worker.pid}/maps").read_text()
    worker.stdin.close()
    assert worker.wait(600) == 0
    assert lines[-1].get("done"), lines
    assert "libllama" in maps
    assert "remoe_edge/_core" not in maps
