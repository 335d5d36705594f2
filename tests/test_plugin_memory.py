"""A plugged program's memory, by the kernel's account: dense + KV + buffers + budget + 64 MiB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plugin import memory
from remoe_edge.bench.box import NoBoxError

N_SETTINGS = 50


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return memory.make_model(tmp_path_factory.mktemp("memory") / "medium.gguf")


@pytest.mark.slow
def test_peaks_stay_within_the_promise(model: Path) -> None:
    try:
        for choice in memory.choices(N_SETTINGS):
            found = memory.check(model, choice)
            assert found["kept"], found
    except NoBoxError as error:
        pytest.skip(str(error))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[memory.Choice]:
    """Have nothing run; give the settings that would have been. The third run ends in a fault, once."""
    asked: list[memory.Choice] = []

    def check(model: Path, choice: memory.Choice) -> dict[str, Any]:
        asked.append(choice)
        if len(asked) == 3:
            raise SystemExit("a fault")
        return {"peak_bytes": 9, "promise_bytes": 10, "status_at_the_promise": 0, "kept": True}

    monkeypatch.setattr(memory, "make_model", lambda path: path)
    monkeypatch.setattr(memory, "check", check)
    return asked


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr("sys.argv", ["memory.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        memory.main()
    return ended.value.code


def test_an_interrupted_run_goes_on(
    ran: list[memory.Choice], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "record.json"
    asked = ["--settings", "4", "-o", str(out)]
    assert call(monkeypatch, *asked) == "a fault"
    assert not out.exists()
    assert "another run" in str(call(monkeypatch, *asked, "--seed", "1"))
    assert call(monkeypatch, *asked) == 0
    wanted = memory.choices(4)
    assert ran == [*wanted[:3], *wanted[2:]]
    assert json.loads(out.read_text())["settings"] == 4
    assert list(tmp_path.iterdir()) == [out]


def test_a_record_is_kept_if_it_is_asked_for(
    ran: list[memory.Choice], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "record.json"
    asked = ["-o", str(out), "--settings"]
    assert call(monkeypatch, *asked, "2") == 0
    ran += [ran[0]]  # past the fault
    assert call(monkeypatch, *asked, "3", "--go-on") == 0
    assert ran[3:] == memory.choices(3)[2:]
    assert json.loads(out.read_text())["settings"] == 3
    assert "another run" in str(call(monkeypatch, *asked, "3", "--go-on", "--seed", "1"))
    assert call(monkeypatch, *asked, "1") == 0
    assert json.loads(out.read_text())["settings"] == 1
    assert call(monkeypatch, "--go-on") == 2
