"""Write the README's table of numbers from the records in docs/results.

    python tools/readme_numbers.py            # rewrite it
    python tools/readme_numbers.py --check    # fail if it is not what the records say

One row for each streamed arm of each record named bench-*.json, in the order of these names. A star
marks arms of which a run, or one of stock's, was disturbed. The records say how they were made.
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
    rows, commands = [], []
    for path in sorted(folder.glob("bench-*.json")):
        record = json.loads(path.read_text())
        rows += _rows(record)
        commands.append(f"{record['command']}   # {path.name}")
    table, code = "\n".join([HEAD, *rows]), "\n".join(["```sh", *commands, "```"])
    return f"{table}\n\n{code}\n"


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
