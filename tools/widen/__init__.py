"""Widen a small MoE into a file of real size with the same function; see `tools/widen_moe.py`."""
