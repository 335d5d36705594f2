#!/usr/bin/env python3
"""Widen a small qwen3moe GGUF into a file of real size that computes the same function.

    python tools/test_models/widen_moe.py SMALL.gguf -o TWIN.gguf --embed 2048 \
        --expert-ffn 1408 --quant q4_0

The twin answers with the small model's text and routes as it does; its experts have the size, and
its file the bytes, of a real model. How, in the order of the data flow:

- Hidden state. The source's d entries are laid out several times (copies), all copies holding the
  same values, by the same rows in whatever writes them: embedding, attention output, down. Where d
  divides the new width, copies fill it; otherwise there are as many as experts need, and the rest
  is padding, exactly zero in every layer because whatever writes it is silent.
- RMSNorm. The mean square changes by energy = copies * d / width. Copies that fill the width make
  it 1, and norms stay as they are, bit for bit. Otherwise epsilon is multiplied by the energy and
  the norm's weights by its root. (The QK norms work on heads, whose size does not change, but share
  the epsilon: theirs is off by that factor, about epsilon / mean(q^2) of their output.)
- Dense weights and routers keep their type and bits and hear the first copy; their columns for
  other copies are silent, those for padding noise. Only experts take `--quant`.
- Experts of the type that the source has: blocks come out as they went in, and hear the first copy.
  With copies that fill the width, the twin's arithmetic is then the source's, with exact zeros
  added: logits are equal to the last bit, and so are text and routing. (In F16, rows must also be
  multiples of what a kernel sums at a stride, 64 at most: a remainder is added in another order.)
- Experts of another type. Four bits are too coarse to keep the routing, but a matrix that hears x
  three times may hold w as a sum of parts, w*x = q1*x + q2*x + q3*x: q1 is w quantised, q2 what q1
  left over, q3 what both left over. What remains stays below a thousandth of a block's largest
  weight, where Q8_0 leaves 1/254. Gate and up spread over copies of the hidden state, down over
  copies of the expert's units (repeated rows of gate and up).
  The sums differ from the source's in the last bits; where activations are rounded to eight bits
  (all quants), such differences grow within a few layers to those of any other rounding. So for
  equality first write the source itself in the type wanted (`--embed` and `--expert-ffn` as they
  are, `--parts 1`), then widen that.
- Padded units. Their rows of gate are noise; their rows of up hear only padding, so that up, and
  its product with the activated gate, is exactly zero. Their columns of down then are noise too,
  and in rows of down that write padding the columns of real units are silent.
- Noise is random bytes with scales at or below the real weights' largest. Silence is a block whose
  scale is zero: it decodes to exact zeros whatever its quants, so these stay random, too. (F16 has
  no scales: silence there is plain zeros, and an F16 twin can be compressed.) Copies begin at block
  boundaries, and a block that weights fill in part is filled up with zeros: noise and weights never
  share a block, nor a scale.
- `--layers N` spreads echoes between the source's layers: they attend, route with the router of the
  layer before (experts renamed by a random permutation), read experts of full size, and add exactly
  zero. Their routing is lively but means nothing: claims about routing belong to the other layers;
  `remoe_edge.widened_echo_layers` lists the echoes.

`tools/test_models/check_twin.py` measures how equal text, routing and perplexity are.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from remoe_edge.errors import InputError, RemoeError
from widen import twin
from widen.plan import QUANTS, Plan, make_plan
from widen.shapes import SHAPES, differences
from widen.source import Source


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="widen_moe.py",
        description="Write a function-preserving widening of a small qwen3moe GGUF.",
    )
    parser.add_argument("source", type=Path, metavar="SMALL.gguf")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="TWIN.gguf")
    parser.add_argument("--shape", choices=SHAPES, help="take sizes and layers from this model")
    parser.add_argument("--embed", type=int, help="hidden size (2048)")
    parser.add_argument("--expert-ffn", type=int, help="units of one expert (1408)")
    parser.add_argument("--layers", type=int, help="layers in all, the rest echoes (the source's)")
    parser.add_argument("--quant", choices=QUANTS, default="q4_0", help="type of the experts")
    parser.add_argument("--parts", type=int, help="quants that an expert weight is the sum of")
    parser.add_argument("--seed", type=int, default=1, help="of the noise (1)")
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    return parser.parse_args(arguments)


def plan_of(options: argparse.Namespace, source: Source) -> Plan:
    """Turn the options into a plan; what is named on the command line wins over the shape."""
    shape = SHAPES[options.shape] if options.shape else None
    embed = options.embed or (shape.embed if shape else 2048)
    expert_ffn = options.expert_ffn or (shape.expert_ffn if shape else 1408)
    layers = options.layers
    if layers is None and shape is not None:
        layers = max(shape.moe_layers, source.layers)
    return make_plan(source, embed, expert_ffn, options.quant, layers, options.parts)


def check_output(options: argparse.Namespace, size_bytes: int) -> None:
    """Refuse an output that would destroy something or cannot fit."""
    output: Path = options.output
    if output.resolve() == options.source.resolve():
        raise InputError(f"{output}: is the source itself; name another output")
    if output.exists() and not options.force:
        raise InputError(f"{output}: exists; --force replaces it")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder")
    free = shutil.disk_usage(output.parent).free
    if free < size_bytes:
        raise InputError(
            f"{output}: needs {size_bytes / 2**20:.0f} MiB, {output.parent} has "
            f"{free / 2**20:.0f} MiB free"
        )


def run(options: argparse.Namespace, console: Console) -> None:
    """Plan, say what differs, write."""
    source = Source(options.source)
    plan = plan_of(options, source)
    total = sum(piece.size_bytes for piece in twin.pieces(source, plan))
    check_output(options, total)
    notes = list(plan.notes)
    if options.shape:
        shape = SHAPES[options.shape]
        notes += [f"beside {shape.title}: {line}" for line in differences(shape, source, plan)]
    for note in notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(True), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(options.output.name, total=total)
        size = twin.write(
            source, plan, options.output, options.seed, lambda count: bar.advance(task, count)
        )
    print(
        f"{options.output}: {size} bytes, {len(plan.layers)} layers of {source.experts} experts, "
        f"{plan.expert_bytes} bytes each ({plan.gate_up.name} gate and up, {plan.down.name} down), "
        f"{plan.hidden.parts} and {plan.units.parts} parts"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; errors become one line on stderr."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(options, Console(stderr=True))
    except RemoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {options.output} was not written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
