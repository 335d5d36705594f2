"""Write the README's table of numbers from the records in docs/results.

    python tools/readme_numbers.py            # rewrite it
    python tools/readme_numbers.py --check    # fail if it is not what the records say

One row for each streamed arm of each record, in the order of the records' names. A star marks arms
of which a run was disturbed. Records of `remoe-edge bench` say how they were made; older
ones are of the tool that came before it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- numbers: tools/readme_numbers.py writes what follows, from docs/results -->"
END = "<!-- end of numbers -->"
HEAD = (
    "| model | box | arm | stock, ms/token | ms/token | ratio [95 %] | start to first token |\n"
    "|---|---|---|---|---|---|---|"
)


def section(folder: Path) -> str:
    """Make the table, and the list of commands, of all records in a folder."""
    rows, commands, older = [], [], False
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if record.get("format") == "remoe-edge bench":
            rows += _rows(record)
            commands.append(f"{record['command']}   # {path.name}")
        elif "stock_over_stream" in record:
            rows.append(_older_row(record))
            older = True
    parts = ["\n".join([HEAD, *rows])]
    if commands:
        parts.append("\n".join(["```sh", *commands, "```"]))
    if older:
        parts.append("Rows without an interval are older, by the tool that `bench` replaced.")
    return "\n\n".join(parts) + "\n"


def replaced(readme: str, table: str) -> str:
    """Put a table between the marks of a README."""
    before, _, rest = readme.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"README.md has no section between '{BEGIN}' and '{END}'")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def _rows(record: dict[str, Any]) -> list[str]:
    if not record["complete"]:
        raise SystemExit(f"not complete: {record['command']}")
    model = record["model"]
    rows = []
    for name, figures in record["summary"].items():
        against = figures.get("against")
        if against is None or record["arms"][name]["kind"] != "stream":
            continue
        stock = record["summary"][against["arm"]]
        cache = record["arms"][name]["cache"]
        star = " \\*" if figures["disturbed_rounds"] or stock["disturbed_rounds"] else ""
        ratio = against["tpot_ratio"]
        rows.append(
            _row(
                f"{model['name'] or model['file']}, {'/'.join(model['types'])}, "
                f"{model['file_bytes'] / 1e9:.2f} GB",
                _box(record["settings"]["limits"]["memory_bytes"]),
                f"`{name}`, {cache} cache{star}",
                f"{stock['tpot_ms']['median']:.1f} ({against['arm']})",
                f"{figures['tpot_ms']['median']:.1f}",
                f"{ratio['median']:.2f} × [{ratio['low']:.2f}–{ratio['high']:.2f}]",
                f"{stock['first_token_ms']['median'] / 1000:.1f} → "
                f"{figures['first_token_ms']['median'] / 1000:.1f} s",
            )
        )
    return rows


def _older_row(record: dict[str, Any]) -> str:
    stock_name, ours_name = record["summary"]
    stock, ours = record["summary"][stock_name], record["summary"][ours_name]
    words = record["command"].split()
    resident = "--resident" in words
    cache = "100%" if resident else words[words.index("--cache") + 1]
    return _row(
        f"{words[2]}, {record['model_bytes'] / 1e9:.2f} GB",
        _box(record["memory_limit_bytes"]),
        f"`stream:lru`, {cache} cache",
        f"{stock['mean_token_ms']:.1f} ({'stock-resident' if resident else 'stock-mmap'})",
        f"{ours['mean_token_ms']:.1f}",
        f"{record['stock_over_stream']['mean_token_ms']:.2f} ×",
        f"{stock['first_token_s']:.1f} → {ours['first_token_s']:.1f} s",
    )


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
    readme = ROOT / "README.md"
    text = readme.read_text()
    wanted = replaced(text, section(ROOT / "docs" / "results"))
    if arguments.check and wanted != text:
        sys.exit("README.md: its numbers are not those of docs/results: run this without --check")
    if not arguments.check:
        readme.write_text(wanted)


if __name__ == "__main__":
    main()
