"""A trainer of a tiny model and the texts that it reads; needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="tuning needs torch (extra [tune])")
pytest.importorskip("transformers", reason="tuning needs transformers (extra [tune])")

from remoe_edge.tune.data import load_domains  # noqa: E402
from remoe_edge.tune.decoder import Decoder  # noqa: E402
from remoe_edge.tune.settings import Settings  # noqa: E402
from remoe_edge.tune.trainer import Trainer  # noqa: E402
from remoe_edge.tune.weights import open_weights  # noqa: E402
from tune_models import (  # noqa: E402
    SPECIALS,
)

ALL_TERMS: dict[str, Any] = {
    "distill": 0.3, "kl": 0.1, "miss": 0.5, "overlap": 0.2, "reuse": 0.2, "smooth": 0.1, "lag": 0.1,
    "ws": 0.1, "ws_window": 8,
}  # fmt: skip


def write_data(folder: Path) -> Path:
    """Write two domains of text."""
    folder.mkdir()
    prose = "It was a bright cold day. " * 20 + SPECIALS[0] + "Next. " * 30
    (folder / "prose.txt").write_text(prose)
    (folder / "code.txt").write_text("def f(x):\n    return x + 1\n" * 20)
    return folder


def make_trainer(gguf_path: Path, data_dir: Path, **values: Any) -> Trainer:
    decoder = Decoder(open_weights(gguf_path))
    domains = load_domains([data_dir], gguf_path, 24, decoder.n_vocab)
    few = {"steps": 6, "batch": 2, "window": 24, "lr": 1e-2, "lr_warmup": 2, "loc_warmup": 4}
    return Trainer(decoder, domains, Settings(**{**few, **values}))
