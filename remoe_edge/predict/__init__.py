"""Predict which experts a prompt will use, from past prompts that look like it.

Similar prompts searching after Remoe (arXiv 2512.18674): `embeddings` give tokens a meaning,
`similarity` compares prompts, `tree` finds the nearest of many, `store` keeps what past prompts
activated, and `predictor` puts their activations together. docs/prediction.md has the figures.
"""

from remoe_edge.predict.predictor import SimilarPrompts
from remoe_edge.predict.store import PromptStore

__all__ = ["PromptStore", "SimilarPrompts"]
