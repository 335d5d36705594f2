"""Tuned routers: from training output to overlays, merged models and Hugging Face folders."""
