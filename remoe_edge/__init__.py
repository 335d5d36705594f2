"""Run Mixture-of-Experts models bigger than memory, losslessly."""

__version__ = "0.1.0"
