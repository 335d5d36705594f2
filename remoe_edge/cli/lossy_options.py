"""The options by which a command does without experts, at some loss of quality (docs/quality.md)."""

from __future__ import annotations

from remoe_edge.cli import options
from remoe_edge.cli.numbers import Number
from remoe_edge.cli.old_spellings import Decorator, Function, option

_SHARE = Number(0, 1, max_open=True)


def _means(name: str, help: str) -> Decorator:
    return option(
        name, type=_SHARE, default=0.0, show_default=True, metavar="SHARE", help=f"Lossy: {help}"
    )


def _chosen() -> tuple[Decorator, ...]:
    return (
        _means(
            "--swap-near",
            "use a resident expert for a missing one whose weight is larger by at most this share.",
        ),
        _means("--skip-cold", "leave out missing experts below this share of a token's weights."),
        _means("--skip-small", "leave out all experts below this share of a token's weights."),
        _means(
            "--coarse-below",
            "read missing experts below this share of a token's weights in a coarser form.",
        ),
        option(
            "--coarse", type=options.FILE, metavar="FILE",
            help="Coarser experts, from `convert coarse`, if they are not beside the model.",
        ),
    )  # fmt: skip


def chosen(function: Function) -> Function:
    """Give the means alone, each by its own share, and the file that coarser experts come from."""
    for each in reversed(_chosen()):
        function = each(function)
    return function


def every() -> tuple[Decorator, ...]:
    """Give the price and its means."""
    return (
        option(
            "--quality-loss", metavar="SHARE",
            help="Lossy: read less for so much perplexity, such as 1%; the means are chosen from what "
            "`remoe-edge price` has measured of the model.",
        ),
        option(
            "--reproducible", is_flag=True,
            help="Lose quality only by what does not depend on the cache: the same prompt then gives the "
            "same answer at any cache.",
        ),
        option(
            "--price-list", type=options.FILE, metavar="FILE",
            help="What `remoe-edge price` wrote, if it is not beside the model.",
        ),
        *_chosen(),
    )  # fmt: skip
