"""Run Mixture-of-Experts language models bigger than memory, losslessly.

from remoe_edge import Engine

with Engine("model.gguf", cache="1500MiB") as engine:
    answer = engine.chat([{"role": "user", "content": "Hello!"}])
    for piece in answer:
        print(piece, end="", flush=True)
    print(answer.finish_reason, answer.usage, answer.stats.line(engine.streamed))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from remoe_edge import _moved
from remoe_edge.errors import (
    AbiError,
    BudgetError,
    InputError,
    ModelError,
    ReadError,
    RemoeError,
    UnsupportedError,
)

__version__ = "0.2.0"
__all__ = [
    "AbiError",
    "Answer",
    "BudgetError",
    "Engine",
    "EngineSettings",
    "InputError",
    "ModelError",
    "ReadError",
    "RemoeError",
    "UnsupportedError",
    "__version__",
]

_moved.install()

if TYPE_CHECKING:
    from remoe_edge.api import Engine as Engine
    from remoe_edge.engine.answer import Answer as Answer
    from remoe_edge.engine.settings import EngineSettings as EngineSettings

# Loading the engine loads llama.cpp; `--help` and the conversions do without.
_LATER = {
    "Answer": "remoe_edge.engine.answer",
    "Engine": "remoe_edge.api",
    "EngineSettings": "remoe_edge.engine.settings",
}


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'remoe_edge' has no attribute '{name}'")
