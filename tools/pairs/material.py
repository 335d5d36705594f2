"""What trials of options run on: tiny models, and the files that options take. Made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import tiny_dense
import tiny_encoder
import tiny_moe
from remoe_edge.convert.coarse import write_coarse
from remoe_edge.convert.extract import extract
from remoe_edge.files import coarse
from remoe_edge.native import _core

# The first has layers that predict further tokens; the others are what it is not.
MODELS = {
    "usual": ("glm4moe", "Q8_0", {"n_nextn": 1}),
    "hybrid": ("qwen3next", "Q8_0", {}),
    "window": ("gpt-oss", "Q8_0", {}),
    "shards": ("qwen3moe", "Q4_K", {"n_split": 2}),
    "dense": ("llama", "F16", {}),
    "encoder": ("nomic-bert-moe", "Q8_0", {}),
}


class Material:
    """Make models and files as they are asked for; they stay in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def model(self, name: str) -> Path:
        """Give a model's path, in a folder of its own."""
        arch, quant, sizes = MODELS[name]
        folder = self._folder / name
        shards = int(sizes.get("n_split", 1))
        path = folder / ("m.gguf" if shards == 1 else f"m-00001-of-{shards:05}.gguf")
        if not path.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            if name == "dense":
                tiny_dense.make(folder / "m.gguf")
            elif name == "encoder":
                tiny_encoder.encoder(path)
            else:
                tiny_moe.make(folder / "m.gguf", arch, quant, **sizes)
        return path

    def coarse(self, name: str) -> Path:
        """Give the coarse experts beside a model."""
        model = self.model(name)
        path = coarse.beside(model)
        if not path.is_file() and name != "dense":
            finer = MODELS[name][1] != "Q8_0"
            write_coarse(model, "q2_K" if finer else "q4_0", path)
        return path

    def routers(self, name: str) -> Path:
        """Give an overlay for a model: the routers of one with another seed."""
        model = self.model(name)
        path = model.parent / "routers.gguf"
        if not path.is_file() and name not in ("dense", "encoder"):
            arch, quant, sizes = MODELS[name]
            whole = {key: value for key, value in sizes.items() if key != "n_split"}
            other = tiny_moe.make(model.parent / "other.gguf", arch, quant, seed=1, **whole)
            extract(other, path, model, rebase=True)
            other.unlink()
        return path

    def floor(self, name: str) -> int:
        """Give the bytes of the smallest cache."""
        if name == "dense":
            return 1
        native = _core.StreamedModel.open(str(self.model(name)))
        return int(native.budget_for(max(1, native.n_experts_used)))
