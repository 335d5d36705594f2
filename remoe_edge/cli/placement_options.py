"""Options of placing and deploying experts elsewhere: declared here, once, like those of options.py."""

from __future__ import annotations

import click

from remoe_edge.cli.old_spellings import Decorator, option
from remoe_edge.cli.options import FILE


def slo(*, required: bool = False) -> Decorator:
    """Add --slo."""
    return option(
        "--slo", required=required, metavar="tpot=TIME,ttft=TIME",
        help="The targets, one or both: tpot=250ms,ttft=3s.",
    )  # fmt: skip


def price(*, default: str | None = None) -> Decorator:
    """Add --price."""
    return option(
        "--price", metavar="NAME|FILE", default=default, show_default=default is not None,
        help="Prices of memory, time and calls: per-call, lifetime, paper or steps, which come along, "
        "or a JSON file (docs/placement.md).",
    )  # fmt: skip


def link(*, more: str = "") -> Decorator:
    """Add --link."""
    return option(
        "--link", metavar="TIME,SIZE", default="0.6ms,125MB", show_default=True,
        help=("The network to a function, its round trip and bytes per second. " + more).strip(),
    )  # fmt: skip


def trace_file() -> Decorator:
    """Add --trace."""
    return option(
        "--trace", "trace_path", type=FILE, metavar="FILE",
        help="The model's routing, recorded with `remoe-edge trace`.",
    )  # fmt: skip


def function_times(*, more: str = "") -> Decorator:
    """Add --function-times."""
    text = (
        "What a row takes on functions, as tools/remote_experiments/expert_latency.py measures it."
    )
    return option(
        "--function-times", type=FILE, metavar="FILE", help=f"{text} {more}".strip(),
    )  # fmt: skip


def prompt_tokens() -> Decorator:
    """Add --prompt-tokens."""
    return option(
        "--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True, metavar="N",
        help="Tokens of a prompt.",
    )  # fmt: skip


def deployment() -> Decorator:
    """Add --deployment."""
    return option(
        "--deployment", metavar="NAME",
        help="Lease functions that `remoe-edge deploy` has deployed, as prompts want them.",
    )  # fmt: skip
