"""Draw kept price lists into one picture: bytes per token against loss and perplexity.

Each list is named as its curves are to be: `python tools/price_picture.py own=price-small.json
tuned=price-small-tuned.json -o price-small.png`. Needs the extra `[plot]`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from remoe_edge.quality.plot import draw
from remoe_edge.quality.price_list import read_any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lists", nargs="+", metavar="NAME=FILE")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    named = (each.partition("=") for each in arguments.lists)
    draw({name: read_any(Path(path)) for name, _, path in named}, arguments.output)


if __name__ == "__main__":
    main()
