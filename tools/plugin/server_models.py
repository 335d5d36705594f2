"""The models that llama.cpp's own server tests ask for, each replaced by a small MoE model.

The tests name models of a hub and files by address. They are laid into a folder where the server and the
tests look before they ask the network: a cache of the hub, and the tests' own tmp/.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "tests"))

import tiny_adapter  # noqa: E402
import tiny_moe  # noqa: E402

# Which commit does not matter: the cache is asked for its only one.
_COMMIT = "0" * 40
# What is asked for: a repository, and a file of it.
_ASKED = (
    ("ggml-org/test-model-stories260K", "stories260K-F32.gguf"),
    ("ggml-org/test-model-stories260K-infill", "stories260K-infill-F32.gguf"),
    ("ggml-org/stories15M_MOE", "stories15M_MOE-F16.gguf"),
    ("ggml-org/models", "bert-bge-small/ggml-model-f16.gguf"),
    ("ggml-org/models", "jina-reranker-v1-tiny-en/ggml-model-f16.gguf"),
)
_SPLIT = "tinyllamas/split/stories15M-q8_0.gguf"
_OTHER = ("ggml-org/tinygemma3-GGUF", "tinygemma3-Q8_0.gguf")


def fill_cache(folder: Path, model: Path) -> None:
    """Lay `model`, and two random ones, into a cache of the hub under the names that tests use."""
    for repository, name in _ASKED:
        _snapshot(folder, repository, name).symlink_to(model)
    split = _snapshot(folder, "ggml-org/models", _SPLIT)
    tiny_moe.make(split, "olmoe", "Q8_0", n_split=3)
    tiny_moe.make(_snapshot(folder, *_OTHER), "qwen3moe", "Q8_0")


def _snapshot(folder: Path, repository: str, name: str) -> Path:
    home = folder / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs/main").write_text(_COMMIT)
    path = home / "snapshots" / _COMMIT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def fill_tmp(folder: Path, model: Path) -> None:
    """Lay down what the tests would download: a draft model, and an adapter of dense weights."""
    (folder / "stories15M-q4_0.gguf").symlink_to(model)
    tiny_adapter.write(folder / "moe_shakespeare15M.gguf", model, "blk.0.attn_q.weight")
