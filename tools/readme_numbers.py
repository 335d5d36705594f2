"""Write the tables of numbers in README.md and docs/benchmarking.md from the records in docs/results.

    python tools/readme_numbers.py            # rewrite them
    python tools/readme_numbers.py --check    # fail if they are not what the records say

docs/benchmarking.md has one row for each streamed arm of each record named bench-*.json, in the order of
their numbers, and the commands. README.md has the rows of `SHOWN`, in words. A star marks arms of which a
run, or one of stock's, was disturbed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
BEGIN = "<!-- numbers: tools/readme_numbers.py writes what follows, from docs/results -->"
END = "<!-- end of numbers -->"
# The README's rows: record, arm, and what they are in words.
SHOWN = (
    (
        "bench-11-twin-q4_k-texts", "stream:reuse-biased routers=off", "twin, 3.1 GB",
        "the defaults; prose, code, chat and documents",
    ),
    (
        "bench-11-twin-q4_k-texts", "stream:reuse-biased routers=twin-q4_k.routers.gguf",
        "twin, 3.1 GB", "with tuned routers (other text)",
    ),
    (
        "bench-11-twin-q4_k-texts",
        "stream:reuse-biased+swap_near=0.0968+skip_cold=0.0667 routers=twin-q4_k.routers.gguf",
        "twin, 3.1 GB", "with tuned routers and a loss of 1 % (other text)",
    ),
    (
        "bench-9-twin-q4_k-drafts", "stream:reuse-biased", "twin, 3.1 GB",
        "the defaults; code, chat and documents",
    ),
    (
        "bench-9-twin-q4_k-drafts", "stream:reuse-biased+draft=auto", "twin, 3.1 GB",
        "with drafts; the same texts",
    ),
    (
        "bench-8-twin-q8_0-quality", "stream:reuse-biased routers=off", "twin in Q8_0, 5.8 GB",
        "the defaults",
    ),
    (
        "bench-8-twin-q8_0-quality",
        "stream:reuse-biased+skip_cold=0.0667+coarse_below=0.4 routers=twin-q8_0.routers.gguf",
        "twin in Q8_0, 5.8 GB", "with tuned routers and a loss of about 1 % (other text)",
    ),
    (
        "bench-6-twin-q4_k-profile", "stream:reuse-biased+profile=twin.profile", "twin, 3.1 GB",
        "with a profile of the model",
    ),
    (
        "bench-4-olmoe-shape-1500MiB", "stream:reuse-biased", "OLMoE shape, 3.9 GB",
        "the defaults; random routing",
    ),
    ("bench-3-twin-resident", "stream:lru", "twin, 3.1 GB", "every expert in the cache"),
    ("bench-1-small-resident", "stream:lru", "shipped model, 0.03 GB", "every expert in the cache"),
)  # fmt: skip
SHORT_HEAD = (
    "| model | memory limit | remoe-edge with | stock llama.cpp | remoe-edge | faster [95 %] |\n"
    "|---|---|---|---|---|---|"
)
HEAD = (
    "| model | box | arm | stock, ms/token | ms/token | ratio [95 %] | start to first token |\n"
    "|---|---|---|---|---|---|---|"
)


def _in_order(path: Path) -> list[str | int]:
    """The key that sorts bench-10 behind bench-9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def section(folder: Path) -> str:
    """Make the table, and the list of commands, of all records in a folder."""
    rows, commands = [], []
    for path in sorted(folder.glob("bench-*.json"), key=_in_order):
        record = _complete(path)
        rows += _rows(record)
        commands.append(f"{record['command']}   # {path.name}")
    table, code = "\n".join([HEAD, *rows]), "\n".join(["```sh", *commands, "```"])
    return f"{table}\n\n{code}\n"


def short_section(folder: Path) -> str:
    """Make the README's table. Raises SystemExit where a record lacks a row that it shows."""
    rows = []
    for name, arm, model, setting in SHOWN:
        record = _complete(folder / f"{name}.json")
        figures = record["summary"].get(arm, {})
        if "against" not in figures:
            raise SystemExit(f"{name} has no comparison of {arm} with stock")
        stock, ratio = _stock(record, figures), figures["against"]["tpot_ratio"]
        rows.append(
            _row(
                model,
                _box(record["settings"]["limits"]["memory_bytes"]),
                setting + _star(figures, stock),
                f"{stock['tpot_ms']['median']:.1f} ms",
                f"{figures['tpot_ms']['median']:.1f} ms",
                f"{ratio['median']:.2f} × [{ratio['low']:.2f}–{ratio['high']:.2f}]",
            )
        )
    return "\n".join([SHORT_HEAD, *rows]) + "\n"


def replaced(page: str, table: str) -> str:
    """Put a table between the marks of a page."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"the page has no section between '{BEGIN}' and '{END}'")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def _complete(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    if not record["complete"]:
        raise SystemExit(f"not complete: {record['command']}")
    return record


def _stock(record: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    stock: dict[str, Any] = record["summary"][figures["against"]["arm"]]
    return stock


def _star(figures: dict[str, Any], stock: dict[str, Any]) -> str:
    return " \\*" if figures["disturbed_rounds"] or stock["disturbed_rounds"] else ""


def _rows(record: dict[str, Any]) -> list[str]:
    model = record["model"]
    rows = []
    for name, figures in record["summary"].items():
        against = figures.get("against")
        if against is None or record["arms"][name]["kind"] != "stream":
            continue
        stock = _stock(record, figures)
        cache = record["arms"][name]["cache"]
        ratio = against["tpot_ratio"]
        rows.append(
            _row(
                f"{model['name'] or model['file']}, {'/'.join(model['types'])}, "
                f"{model['file_bytes'] / 1e9:.2f} GB",
                _box(record["settings"]["limits"]["memory_bytes"]),
                f"`{name}`, {cache} cache{_star(figures, stock)}",
                f"{stock['tpot_ms']['median']:.1f} ({against['arm']})",
                f"{figures['tpot_ms']['median']:.1f}",
                f"{ratio['median']:.2f} × [{ratio['low']:.2f}–{ratio['high']:.2f}]",
                f"{stock['first_token_ms']['median'] / 1000:.1f} → "
                f"{figures['first_token_ms']['median'] / 1000:.1f} s",
            )
        )
    return rows


def _box(limit_bytes: int | None) -> str:
    return "no limit" if limit_bytes is None else f"{limit_bytes / 2**20:.0f} MiB"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Rewrite or check the README."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for page, table in (
        (ROOT / "README.md", short_section(RESULTS)),
        (ROOT / "docs" / "benchmarking.md", section(RESULTS)),
    ):
        text = page.read_text()
        wanted = replaced(text, table)
        if arguments.check and wanted != text:
            sys.exit(
                f"{page.name}: its numbers are not those of docs/results: run this without --check"
            )
        if not arguments.check:
            page.write_text(wanted)


if __name__ == "__main__":
    main()
