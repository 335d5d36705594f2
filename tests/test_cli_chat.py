"""`remoe-edge chat`: what it prints where, how it talks, and how it fails."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path

import gguf
import pytest
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

import remoe_edge
import tiny_moe
from command_line import SECONDS, run, start
from remoe_edge import Engine
from remoe_edge.cli import terminal
from remoe_edge.cli.conversation import Conversation
from remoe_edge.errors import InputError
from remoe_edge.files import models
from remoe_edge.machine import memory

GREEDY = ("--temp", "0", "-n", "8")
STATISTICS = re.compile(
    r"\d+ tokens, [\d.]+ tok/s, TTFT [\d.]+ s, hit rate [\d.]+ %, [\d.]+ MiB/token"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("chat") / "tiny.gguf", "qwen3moe", "Q4_0")


@pytest.fixture(scope="module")
def long_winded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Among so many tokens a random model hardly ever finds the one that ends an answer.
    path = tmp_path_factory.mktemp("long") / "long.gguf"
    return tiny_moe.make(path, "qwen3moe", "Q4_0", n_vocab=8192)


def with_template(source: Path, target: Path, template: str | None) -> Path:
    """Copy a model with another chat template, or with none."""
    key = gguf.Keys.Tokenizer.CHAT_TEMPLATE
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "qwen3moe", endianess=reader.endianess)
    new = {} if template is None else {
        key: MetadataDetails(gguf.GGUFValueType.STRING, template)
    }  # fmt: skip
    copy_with_new_metadata(reader, writer, new, [key] if template is None else [])
    return target


# --- one answer ---


def test_every_option_exists(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "chat", "--help").out
    options = """
        -m -p --temp --top-k --top-p --min-p --seed -n --ctx -t --cache --policy --prefetch --routers
        --no-stream --json --repeat-penalty --system --raw --max-tokens --threads --verbose
        --no-repack --io --direct --no-direct --depth --ubatch --flash-attention --model --prompt
    """
    for name in options.split():
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", text), name


def test_the_answer_is_on_stdout_and_the_rest_on_stderr(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Engine(model) as engine:
        messages = [{"role": "user", "content": "hello there"}]
        expected = "".join(engine.chat(messages, temperature=0, max_tokens=8))
        assert engine.answer.n_generated == 8
    outcome = run(capsys, "chat", "-m", model, "-p", "hello there", *GREEDY)
    assert outcome.code == 0
    assert outcome.out == expected + "\n"
    lines = outcome.err.splitlines()
    assert STATISTICS.fullmatch(lines[0]), lines
    assert lines[1:] == ["the answer ended at 8 tokens: raise -n for more"]


def test_json_is_one_object_with_the_promised_fields(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capsys, "chat", "-m", model, "-p", "hello", *GREEDY, "--json", "--cache", "50%")
    assert outcome.code == 0
    assert outcome.out.count("\n") == 1
    result = json.loads(outcome.out, parse_constant=lambda name: pytest.fail(name))
    assert result["text"]
    assert result["n_prompt"] > 5
    assert result["n_generated"] == 8
    assert result["streamed"] is True
    for name in ("load_ms", "ttft_ms", "peak_rss_bytes"):
        assert result[name] > 0, name
    assert {"mean", "p50", "p99"} <= set(result["tpot_ms"])
    cache = result["cache"]
    assert cache["slots"] == 15
    assert cache["policy"] == "reuse-biased"
    assert cache["budget_bytes"] > 0
    assert cache["misses"] > 0
    decode = cache["decode"]
    assert decode["hits"] + decode["misses"] == 7 * 3 * 4  # 7 decoded tokens, 3 layers, top-4
    assert cache["hits"] + cache["misses"] > decode["hits"] + decode["misses"]
    assert cache["bytes_read"] % cache["misses"] == 0  # every expert is of the same size
    assert cache["bytes_read"] // cache["misses"] * 3 * 10 == cache["expert_bytes"]
    assert cache["ffn_ms"] > cache["stall_ms"] > 0  # misses are waited for, inside the FFNs
    assert set(result["io"]) >= {"backend", "direct", "depth"}


def test_one_token_has_no_time_per_token(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "chat", "-m", model, "-p", "x", "-n", "1", "--json")
    result = json.loads(outcome.out, parse_constant=lambda name: pytest.fail(name))
    assert result["n_generated"] == 1
    assert result["tpot_ms"]["mean"] is None


def test_streamed_or_not_the_text_is_the_same(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("chat", "-m", model, "-p", "hello", "--temp", "0", "-n", "24", "--no-repack", "--json")
    streamed = json.loads(run(capsys, *ask, "--cache", "20%").out)
    outcome = run(capsys, *ask, "--no-stream")
    whole = json.loads(outcome.out)
    assert whole["text"] == streamed["text"]
    assert whole["n_generated"] == streamed["n_generated"]
    assert (streamed["streamed"], whole["streamed"]) == (True, False)
    assert (whole["cache"], whole["io"]) == (None, None)
    assert "not streamed: the model is loaded whole" in outcome.err


def test_the_same_seed_gives_the_same_answer(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(seed: str) -> str:
        return run(capsys, "chat", "-m", model, "-p", "x", "-n", "16", "--seed", seed).out

    assert answer("7") == answer("7")
    assert answer("7") != answer("8")


def test_sampling_and_engine_options_reach_the_engine(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(
        capsys, "chat", "-m", model, "-p", "x", "-n", "3", "--json", "--top-k", "5", "--top-p",
        "0.5", "--min-p", "0", "--repeat-penalty", "1.1", "-t", "1", "--ctx", "64", "--policy",
        "lfu", "--io", "pread", "--no-direct", "--depth", "3", "--ubatch", "4",
        "--flash-attention", "on", "--cache", "700KiB",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    result = json.loads(outcome.out)
    assert (result["threads"], result["n_ctx"]) == (1, 64)
    assert result["cache"]["policy"] == "lfu"
    assert result["cache"]["budget_bytes"] <= 700 * 1024
    assert (result["io"]["backend"], result["io"]["direct"], result["io"]["depth"]) == (
        "pread", False, 3,
    )  # fmt: skip


def test_a_prompt_from_stdin(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_option = run(capsys, "chat", "-m", model, "-p", "two\nlines", *GREEDY)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"two\nlines")))
    by_stdin = run(capsys, "chat", "-m", model, "-p", "-", *GREEDY)
    assert by_stdin.out == by_option.out
    assert by_stdin.code == 0


def test_a_system_text_is_heard(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ("chat", "-m", model, "-p", "x", *GREEDY, "--json")
    without = json.loads(run(capsys, *ask).out)
    told = json.loads(run(capsys, *ask, "--system", "be brief").out)
    assert told["n_prompt"] > without["n_prompt"]


def test_raw_continues_the_text_as_it_is(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Engine(model) as engine:
        n_prompt = len(engine.tokenize("ab cd"))
        expected = "".join(engine.generate("ab cd", temperature=0, max_tokens=8))
    outcome = run(capsys, "chat", "-m", model, "-p", "ab cd", "--raw", *GREEDY, "--json")
    result = json.loads(outcome.out)
    assert (result["text"], result["n_prompt"]) == (expected, n_prompt)


def test_a_model_without_a_template_continues_text(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = with_template(model, tmp_path / "plain.gguf", None)
    outcome = run(capsys, "chat", "-m", plain, "-p", "ab cd", *GREEDY)
    assert outcome.code == 0, outcome
    assert outcome.err.splitlines()[0] == "this model has no chat template: it continues the text"
    assert outcome.out == run(capsys, "chat", "-m", model, "-p", "ab cd", "--raw", *GREEDY).out


def test_a_dense_model_runs_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = tiny_moe.make(tmp_path / "dense.gguf", "deepseek2", "Q8_0", n_dense_lead=3)
    outcome = run(capsys, "chat", "-m", dense, "-p", "x", *GREEDY)
    assert outcome.code == 0, outcome
    assert outcome.err.count("nothing to stream") == 1
    assert "not streamed" in outcome.err


# --- what can go wrong ---


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--cache", "1KiB"), r"below the floor .* use --cache \d+KiB or more"),
        (("--cache", "much"), "'much' is not a size"),
        (("--cache", "0%"), "not between 0% and 100%"),
        (("--policy", "best"), "no policy 'best' .* lru"),
        (("--policy", "belady"), "no policy 'belady' for a running engine"),
        (("--routers", "nowhere.gguf"), "nowhere.gguf"),
        (("--routers", "default"), "no router overlay .* beside"),
        (("--routers", "x.gguf", "--no-stream"), "routers .* streaming"),
        (("--ctx", "8"), "tokens do not fit the context of 8: raise --ctx"),
        (("--ctx", "99999999999"), "context of 99999999999 tokens .* lower --ctx"),
        (("--cache", "nan%"), "not between 0% and 100%"),
        (("-t", "513"), "513 threads"),
        (("--depth", "100000"), "depth 100000"),
    ],
)
def test_an_option_that_cannot_be_met_is_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    outcome = run(capsys, "chat", "-m", model, "-p", "hello there", *args)
    lines = outcome.err.splitlines()
    assert outcome.code == 1, outcome
    assert outcome.out == ""
    assert re.search(message, lines[-1]), lines
    assert lines[-1].startswith("Error: ")
    assert "Traceback" not in outcome.err


def test_a_context_that_memory_cannot_hold_is_refused_before_it_is_tried(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = memory.Memory(3 << 20, "a small board", None)
    monkeypatch.setattr(memory, "available", lambda: room)
    ask = ("chat", "-m", model, "-p", "x", "-n", "1", "--cache", "50%")
    error = run(capsys, *ask, "--ctx", "4096").error()
    assert "3.00 MiB are left by a small board: lower --ctx" in error
    assert run(capsys, *ask, "--ctx", "1024").code == 0


def test_a_cache_beyond_all_experts_holds_them_all(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("chat", "-m", model, "-p", "x", "-n", "1", "--json", "--cache")
    for cache in ("1TiB", "1000TiB"):
        assert json.loads(run(capsys, *ask, cache).out)["cache"]["slots"] == 30
    assert "more than any machine has" in run(capsys, *ask, "99999999999TiB").error()


def test_the_floor_that_an_error_names_is_enough(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = run(capsys, "chat", "-m", model, "-p", "x", "--cache", "1KiB").error()
    found = re.search(r"--cache (\d+)KiB", message)
    assert found is not None
    floor = int(found[1])
    enough = run(capsys, "chat", "-m", model, "-p", "x", "-n", "3", "--cache", f"{floor}KiB")
    assert enough.code == 0, enough
    run(capsys, "chat", "-m", model, "-p", "x", "--cache", f"{floor - 1}KiB").error()


def test_files_that_are_no_models(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"not a model at all, however long it goes on")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    missing = tmp_path / "missing.gguf"
    for path, message in (
        (junk, "not a GGUF"), (cut, "lie beyond the file"), (missing, "no model at"),
        (tmp_path, "no model at"),
    ):  # fmt: skip
        error = run(capsys, "chat", "-m", path, "-p", "x").error()
        assert str(path) in error
        assert message in error


def test_an_overlay_must_be_one(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = run(capsys, "chat", "-m", model, "-p", "x", "--routers", model).error()
    assert "is not a router overlay" in error


@pytest.mark.parametrize("prompt", ["", "  \n "])
def test_an_empty_prompt_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str], prompt: str
) -> None:
    assert "the prompt is empty" in run(capsys, "chat", "-m", model, "-p", prompt).error()


def test_a_template_that_fails_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picky = with_template(model, tmp_path / "m.gguf", "{{ raise_exception('only poems') }}")
    error = run(capsys, "chat", "-m", picky, "-p", "x").error()
    assert "chat template" in error
    assert "only poems" in error


@pytest.mark.parametrize(
    "args", [("--json",), ("-p", "x", "--bogus"), ("-p", "x", "-n", "0"), ("--temp", "-1")]
)
def test_wrong_usage_exits_with_2(
    model: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
) -> None:
    outcome = run(capsys, "chat", "-m", model, *args)
    assert outcome.code == 2
    assert "Error: " in outcome.err
    assert outcome.out == ""


def test_bytes_that_are_no_text_are_no_crash(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capsys, "chat", "-m", model, "-p", "caf\udce9", *GREEDY)
    assert outcome.code == 0, outcome
    assert "Traceback" not in outcome.err


def test_a_full_disk_and_a_closed_pipe(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "remoe_edge.cli", "chat", "-m", str(model), "-p", "x", *GREEDY]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=SECONDS)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["Error: No space left on device"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*command[:3], "--help"], stdout=full, stderr=subprocess.PIPE, timeout=SECONDS
        )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["Error: No space left on device"]

    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, timeout=SECONDS)
    os.close(write_end)
    assert done.returncode == 1
    assert done.stderr == b""


def test_ctrl_c_ends_a_single_answer_with_what_there_is(long_winded: Path, tmp_path: Path) -> None:
    args = ("chat", "-m", long_winded, "-p", "x", "--temp", "0", "-n", "2000", "--ctx", "2048")
    with start(*args, state=tmp_path) as running:
        running.wait_for_output()
        running.process.send_signal(signal.SIGINT)
        outcome = running.end()
    assert outcome.code == 130, outcome
    assert outcome.out.endswith("\n")
    n_generated = int(outcome.err.split(" tokens")[0])
    assert 0 < n_generated < 2000
    assert len(outcome.err.splitlines()) == 1


# --- the interactive session ---


def test_a_session_of_piped_lines(model: Path, tmp_path: Path) -> None:
    with start("chat", "-m", model, *GREEDY, state=tmp_path) as running:
        running.type("one\n/stats\n/help\n/what\n\n/reset\ntwo \\\nlines\n")
        outcome = running.end()
    assert outcome.code == 0, outcome
    assert len(STATISTICS.findall(outcome.err)) == 2
    told = [line for line in outcome.err.splitlines() if re.match(r"[a-z ]+  +\S", line)]
    names = [re.split("  +", line)[0] for line in told]
    assert names[:8] == [
        "model", "last answer", "speed", "cache", "hits", "reads", "prefetch", "memory",
    ]  # fmt: skip
    assert not re.search(r"[{}\[\]]|None|_bytes|_ms", "".join(told[:8]))
    for unit in ("tokens/s", "ms per token", "MiB", "experts", "%", "threads", "in flight"):
        assert unit in "".join(told), unit
    assert "/reset   forget the conversation" in outcome.err
    assert "no command /what; /help lists them" in outcome.err
    assert "the conversation is forgotten" in outcome.err
    assert not (tmp_path / "remoe-edge").exists()  # no history of what nobody typed


def test_stats_before_anything_was_asked_and_of_a_whole_model(model: Path, tmp_path: Path) -> None:
    with start("chat", model, *GREEDY, "--no-stream", state=tmp_path) as running:
        running.type("/stats\nx\n/stats\n")
        outcome = running.end()
    assert outcome.code == 0, outcome
    assert outcome.err.count("last answer  none yet") == 1
    assert outcome.err.count("loaded whole, ") == 2
    assert outcome.err.count("speed  ") == 1
    assert "hits  " not in outcome.err
    assert "Traceback" not in outcome.err


def test_a_session_remembers_until_it_is_reset(model: Path, tmp_path: Path) -> None:
    def prompts(lines: str) -> list[int]:
        with start("chat", "-m", model, *GREEDY, state=tmp_path) as running:
            running.type(lines)
            outcome = running.end()
        assert outcome.code == 0, outcome
        return [int(each) for each in re.findall(r"after a prompt of (\d+) tokens", outcome.err)]

    first, second = prompts("same\n/stats\nsame\n/stats\n")
    assert second > first
    assert prompts("same\n/reset\nsame\n/stats\n/exit\nnever\n") == [first]


def test_ctrl_c_stops_the_answer_and_not_the_program(long_winded: Path, tmp_path: Path) -> None:
    args = ("chat", "-m", long_winded, "--temp", "0", "-n", "2000", "--ctx", "4000")
    with start(*args, state=tmp_path) as running:
        for stopped in (1, 2):
            before = len(running.out)
            running.type("go on\n")
            running.wait_for_output(before + 20)
            running.process.send_signal(signal.SIGINT)
            running.wait_for("stopped\n", stopped)
        running.type("/stats\n")
        outcome = running.end()
    assert outcome.code == 0, outcome
    assert "it was stopped" in outcome.err
    assert len(STATISTICS.findall(outcome.err)) == 2
    assert "Traceback" not in outcome.err


def test_a_read_error_ends_the_answer_and_not_the_session(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model.read_bytes())
    args = ("chat", "-m", path, "--raw", "--temp", "0", "-n", "6", "--cache", "120KiB")
    with start(*args, state=tmp_path) as running:
        running.type("one\n")
        running.wait_for("MiB/token")
        os.truncate(path, 4096)
        running.type("two\n")
        running.wait_for("Error: ")
        running.type("/stats\n/reset\n/exit\n")
        outcome = running.end()
    assert outcome.code == 0, outcome
    errors = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert str(path) in errors[0]
    assert "Traceback" not in outcome.err
    assert "the conversation is forgotten" in outcome.err


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(model: Path) -> None:
    with Engine(model, n_ctx=100) as engine:
        chat = Conversation(engine, system="be brief")
        seen = []
        for i in range(5):
            question = f"question {i}"
            pieces, forgotten = chat.ask(question, max_tokens=20, temperature=0)
            chat.keep(question, "".join(pieces))
            seen.append(forgotten)
            # It all fitted, with room for the answer, and the system text is still there.
            assert engine.answer.n_prompt + 20 <= 100
            prompt, _ = chat._tokens([], question)
            assert engine.answer.n_prompt >= len(prompt)
        assert seen[0] == 0
        assert sum(seen) > 0
        assert len(chat.turns) == 5 - sum(seen)
        kept = list(chat.turns)
        with pytest.raises(InputError, match="do not fit the context of 100"):
            chat.ask("far too long " * 30, max_tokens=20)
        assert chat.turns == kept


def test_forgetting_is_said_in_a_line(model: Path, tmp_path: Path) -> None:
    with start("chat", "-m", model, *GREEDY, "--ctx", "60", state=tmp_path) as running:
        running.type("one\ntwo\nthree\n" + 90 * "long" + "\nfour\n")
        outcome = running.end()
    assert outcome.code == 0
    assert re.search("the context is full: the oldest (turn|2 turns) forgotten", outcome.err)
    assert outcome.err.count("Error: ") == 1
    assert len(STATISTICS.findall(outcome.err)) == 4


def test_a_session_at_a_terminal(model: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "remoe_edge.cli", "chat", "-m", str(model), *GREEDY],
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "dumb"},
    )  # fmt: skip
    os.close(follower)
    screen = Screen(leader)
    try:
        screen.until("/help lists the commands")
        screen.until("> ")
        os.write(leader, b"hello\n")
        shown = screen.until("MiB/token")
        assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", shown), shown
        screen.until("for more")
        screen.until("> ")
        # Python misses a signal between showing the prompt and waiting for a key: press again.
        while not screen.shows("Ctrl-C again", within=2):
            os.write(leader, b"\x03")
        screen.until("> ")
        while process.poll() is None:
            os.write(leader, b"\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)
    history = tmp_path / "remoe-edge" / "chat_history"
    assert "hello" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


class Screen:
    """Read what a terminal is shown, piece by piece."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._unread = b""

    def until(self, text: str) -> bytes:
        """Return what is shown up to and with `text`."""
        assert self.shows(text, within=SECONDS), f"no {text!r} in {self._unread!r}"
        before, found, self._unread = self._unread.partition(text.encode())
        return before + found

    def shows(self, text: str, *, within: float) -> bool:
        """Wait until `text` is shown, `within` seconds of the last it showed."""
        while text.encode() not in self._unread:
            if not select.select([self._leader], [], [], within)[0]:
                return False
            self._unread += os.read(self._leader, 65536)
        return True


# --- small things ---


def test_a_model_cannot_drive_the_terminal() -> None:
    assert terminal.escape("a\x1b[2Jb\x07\r\x9b\x7f") == "a\\x1b[2Jb\\x07\\x0d\\x9b\\x7f"
    assert terminal.escape("tab\tline\nü 日本") == "tab\tline\nü 日本"


def test_the_shipped_model_is_found(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "package", tmp_path / "checkout"]
    monkeypatch.setattr(models, "folders", lambda: folders)
    error = run(capsys, "chat", "-p", "x").error()
    assert all(str(folder) in error for folder in folders)

    for folder in reversed(folders):
        folder.mkdir()
        (folder / "small.gguf").write_bytes(model.read_bytes())
        (folder / "small.routers.gguf").write_bytes(b"")
        (folder / "card.md").write_text("about")
        assert models.shipped_model() == folder / "small.gguf"
        assert models.shipped_routers(folder / "small.gguf") == folder / "small.routers.gguf"
    assert run(capsys, "chat", "-p", "x", *GREEDY).code == 0

    (folders[0] / "other.gguf").write_bytes(b"")
    assert "several models (other.gguf, small.gguf)" in run(capsys, "chat", "-p", "x").error()


def test_the_folders_of_the_shipped_model_are_the_package_and_the_checkout() -> None:
    package = Path(remoe_edge.__file__).parent
    assert models.folders() == [package / "models", package.parent / "models"]
