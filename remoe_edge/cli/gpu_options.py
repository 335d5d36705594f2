"""What a GPU does, as options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from remoe_edge.cli.old_spellings import Decorator, option
from remoe_edge.errors import InputError

if TYPE_CHECKING:
    _AnyType = click.ParamType[Any]
else:
    _AnyType = click.ParamType


class GpuLayers(_AnyType):
    """`auto`, `all`, `off` or a number of layers."""

    name = "layers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        """Refuse anything else."""
        from remoe_edge.engine.offload import check

        try:
            return check(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


def gpu_layers(*, default: str = "auto", more: str = "") -> Decorator:
    """Add --gpu-layers."""
    return option(
        "--gpu-layers", type=GpuLayers(), default=default, show_default=True,
        metavar="auto|all|N|off",
        help="Layers whose dense weights and KV cache lie on a GPU, counted from the last one; auto "
        "takes as many as fit, and none where llama.cpp has no GPU." + (f" {more}" if more else ""),
    )  # fmt: skip


def experts_on() -> Decorator:
    """Add --experts-on."""
    return option(
        "--experts-on", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True,
        help="Where the cache lies and experts are computed; auto is the processor.",
    )  # fmt: skip
