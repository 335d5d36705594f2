"""Predict which experts a prompt will use, from past prompts that look like it.

Similar prompts searching after Remoe (arXiv 2512.18674): `embeddings` give tokens a meaning,
`similarity` compares prompts, `store` keeps what past prompts activated, and `predictor` finds the
nearest and puts their activations together; `past_prompts` does all that beside a running engine.
docs/prediction.md has the figures, tools/similar_prompts/ what judges it.
"""

from remoe_edge.predict.predictor import SimilarPrompts
from remoe_edge.predict.store import PromptStore

__all__ = ["PromptStore", "SimilarPrompts"]
