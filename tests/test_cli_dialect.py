"""One dialect: every command calls the same thing by the same name, and means the same by it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import pytest

import tiny_moe
from command_line import run
from commands import commands
from remoe_edge.bench.settings import Settings
from remoe_edge.cli import options
from remoe_edge.cli.old_spellings import Old, Option, option, output_spelled_out
from remoe_edge.cli.options import OutputFile, Several
from remoe_edge.engine.settings import FLASH_ATTENTION, IO, PREFETCH, EngineSettings
from remoe_edge.files import models

COMMANDS = dict(commands())

# `--steps` is what tune has steps of, and was what simulate called a range of tokens.
TWO_MEANINGS = {"--steps"}


def visible() -> list[tuple[str, click.Option]]:
    """List each option of each command, but --help."""
    return [
        (name, each)
        for name, command in COMMANDS.items()
        for each in command.params
        if isinstance(each, click.Option)
    ]


def long_name(each: click.Option) -> str:
    return next(name for name in each.opts if name.startswith("--"))


def one(each: click.Option) -> click.ParamType[Any]:
    """Give the type of one value: a list of sizes is of the same type as a size."""
    return each.type.each if isinstance(each.type, Several) else each.type


def first_sentence(text: str) -> str:
    return re.split(r"(?<=\.) (?=[A-Z`0-9])", text)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("dialect") / "tiny.gguf", "qwen3moe", "Q4_0")


def test_all_commands_are_looked_at() -> None:
    assert set(COMMANDS) >= {
        "chat", "info", "doctor", "probe", "trace", "simulate", "profile", "tune", "eval", "plan",
        "top", "bench run", "bench compare", "bench again", "convert routers", "convert merge",
        "convert extract", "convert export-hf",
    }  # fmt: skip
    assert len(visible()) > 100


def test_the_same_name_is_the_same_option_everywhere() -> None:
    seen: dict[str, dict[object, str]] = defaultdict(dict)
    for command, each in visible():
        if long_name(each) == "--output":  # a file or a folder: what a command writes
            continue
        metavar = (each.metavar or "").replace("[,...]", "").replace("[NAME=]", "")
        facts = (
            tuple(each.opts), tuple(each.secondary_opts), each.is_flag, type(one(each)), metavar,
            getattr(one(each), "choices", None) and tuple(one(each).choices),
            first_sentence(each.help or ""),
        )  # fmt: skip
        seen[long_name(each)].setdefault(facts, command)
    several = {name: found for name, found in seen.items() if len(found) > 1}
    assert not several


def test_a_thing_has_one_name() -> None:
    names: dict[str, set[str]] = defaultdict(set)
    for _, each in visible():
        names[first_sentence(each.help or "")].add(long_name(each))
    assert not {text: found for text, found in names.items() if len(found) > 1}

    old = {
        was.name: long_name(each)
        for _, each in visible()
        if isinstance(each, Option)
        for was in each.old
    }
    assert len(old) >= 9
    spelled = {name for _, each in visible() for name in (*each.opts, *each.secondary_opts)}
    assert set(old) & spelled <= TWO_MEANINGS


def test_short_names_stand_for_one_thing() -> None:
    shorts: dict[str, set[str]] = defaultdict(set)
    for _, each in visible():
        for name in each.opts:
            if not name.startswith("--"):
                shorts[name].add(long_name(each))
    assert {name: len(found) for name, found in shorts.items()} == dict.fromkeys(shorts, 1)
    assert shorts["-o"] == {"--output"}
    assert shorts["-n"] == {"--max-tokens"}
    assert shorts["-m"] == {"--model"}


def test_what_is_written_goes_to_output() -> None:
    for name, command in COMMANDS.items():
        writes = [
            each
            for each in command.params
            if isinstance(each, click.Option) and isinstance(each.type, OutputFile)
        ]
        # A recording of the machine beside a conversation is no result of the conversation.
        writes = [each for each in writes if long_name(each) != "--telemetry"]
        if writes:
            assert any("--output" in each.opts for each in writes), name
    for command_name, each in visible():
        if "--output" in each.opts:
            assert each.opts == ["-o", "--output"], command_name


def test_json_is_a_flag() -> None:
    have = [name for name, each in visible() if long_name(each) == "--json"]
    assert len(have) >= 10
    assert all(each.is_flag for _, each in visible() if long_name(each) == "--json")


def test_a_model_is_positional_and_optional() -> None:
    have = []
    for name, command in COMMANDS.items():
        arguments = [each for each in command.params if isinstance(each, click.Argument)]
        named = {each.name for each in arguments}
        by_option = [each for each in command.params if "--model" in each.opts]
        assert ("model" in named) == bool(by_option), name
        if "model" in named:
            have.append(name)
            assert [each.required for each in arguments] == [False], name
            assert by_option[0].opts == ["-m", "--model"]
    assert have == [
        *("chat", "serve", "info", "trace", "convert coarse", "convert dense", "tune", "eval"),
        *("price", "bench run", "plan", "worker", "deploy up"),
    ]


def test_help_has_one_voice() -> None:
    for name, command in COMMANDS.items():
        assert command.help, name
        assert re.match(r"[A-Z][^\n]*\.(\n|$)", command.help), (name, command.help)
        if isinstance(command, click.Command):
            metavars = [each.metavar for each in command.params if isinstance(each, click.Option)]
            assert None not in [
                metavar
                for metavar, each in zip(
                    metavars,
                    [p for p in command.params if isinstance(p, click.Option)],
                    strict=True,
                )
                if not each.is_flag and not isinstance(each.type, click.Choice)
            ], name
    for name, each in visible():
        text = each.help or ""
        assert re.match(r"[A-Z0-9`]", text), (name, each.opts, text)
        assert text.endswith("."), (name, each.opts, text)
        assert "  " not in text, (name, each.opts, text)


def test_a_cache_that_follows_is_offered_where_it_follows() -> None:
    offered = {
        name for name, each in visible() if long_name(each) == "--cache" and "plan:" in each.help
    }
    assert offered == {"chat", "serve", "trace", "bench run"}


def test_defaults_are_those_of_what_runs() -> None:
    plain = EngineSettings()
    defaults = {each.name: each.default for each in COMMANDS["chat"].params}
    for name in (
        "cache",
        "policy",
        "prefetch",
        "n_ctx",
        "n_ubatch",
        "flash_attention",
        "depth",
        "io",
        "direct",
    ):
        assert defaults[name] == getattr(plain, name), name
    assert plain.policy == options.DEFAULT_POLICY
    choices = {each.name: getattr(each.type, "choices", ()) for each in COMMANDS["chat"].params}
    assert tuple(choices["io"]) == IO
    assert tuple(choices["prefetch"]) == PREFETCH
    assert tuple(choices["flash_attention"]) == FLASH_ATTENTION
    arms = {each.name: each.default for each in COMMANDS["bench run"].params}["arms"]
    assert arms == f"stock-mmap,stream:{options.DEFAULT_POLICY}"
    asked = {each.name: each.default for each in COMMANDS["bench run"].params}
    bench = Settings()
    assert (asked["max_tokens"], asked["warm"], asked["rounds"]) == (
        bench.tokens, bench.warm, bench.rounds,
    )  # fmt: skip


# --- which model ---


def test_positional_or_by_name(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ("-p", "x", "-n", "3", "--temp", "0")
    positional = run(capsys, "chat", model, *ask)
    assert positional.code == 0, positional
    assert run(capsys, "chat", "-m", model, *ask).out == positional.out
    assert run(capsys, "chat", f"--model={model}", *ask).out == positional.out
    both = run(capsys, "chat", model, "-m", model, *ask)
    assert both.code == 2
    assert "two models are named" in both.err
    named = [run(capsys, "info", *args).out.splitlines()[:4] for args in ((model,), ("-m", model))]
    assert named[0] == named[1] != []


@pytest.mark.parametrize(
    "name", ["chat", "serve", "info", "trace", "tune", "eval", "bench run", "plan"]
)
def test_without_a_model_it_is_the_shipped_one(
    name: str, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "shipped_model", lambda: model.with_name("shipped.gguf"))
    command = COMMANDS[name]
    needed = {
        "tune": ["--data", "d", "-o", "o"], "eval": ["--data", "d"],
        "trace": ["--prompts", "p", "-o", "o"],
    }.get(name, [])  # fmt: skip
    with command.make_context(name, [*needed]) as context:
        assert context.params["model"] == model.with_name("shipped.gguf")
    with command.make_context(name, ["a.gguf", *needed]) as context:
        assert context.params["model"] == Path("a.gguf")


def test_off_is_the_models_own_routers(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "chat", model, "-p", "x", "-n", "2", "--routers", "off")
    assert outcome.code == 0, outcome


# --- old spellings ---


def parsed(command: str, args: list[str]) -> dict[str, Any]:
    with COMMANDS[command].make_context(command, args) as context:
        return context.params


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("chat", "--io-backend pread", "--io pread"),
        ("trace", "--prompts p -o o --answer 3", "--prompts p -o o -n 3"),
        ("trace", "--prompts p -o o --io-backend pread", "--prompts p -o o --io pread"),
        ("probe", "x --backend pread", "x --io pread"),
        ("probe", "x --buffered", "x --no-direct"),
        ("plan", "m --answer-tokens 9", "m --max-tokens 9"),
        ("simulate", "t --steps 3:9", "t --range 3:9"),
        ("tune", "m --data d --out o", "m --data d -o o"),
        ("eval", "m --data d --tokens 7", "m --data d --data-tokens 7"),
        ("eval", "m --data d --png p.png", "m --data d --plot p.png"),
        ("eval", "m --data d --json f.json", "m --data d -o f.json"),
        ("bench run", "m --tokens 4", "m -n 4"),
        ("bench run", "m --tokens=4", "m --max-tokens=4"),
        ("bench run", "m --json a/b.json --raw", "m -o a/b.json --raw"),
        ("bench run", "--json b.json m", "--output b.json m"),
        ("bench run", "m --json=b", "m --output b"),
        ("bench again", "r --models m --out o", "r --models m -o o"),
    ],
)
def test_old_spellings_mean_the_new_ones(
    command: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    now = parsed(command, new.split())
    assert capsys.readouterr().err == ""
    assert parsed(command, old.split()) == now
    said = capsys.readouterr().err
    assert re.fullmatch(r"note: --\S+( FILE)? is now \S+( FILE)?; .* version 0\.3\n", said), said


def test_of_several_values_the_one_that_counts_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "t.npz"
    several = run(
        capsys, "simulate", missing, "--cache", "25%", "--cache", "50%,75%", "--warm", "1"
    )
    assert several.err.splitlines() == [
        "note: --cache is given 2 times, and the last counts; for all write 25%,50%,75%",
        f"Error: cannot read the trace {missing}: No such file or directory",
    ]
    for words in (["-o", "a", "--output=b"], ["--warm", "1", "--warm", "2"], ["-oa", "-ob"]):
        done = run(capsys, "simulate", missing, *words)
        assert "is given 2 times, and the last counts\n" in done.err, words
    for words in (["--cache", "25%", "--cache", "25%"], ["--json", "--json"], ["--cache", "25%"]):
        assert "note" not in run(capsys, "simulate", missing, *words).err, words
    for words in (["-m", "a", "-m", "b"], ["a", "-m", "b"], ["-m", "a", "--model", "b"]):
        assert "two models are named: a and b" in run(capsys, "info", *words).err


def test_old_spellings_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in COMMANDS.items():
        text = run(capsys, *name.split(), "--help").out
        for each in command.params:
            for was in getattr(each, "old", ()):
                assert not re.search(rf"(?<![\w-]){was.name}(?![\w-])", text), (name, was)


def test_json_before_the_model_is_the_flag() -> None:
    found = parsed("bench run", ["--json", "model.gguf"])
    assert (found["as_json"], found["model"], found["output"]) == (True, Path("model.gguf"), None)
    assert output_spelled_out(["--", "--json", "x.json"]) == (["--", "--json", "x.json"], False)
    assert output_spelled_out(["--json"]) == (["--json"], False)


def test_the_new_spelling_wins_over_the_old(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    @option("--new", old=[Old("--was")])
    def command(new: str | None) -> None:
        click.echo(new)

    with command.make_context("x", ["--was", "1", "--new", "2"]) as context:
        assert context.params == {"new": "2"}
    assert "--was is now --new" in capsys.readouterr().err


def test_routers_on_is_default(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "chat", model, "-p", "x", "--routers", "on")
    assert outcome.code == 1
    assert "note: --routers on is now --routers default" in outcome.err
    assert "no router overlay" in outcome.err


def test_a_bench_prints_its_record(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = (
        "--raw", "--limit", "1", "-n", "2", "--warm", "1", "--rounds", "1", "-t", "1",
        "--probe-seconds", "0", "--arms", "stream:lru",
    )  # fmt: skip
    target = tmp_path / "r.json"
    outcome = run(capsys, "bench", model, *short, "--json", f"-o{target}")
    assert outcome.code == 0, outcome
    assert json.loads(outcome.out) == json.loads(target.read_text())
    assert json.loads(outcome.out)["command"].endswith("--json -o r.json")


# --- lists ---


def test_a_list_is_of_what_one_is(capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed("bench run", ["-t", "1, 2,4", "--cache", "10%,1G", "--routers", "off,default"])
    assert found["threads"] == (1, 2, 4)
    assert found["cache"] == ("10%", "1G")
    assert found["routers"] == ("off", "default")
    assert parsed("bench run", [])["threads"] is None
    for wrong in (["-t", "0"], ["-t", "two"], ["--cache", " , "]):
        outcome = run(capsys, "bench", *wrong)
        assert outcome.code == 2, outcome
