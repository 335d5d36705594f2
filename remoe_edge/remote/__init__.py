"""Serve experts to engines on other machines (docs/remote.md)."""
