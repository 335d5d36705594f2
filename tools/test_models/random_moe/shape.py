"""Sizes of a Mixture-of-Experts model, independent of its architecture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Hold the dimensions an architecture turns into keys and tensors.

    Fields an architecture does not have are ignored by it. Lengths are counts of elements.
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int  # of dense layers; of the experts too where an architecture has no second length
    n_ff_exp: int
    n_expert: int
    n_expert_used: int
    n_vocab: int
    n_ctx: int = 2048
    n_shared: int = 1  # shared experts, where the architecture counts them
    n_ff_shared: int = 0  # length of the shared expert, where the architecture names it
    n_dense_lead: int = 0
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    rope_dim: int = 0  # 0: head_dim
    n_swa: int = 128
    # Multi-head latent attention (deepseek2)
    q_lora: int = 0
    kv_lora: int = 32
    value_dim: int = 32
    # Router
    n_group: int = 0
    n_group_used: int = 0
    weights_scale: float = 1.0
    weights_norm: bool = False
    n_chunk: int = 2  # experts that share one small expert (grovemoe)
    # Layers without attention (lfm2moe, qwen3next, nemotron_h_moe): those that have it, and sizes
    attention_layers: tuple[int, ...] = ()
    n_conv: int = 3
    ssm_inner: int = 0  # 0: twice the embedding
    ssm_state: int = 32
    ssm_heads: int = 4
    ssm_groups: int = 2
    tied_output: bool = False
    n_nextn: int = 0  # layers after these that predict further tokens (MTP)
