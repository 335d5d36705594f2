"""Fit the reuse-biased policy to a model's traces, and keep the result in a small file.

What is fitted, and on what, is told in docs/policies.md. In short: links (how an expert's use
follows from the experts just chosen) by logistic regression per layer; then one weight per column
of the score, with every trace judged by links that were fitted on the other traces, so that a link
is trusted only as far as it carries over; then a search around these weights for fewer misses. The
columns and the misses come from the policy's own code.
"""

from __future__ import annotations

from remoe_edge.profile.file import read_profile, save_profile
from remoe_edge.profile.fit import Fitted, fit_profile

__all__ = ["Fitted", "fit_profile", "read_profile", "save_profile"]
