"""Every knob of a tuning run; docs/tuning.md says where the defaults come from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from remoe_edge.errors import InputError


@dataclass(frozen=True)
class Settings:
    """The objective is ce*CE + distill*KL(base||tuned) + kl*L_Trust + alpha_t*L_Loc, where
    L_Loc = miss*L_Miss + overlap*L_Overlap + reuse*L_Reuse + smooth*L_Smooth + lag*L_Lag + ws*L_WS and
    alpha_t = min(1, t / loc_warmup). With ppl_budget, CE has a multiplier for every domain
    (`perplexity_budget`), `ce` the least."""

    steps: int = 2000
    batch: int = 8
    window: int = 256
    lr: float = 1e-3
    lr_warmup: int = 20
    loc_warmup: int = 60
    clip: float = 1.0
    ema: float = 0.99  # of the routers over the steps; 0: the last step's
    seed: int = 0
    ce: float = 1.0
    distill: float = 0.0
    ppl_budget: float = 0.0  # 0: none
    kl: float = 0.1
    miss: float = 0.0
    overlap: float = 0.0
    reuse: float = 0.12
    smooth: float = 0.036
    lag: float = 0.036
    ws: float = 0.036
    ws_window: int = 32
    cache_slots: int = 0  # 0: a quarter of all experts
    miss_temperature: float = 1.0
    miss_softness: float = 0.25
    miss_through_past: bool = False
    dtype: str = "auto"
    recompute: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "window", "lr", "clip", "ws_window", "miss_temperature"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in (
            *WEIGHTS,
            "ppl_budget",
            "cache_slots",
            "lr_warmup",
            "loc_warmup",
            "miss_softness",
        ):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be below 0, not {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema must be from 0 to below 1, not {self.ema}")
        if self.window < 2:
            raise InputError("window must be at least 2 tokens: reuse needs a token before")
        if self.ppl_budget and not self.ce:
            raise InputError("a perplexity budget needs a cross entropy weight (ce) above 0")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise InputError(f"dtype must be auto, float32 or bfloat16, not {self.dtype}")
        if not any(getattr(self, name) for name in WEIGHTS):
            raise InputError("every loss weight is 0: there is nothing to train for")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for the run record."""
        return asdict(self)


WEIGHTS = ("ce", "distill", "kl", "miss", "overlap", "reuse", "smooth", "lag", "ws")
