"""Run Mixture-of-Experts language models bigger than memory, losslessly.

from remoe_edge import Engine

with Engine("model.gguf", cache="1500MiB") as engine:
    for piece in engine.chat([{"role": "user", "content": "Hello!"}]):
        print(piece, end="", flush=True)
    print(engine.stats())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remoe_edge import _moved

__version__ = "0.1.0"
__all__ = ["Engine", "__version__"]

_moved.install()

if TYPE_CHECKING:
    from remoe_edge.engine.engine import Engine as Engine


def __getattr__(name: str) -> object:
    # Loading the engine loads llama.cpp; `--help` and the conversions do without.
    if name == "Engine":
        from remoe_edge.engine.engine import Engine

        return Engine
    raise AttributeError(f"module 'remoe_edge' has no attribute '{name}'")
