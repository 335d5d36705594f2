"""Start the embeddings and the output matrix from the training text's bigram counts.

With the layers still silent the model is softmax(O · norm(E_i)): a bigram model of low rank.
Fitting that to the counts of all training text takes seconds of CPU, where training would
spend its first millions of tokens on it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .model import MoeModel


def bigram_counts(streams: dict[Path, float], vocab: int) -> Tensor:
    """Return expected bigram counts [vocab, vocab], each stream brought to its share."""
    total = np.zeros(vocab * vocab, dtype=np.float64)
    size = 0
    for path, share in streams.items():
        ids = np.fromfile(path, dtype="<u2").astype(np.int64) & 0x7FFF
        size += len(ids)
        pairs = ids[:-1] * vocab + ids[1:]
        total += np.bincount(pairs, minlength=vocab * vocab) * (share / len(pairs))
    return torch.from_numpy((total * size).astype(np.float32)).view(vocab, vocab)


def start_from_bigrams(
    model: MoeModel, counts: Tensor, steps: int = 200, rows: int = 512, seed: int = 20
) -> float:
    """Fit embed and output to `counts`; return the last steps' mean loss in nats."""
    c = model.config
    device = model.embed.weight.device
    generator = torch.Generator().manual_seed(seed)
    counts = counts.to(device)
    unigram = counts.sum(0) / counts.sum()
    each = counts.sum(1)
    smooth = 2.0  # pseudo-counts, spread like the unigrams
    embed = torch.randn(c.vocab, c.embed, generator=generator).to(device).requires_grad_()
    output = (0.02 * torch.randn(c.vocab, c.embed, generator=generator)).to(device).requires_grad_()
    adam = torch.optim.Adam([embed, output], lr=0.03, betas=(0.9, 0.98))
    losses = []
    weights = (each + 1e-3).cpu().sqrt()  # rare tokens are visited more than they occur
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = 0.03 * min(1.0, 2.0 * (1 - step / steps)) + 1e-4
        at = torch.multinomial(weights, rows, replacement=True, generator=generator).to(device)
        target = (counts[at] + smooth * unigram) / (each[at, None] + smooth)
        hidden = F.rms_norm(embed[at], (c.embed,), eps=c.norm_eps)
        importance = each[at] / weights.to(device)[at]
        loss_each = -(target * F.log_softmax(hidden @ output.t(), -1)).sum(-1)
        loss = (loss_each * importance).sum() / importance.sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    with torch.no_grad():
        model.embed.weight.copy_(embed / embed.pow(2).mean().sqrt())
        model.output.weight.copy_(output)
    return sum(losses[-20:]) / 20
