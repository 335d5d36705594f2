"""Predict the time of a token from the memory given to experts, and find the least that suffices.

`sizes` say what a model weighs, `reads` and `compute` what this machine does in a second, `misses`
how often experts are absent at a cache size; `latency` puts them together and `planner` searches.
docs/planning.md tells the model and its figures.
"""
