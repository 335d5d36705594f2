"""A GGUF as a batched text generator, run by transformers: a few hundred answers at once on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


class Teacher:
    """The network, in bfloat16. Prompts of one batch have one length."""

    def __init__(self, path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
        self.model = model.to(torch.bfloat16).eval()
        # What a file says of sampling is for its own users: answer() says all of it.
        self.model.generation_config = type(model.generation_config)()

    @torch.inference_mode()
    def answer(
        self,
        prompts: Tensor,
        limit: int,
        stop: int,
        seed: int,
        temperature: float = 0.6,
        top_k: int = 40,
        top_p: float = 0.9,
    ) -> tuple[list[list[int]], list[bool]]:
        """Return for [row, length] prompts the tokens of each row's answer, and whether it ended.

        At most `limit` tokens each, without the token `stop` that ends an answer. The same seed and
        prompts give the same answers.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokens = self.model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=limit,
                do_sample=True,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                eos_token_id=stop,
                pad_token_id=stop,
            )
        answers = [row[prompts.shape[1] :] for row in tokens.tolist()]
        ended = [stop in answer for answer in answers]
        cut = [a[: a.index(stop)] if stop in a else a for a in answers]
        return cut, ended
