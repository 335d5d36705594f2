"""A record tells its command without where files lie on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from typed_command import typed_command

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "check_plan.py"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["models/heldout/a b.txt", "-o", "x.json"], "'models/heldout/a b.txt' -o x.json"),
        (["/a/b/m.gguf", "../../t.txt", "/tmp"], "m.gguf t.txt tmp"),
        (["--text=/a/t.txt", "--routers", "off,/a/r.gguf,/b/s.gguf"],
         "--text=t.txt --routers off,r.gguf,s.gguf"),
        (["http://x/y", "1/2", "25%"], "http://x/y 1/2 25%"),
    ],
)  # fmt: skip
def test_files_elsewhere_are_named(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *words])
    assert typed_command() == f"python tools/check_plan.py {told}"
