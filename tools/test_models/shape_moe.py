"""Write a model of random weights at the exact published size of a well-known MoE.

    python tools/test_models/shape_moe.py --arch olmoe -o olmoe-shape.gguf

For loading, correctness and throughput. Random routers choose every expert equally often and
without regard to the text, so nothing about routing, reuse or caching may be concluded from such
a file; its metadata says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gguf import GGMLQuantizationType, Keys
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from random_moe import writer
from random_moe.build import build
from random_moe.layout import Layout, Value
from random_moe.published import PUBLISHED, Published
from random_moe.vocabulary import MIN_VOCAB

QUANTS = ("f16", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k", "iq4_nl", "mxfp4")
NOTE = (
    "Random weights at a published shape: for load, correctness and throughput only. "
    "No claim about routing, expert reuse or cache hit rates may be made with this file."
)


def formats(quant: str) -> writer.Formats:
    """Return the format of each tensor role for a file called `quant`.

    As llama.cpp's own files do: MXFP4 for experts only, and a finer output matrix.
    """
    Q = GGMLQuantizationType
    expert = Q[quant.upper()]
    table = dict(writer.formats(expert, Q.Q8_0 if expert == Q.MXFP4 else expert))
    if expert in (Q.Q4_0, Q.Q4_K, Q.Q5_K, Q.IQ4_NL):
        table["output"] = Q.Q6_K
    return table


def cut(model: Published, n_layer: int | None, n_vocab: int | None) -> Layout:
    """Return the layout of `model`, shortened where a number is given."""
    shape = model.shape
    shape = replace(shape, n_layer=n_layer or shape.n_layer, n_vocab=n_vocab or shape.n_vocab)
    return build(model.arch, shape)


def generate(
    path: Path,
    name: str,
    *,
    quant: str | None = None,
    n_layer: int | None = None,
    n_vocab: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write the model called `name` (a key of PUBLISHED) to `path` and return the path.

    Memory stays below 1 GiB. Raises `random_moe.writer.WriteError`.
    """
    model = PUBLISHED[name]
    chosen = quant or model.quant
    plan, table = cut(model, n_layer, n_vocab), formats(chosen)
    metadata: dict[str, Value] = {
        Keys.General.NAME: f"{model.card} shape, random weights",
        Keys.General.DESCRIPTION: NOTE,
        Keys.General.QUANTIZATION_VERSION: 2,
        "remoe_edge.shape_only": True,
        "remoe_edge.shape_note": NOTE,
        "remoe_edge.shape_of": model.card,
        **model.metadata,
    }
    total = writer.tensor_bytes(plan, table)
    bar = progress or Progress(disable=True)
    with bar:
        task = bar.add_task(f"{name} {chosen}", total=total)
        return writer.write(
            path,
            plan,
            table,
            seed=seed,
            metadata=metadata,
            durable=True,
            advance=lambda n_bytes: bar.advance(task, n_bytes),
        )[0]


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more")
        return value

    return number


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write one model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", required=True, choices=sorted(PUBLISHED))
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--quant", choices=QUANTS, help="default: as the model is usually run")
    parser.add_argument("--layers", type=_at_least(1), help="fewer layers than published")
    parser.add_argument("--vocab", type=_at_least(MIN_VOCAB), help="fewer tokens than published")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    try:
        path = generate(
            options.output,
            options.arch,
            quant=options.quant,
            n_layer=options.layers,
            n_vocab=options.vocab,
            seed=options.seed,
            progress=progress,
        )
    except writer.WriteError as error:
        sys.exit(f"shape_moe: {error}")
    print(path)


if __name__ == "__main__":
    main()
