"""The plug-in for programs of llama.cpp: build it for a llama.cpp, and start programs with it."""

from __future__ import annotations
