"""Widen a small MoE into a file of real size with the same function; see `widen_moe.py`."""
