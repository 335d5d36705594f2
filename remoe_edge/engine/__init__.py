"""One loaded model: settings, loading, generating, and what it cost."""

from __future__ import annotations


def __getattr__(name: str) -> object:
    # Loading the engine loads llama.cpp; a benchmark's stock arm must not.
    if name == "Engine":
        from remoe_edge.engine.engine import Engine

        return Engine
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
