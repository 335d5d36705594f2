"""The model's shape, in the words of the qwen3moe architecture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class MoeConfig:
    """Sizes of a qwen3moe model; every row length is divisible by 32, as Q8_0 and Q4_0 want."""

    vocab: int = 4096
    embed: int = 256
    layers: int = 9
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    experts: int = 64
    top_k: int = 6
    expert_ffn: int = 64
    context: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("embed", "expert_ffn"):
            if getattr(self, name) % 32:
                raise ValueError(f"{name} = {getattr(self, name)} must be divisible by 32")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads do not divide among {self.kv_heads} KV heads")

    def save(self, path: Path) -> None:
        """Write the config as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> MoeConfig:
        """Read a config that `save` wrote."""
        return MoeConfig(**json.loads(path.read_text()))
