"""Fuzzing of what reads a GGUF's header: this package's checks, and llama.cpp after them."""
