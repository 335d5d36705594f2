"""Load a model for tuning: on which device, in which type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from remoe_edge.errors import InputError, UnsupportedError
from remoe_edge.tune.decoder import Decoder
from remoe_edge.tune.weights import open_weights


def load_decoder(
    model: Path, device: str, dtype: str, on_layer: Callable[[int, int], None]
) -> Decoder:
    """Load a GGUF or a Hugging Face folder.

    device: as torch names it. dtype: "float32", "bfloat16", or "auto", which is bfloat16 on CUDA.
    on_layer: told (layers loaded, layers) as it goes.

    Raises:
        InputError: torch knows no such device.
        UnsupportedError: the device is not here.
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"--device {device}: not a device; say cpu or cuda") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("--device cuda: torch sees no CUDA device here")
    return Decoder(open_weights(model), place, _dtype(dtype, place), on_layer=on_layer)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
