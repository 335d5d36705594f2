"""Measure a model on this machine against stock llama.cpp, in one run, arms interleaved."""
