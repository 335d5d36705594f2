"""The house rules that a program can check, and that the checks do find what breaks them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rules import docs, exceptions, glossary, sources

ROOT = Path(__file__).parent.parent


def bare(said: list[str]) -> set[str]:
    return {re.sub(r":\d+:", ":", line, count=1) for line in said}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, newline="")
    return root


# Every list of exceptions must name what breaks the rule today, no more and no less.


@pytest.mark.parametrize(
    ("check", "excused"),
    [
        (sources.empty_names, frozenset()),
        (sources.headers, exceptions.HEADERS),
        (sources.unkept, frozenset()),
        (sources.machine_paths, frozenset()),
        (sources.getenv, exceptions.GETENV),
        (sources.raw_threads, frozenset()),
        (sources.source_tree_first, frozenset()),
        (sources.line_ends, frozenset()),
        (sources.file_names, frozenset()),
        (docs.broken_links, frozenset()),
        (docs.orphans, frozenset()),
    ],
)
def test_rule(check, excused: frozenset[str]) -> None:  # type: ignore[no-untyped-def]
    assert bare(check(ROOT)) == excused


@pytest.mark.parametrize(
    ("check", "allowed"),
    [
        (sources.long_files, exceptions.LONG_FILES),
        (docs.long_lines, exceptions.LONG_LINES),
        (docs.long_winded, exceptions.LONG_SENTENCES),
    ],
)
def test_bound(check, allowed: dict[str, float]) -> None:  # type: ignore[no-untyped-def]
    """What is above a bound is listed, and not above what it is listed with."""
    found = check(ROOT)
    assert {place: n for place, n in found.items() if n > allowed.get(place, 0)} == {}
    assert sorted(allowed.keys() - found.keys()) == []  # below the bound: leaves the list


@pytest.mark.parametrize(
    ("check", "allowed"),
    [
        (glossary.names, exceptions.BANNED_NAMES),
        (glossary.prose, exceptions.BANNED_PHRASES),
    ],
)
def test_glossary(check, allowed: dict[str, frozenset[str]]) -> None:  # type: ignore[no-untyped-def]
    found = check(ROOT)
    assert [
        place
        for area, words in found.items()
        for word, place in words.items()
        if word not in allowed.get(area, frozenset())
    ] == []
    unused = {area: sorted(words - found.get(area, {}).keys()) for area, words in allowed.items()}
    assert {area: words for area, words in unused.items() if words} == {}


def test_checks_of_files_find_what_they_look_for(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "remoe_edge/long.py": "x = 1\n" * 401,
            "remoe_edge/right.py": "x = 1\n" * 400,
            "remoe_edge/file_utils.py": "class SlotManager:\n    pass  # TODO: later\n",
            "csrc/base/a.h": "// One line.\n",
            "csrc/base/b.h": "// What it is.\n" * 4 + "//  0  a table\n" * 20 + "// Thread-safe.\n",
            "csrc/base/c.cc": 'const char* x = std::getenv("X");  // TODO(#7): as agreed\n'
            "std::thread looking([] {});\nauto found = std::async(look);\nstd::thread later;\n",
            "docs/a b.md": "see /ho" + "me/me/model.gguf\r\n",
            "docs/c.md": "no end",
            "tools/a.py": "sys.path.append(str(ROOT / 'tests'))\nsys.path[:0] = [str(ROOT), 'x']\n",
        },
    )
    assert sources.long_files(tmp_path) == {"remoe_edge/long.py": 401}
    assert sources.empty_names(tmp_path) == [
        "remoe_edge/file_utils.py: file_utils.py",
        "remoe_edge/file_utils.py: SlotManager",
    ]
    assert sources.headers(tmp_path) == [
        "csrc/base/a.h: opens with 1 lines of comment, not 5 to 12",
        "csrc/base/a.h: its opening does not say how threads may use it",
    ]
    assert sources.unkept(tmp_path) == ["remoe_edge/file_utils.py:2: no issue"]
    assert sources.getenv(tmp_path) == ["csrc/base/c.cc:1: reads the environment"]
    assert sources.raw_threads(tmp_path) == [
        "csrc/base/c.cc:2: starts a thread without StartThread()",
        "csrc/base/c.cc:3: starts a thread without StartThread()",
    ]
    assert sources.machine_paths(tmp_path) == ["docs/a b.md:1: a path of one machine"]
    assert sources.line_ends(tmp_path) == ["docs/a b.md: CR", "docs/c.md: no line end at the end"]
    assert sources.file_names(tmp_path) == ["docs/a b.md"]
    assert sources.source_tree_first(tmp_path) == ["tools/a.py:2: puts the source tree on the path"]


def test_checks_of_pages_find_what_they_look_for(tmp_path: Path) -> None:
    long = "word " * 30
    write(
        tmp_path,
        {
            "README.md": "# Top\n[a](docs/a.md#part-one) [b](docs/gone.md) [c](docs/a.md#part-two)\n"
            "[web](https://example.org) `[code](nowhere)`\n```\n[code](nowhere)\n```\n",
            "docs/a.md": f"# A\n\n## Part *one*\n\n{long}\n\n| {long} |\n\n```\n{long}\n```\n",
            "docs/b.md": "# B\n\nShort. Sentences here. They are few.\n",
        },
    )
    assert docs.broken_links(tmp_path) == [
        "README.md: docs/gone.md leads nowhere",
        "README.md: docs/a.md#part-two: no such heading",
    ]
    assert docs.orphans(tmp_path) == ["docs/b.md"]
    assert docs.long_lines(tmp_path) == {"docs/a.md": 1}
    assert docs.long_winded(tmp_path) == {"docs/a.md": 30.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("One two three. Four five six seven.", 3.5),
        ("Takes 1.5 ms, e.g. here. Then it ends.", 4.5 - 0.5),
        ("- first item of three\n- second item here", 3.5),
        ("See [the page](a/very/long/path.md) `with code here`.", 4.0),
        ("# A heading that is long\n\n| a | table | row |\n", 0.0),
    ],
)
def test_words_of_a_sentence(text: str, words: float) -> None:
    assert docs.words_a_sentence(text) == words


GLOSSARY = """
| term | meaning | not in names | not in prose |
|---|---|---|---|
| prefetch | A read. | `ahead`, but `read_ahead`; `foreseen` | "reading ahead" |
| expendable | Leaves. | `spent` in csrc | |
"""


def test_banned_words_come_from_the_glossary(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "docs/glossary.md": GLOSSARY,
            "csrc/cache/a.cc": "int n_spent; // ahead\nvoid BeginAhead();\n"
            "int kReadAhead, read_ahead_kb;\n",
            "remoe_edge/bench/b.py": '"""ahead"""\nspent = read_ahead = 1  # foreseen\n',
            "remoe_edge/bench/ahead_plan.py": "",
            "docs/page.md": "It helps to be reading\nahead. `reading ahead`\n",
            "docs/experiments/old.md": "reading ahead\n",
        },
    )
    assert glossary.names(tmp_path) == {
        "csrc/cache": {
            "spent": "csrc/cache/a.cc:1: n_spent",
            "ahead": "csrc/cache/a.cc:2: BeginAhead",
        },
        "remoe_edge/bench": {"ahead": "remoe_edge/bench/ahead_plan.py:0: ahead_plan"},
    }
    assert list(glossary.prose(tmp_path)) == ["docs/page.md"]
