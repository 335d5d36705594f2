"""Two records against each other, and a record run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny_moe
from bench_record import made_up
from command_line import run
from remoe_edge.bench import record
from remoe_edge.bench.again import arguments
from remoe_edge.bench.compare import compare, table
from remoe_edge.errors import InputError
from test_hostile_records import spoiled


def compared(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return compare(a, b, "a.json", "b.json")


def test_a_record_against_itself() -> None:
    one = made_up(arms=("stock-mmap", "stream:lru"))
    found = compared(one, one)
    assert found["differences"] == [
        "A: 2 of 4 runs were disturbed",
        "B: 2 of 4 runs were disturbed",
    ]
    for figures in found["arms"].values():
        assert figures["tpot_ms"]["ratio"] == 1
        assert not figures["tpot_ms"]["apart"]


def test_above_one_the_second_is_faster() -> None:
    slow, fast = made_up(arms=("stream:lru",), slower=2), made_up(arms=("stream:lru",))
    speed = compared(slow, fast)["arms"]["stream:lru"]["tpot_ms"]
    assert speed["ratio"] == pytest.approx(2)
    assert speed["apart"]


def test_another_model_is_refused() -> None:
    one, other = made_up(arms=("stream:lru",)), made_up(arms=("stream:lru",))
    other["model"]["fingerprint"] = "e" * 64
    with pytest.raises(InputError, match="are of different models: fingerprint f+ against e+"):
        compared(one, other)


def test_other_settings_are_pointed_out() -> None:
    one, other = made_up(arms=("stream:lru", "stock-mmap")), made_up(arms=("stream:lru",))
    other["settings"]["limits"]["memory_bytes"] = None
    other["machine"]["kernel"] = "5.15"
    other["arms"]["stream:lru"]["cache"] = "1G"
    other["prompts"] = []
    other["complete"], other["ended"] = False, "interrupted"
    lines = compared(one, other)["differences"]
    assert f"settings: limits: memory_bytes: {100 << 20} against None" in lines
    assert "machine: kernel: 6.1.0 against 5.15" in lines
    assert "arm stream:lru: cache: auto against 1G" in lines
    assert "prompts differ" in lines
    assert "only A has the arm stock-mmap" in lines
    assert "B is not complete: interrupted" in lines


def test_no_arm_in_common() -> None:
    with pytest.raises(InputError, match="no arm is in both: a.json has stock-mmap, b.json has"):
        compared(made_up(arms=("stock-mmap",)), made_up(arms=("stream:lru",)))


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    record.write(made_up(arms=("stream:lru",), slower=2), a)
    record.write(made_up(arms=("stream:lru",)), b)
    outcome = run(capsys, "bench", "compare", a, b)
    assert outcome.code == 0
    assert "stream:lru" in outcome.out
    assert "2.00" in outcome.out
    assert "note: A: 1 of 2 runs were disturbed" in outcome.err
    outcome = run(capsys, "bench", "compare", a, b, "--json")
    assert json.loads(outcome.out)["arms"]["stream:lru"]["tpot_ms"]["apart"] is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no record of `remoe-edge bench`: "),
        ("[]", "is no record of `remoe-edge bench`"),
        ('{"format": "other"}', "is no record of `remoe-edge bench`"),
        ('{"format": "remoe-edge bench", "version": 9}', "is a record of version 9"),
    ],
)
def test_what_is_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert f"{path} {said}" in run(capsys, "bench", "compare", path, path).error()
    missing = tmp_path / "none.json"
    assert "No such file" in run(capsys, "bench", "compare", missing, path).error()


def test_damaged_records_are_refused(tmp_path: Path) -> None:
    """Whatever stands where a record is read: a line that names the file, or a comparison."""
    right = json.loads(json.dumps(made_up(("stock-mmap", "stream:lru"), rounds=1)))
    del right["runs"][1:]
    path = tmp_path / "record.json"
    said = []
    for i, (_, held) in enumerate(spoiled(right)):
        if i % 17:
            continue
        try:
            path.write_text(json.dumps(held))
            found = record.read(path)
            table(compare(found, right, str(path), "b"))
            arguments(found, path, [tmp_path])
        except InputError as error:
            said.append(str(error))
    assert len(said) > 20
    assert all(str(path) in line and "\n" not in line for line in said), said


def test_two_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two sets of routers, and of two records, the second took the place of the first."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.gguf").touch()
        record.write(made_up(("stream:lru",)), tmp_path / folder / "r.json")
    one, other = (tmp_path / folder / "r.json" for folder in ("a", "b"))
    again = run(capsys, "bench", "again", one, other, "--models", tmp_path, "-o", tmp_path / "new")
    assert "two records are named r.json" in again.error()
    model = tiny_moe.make(tmp_path / "tiny.gguf", "olmoe", "Q8_0")
    routers = f"{one.with_suffix('.gguf')},{other.with_suffix('.gguf')}"
    done = run(capsys, "bench", model, "--arms", "stream:lru", "--routers", routers)
    assert "two sets of routers are named r.gguf" in done.error()


def test_a_record_knows_how_it_was_made(tmp_path: Path) -> None:
    one = made_up(arms=("stream:lru",))
    one["command"] = (
        "remoe-edge bench made-up.gguf --text 'a b.txt' --cache=30% --json=x.json --csv t.csv -n 4 "
        "-o x.json --json x.json --json"
    )
    path = tmp_path / "record.json"
    with pytest.raises(InputError, match=f"{path} needs made-up.gguf, which is not in {tmp_path}"):
        arguments(one, path, [tmp_path])
    (tmp_path / "made-up.gguf").touch()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a b.txt").touch()
    assert arguments(one, path, [tmp_path]) == [
        str(tmp_path / "made-up.gguf"), "--text", str(tmp_path / "texts/a b.txt"), "--cache=30%",
        "-n", "4",
    ]  # fmt: skip


def test_a_bench_is_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = tmp_path / "models"
    models.mkdir()
    tiny_moe.make(models / "tiny.gguf", "olmoe", "Q8_0")
    first = tmp_path / "first.json"
    short = ("--raw", "--limit", "1", "-n", "3", "--rounds", "1", "--probe-seconds", "0")
    made = run(capsys, "bench", models / "tiny.gguf", *short, "--arms", "stream:lru", "-o", first)
    assert made.code == 0, made
    outcome = run(capsys, "bench", "again", first, "--models", models, "-o", tmp_path / "new")
    assert outcome.code == 0, outcome
    assert "A: the record" in outcome.out
    assert "first.json: remoe-edge bench" in outcome.err
    old, new = record.read(first), record.read(tmp_path / "new" / "first.json")
    # How it was made, without what it was written to.
    assert old["command"] == f"{new['command']} -o first.json"
    assert old["settings"] == new["settings"]
    tokens = [each["runs"][0]["prompts"][0]["chosen"] for each in (old, new)]
    assert tokens[0] == tokens[1]


def test_an_output_is_refused_before_any_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was found out when its turn came, hours after the first run."""
    (tmp_path / "made-up.gguf").touch()
    records = [tmp_path / name for name in ("a.json", "b.json")]
    for path in records:
        record.write(made_up(("stream:lru",)), path)
    (tmp_path / "new" / "b.json").mkdir(parents=True)
    again = run(capsys, "bench", "again", *records, "--models", tmp_path, "-o", tmp_path / "new")
    assert "b.json is a folder" in again.error()
    assert "remoe-edge bench" not in again.err


def test_files_in_arms_and_routers_are_looked_for(tmp_path: Path) -> None:
    for name in (
        "made-up.gguf", "a.routers.gguf", "hot.profile", "a=b.txt", "[c].gguf", "k.pem", "p.json",
    ):  # fmt: skip
        (tmp_path / name).touch()
    again = made_up(("stock-mmap", "stream:lru"))
    again["command"] = (
        "remoe-edge bench made-up.gguf --text a=b.txt --routers off,a.routers.gguf,on,default "
        "--arms stock-mmap,stream:lru+profile=hot.profile+prefetch=off,stream:arc+coarse=[c].gguf "
        "--keys k.pem --price p.json --price steps"
    )
    assert arguments(again, Path("x.json"), [tmp_path]) == [
        f"{tmp_path}/made-up.gguf",
        "--text", f"{tmp_path}/a=b.txt",
        "--routers", f"off,{tmp_path}/a.routers.gguf,on,default",
        "--arms", f"stock-mmap,stream:lru+profile={tmp_path}/hot.profile+prefetch=off,"
        f"stream:arc+coarse={tmp_path}/[c].gguf",
        "--keys", f"{tmp_path}/k.pem", "--price", f"{tmp_path}/p.json", "--price", "steps",
    ]  # fmt: skip
    (tmp_path / "hot.profile").unlink()
    with pytest.raises(InputError, match=r"x\.json needs hot\.profile"):
        arguments(again, Path("x.json"), [tmp_path])
