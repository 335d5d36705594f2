"""The tuning loop: AdamW on the routers alone, resumable to the bit on one machine."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remoe_edge.errors import InputError, ModelError, RemoeError
from remoe_edge.tune import losses
from remoe_edge.tune.data import Batches, Domain
from remoe_edge.tune.decoder import Decoder, Routing
from remoe_edge.tune.perplexity_budget import MEASURE_EVERY, PerplexityBudget
from remoe_edge.tune.record import describe_data, versions, write_whole
from remoe_edge.tune.settings import Settings

Report = dict[str, float]
CHECKPOINT_VERSION = 3


class Trainer:
    """One tuning run over a frozen decoder.

    `routers` are the values so far, `averaged` their moving average, which is the run's result: it
    has less of the noise of single batches.
    """

    def __init__(
        self,
        decoder: Decoder,
        domains: Sequence[Domain],
        settings: Settings,
        start: Sequence[Tensor] | None = None,
    ) -> None:
        """Begin at the routers `start` instead of the decoder's own, which stay the reference."""
        shape = decoder.shape
        if settings.window > shape.context:
            raise InputError(
                f"--window {settings.window} is beyond the model's {shape.context} tokens"
            )
        if shape.top_k >= shape.n_experts:
            raise InputError(f"{decoder.path}: every token uses every expert: nothing to tune")
        self.n_slots = settings.cache_slots or max(1, shape.n_slots_all // 4)
        if not shape.top_k <= self.n_slots <= shape.n_slots_all:
            raise InputError(
                f"--cache-slots {self.n_slots} must lie between {shape.top_k} (one layer's choice) "
                f"and {shape.n_slots_all} (every expert)"
            )
        self.decoder = decoder
        self.settings = settings
        self.step = 0
        self.history: list[Report] = []
        first = [router.detach().to(decoder.device) for router in start or decoder.routers]
        self.routers = [router.clone().requires_grad_() for router in first]
        self.averaged = [router.clone() for router in first]
        self._start = float(sum(router.double().sum() for router in first))
        self._optimizer = torch.optim.AdamW(self.routers, lr=settings.lr, weight_decay=0.0)
        self._batches = Batches(domains, settings.window, settings.batch, settings.seed)
        self._data = describe_data(domains)
        self.budget: PerplexityBudget | None = None
        if settings.ppl_budget:
            self.budget = PerplexityBudget(len(domains), settings.ppl_budget, settings.ce)

    def run(
        self,
        on_step: Callable[[Report], None] | None = None,
        checkpoint: Path | None = None,
        checkpoint_every: int = 50,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train from the current step to the last, saving the state now and then.

        Returns False where `should_stop` ended it between two steps, with the state saved.
        """
        while self.step < self.settings.steps:
            report = self.train_step()
            if on_step is not None:
                on_step(report)
            finished = self.step == self.settings.steps
            stopped = not finished and should_stop()
            if checkpoint is not None and (
                finished or stopped or self.step % checkpoint_every == 0
            ):
                self.save(checkpoint)
            if stopped:
                return False
        return True

    def train_step(self) -> Report:
        """Take one optimiser step and report its terms."""
        s = self.settings
        for group in self._optimizer.param_groups:
            group["lr"] = s.lr * self._rate(self.step)
        batch = torch.from_numpy(self._batches[self.step]).to(self.decoder.device)
        domains = self._batches.domains(self.step)
        loss, report = self.objective(batch, domains)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.routers, s.clip)
        if not math.isfinite(float(norm)):
            raise RemoeError(
                f"step {self.step}: the gradient is not finite; the routers of the last checkpoint "
                "are good; resume with a lower --lr"
            )
        self._optimizer.step()
        self.step += 1
        self._average()
        if self.budget is not None:
            if self.step % MEASURE_EVERY == 0:
                self._measure_excess(self.budget, batch, domains)
            report["excess"] = float(self.budget.excess.max())
            report["multiplier"] = float(self.budget.multipliers.max())
        report.update(step=float(self.step), grad_norm=float(norm))
        self.history.append(report)
        return report

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _average(self) -> None:
        """Move the average by 1 - ema; sooner at the start, where it would lag behind."""
        share = max(1 - self.settings.ema, 1 / (1 + self.step / 4))
        for average, router in zip(self.averaged, self.routers, strict=True):
            average.lerp_(router, share)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _measure_excess(
        self, budget: PerplexityBudget, batch: Tensor, domains: Sequence[int]
    ) -> None:
        """Tell the budget what the averaged routers lose against the base model's on a batch."""
        inputs, targets = batch[:, :-1], batch[:, 1:]
        averaged, base = (
            self.decoder.token_losses(self.decoder.hidden(inputs, routers)[0], targets)
            for routers in (self.averaged, None)
        )
        budget.observe(averaged, base, domains)

    def objective(self, batch: Tensor, domains: Sequence[int] = ()) -> tuple[Tensor, Report]:
        """Return the loss of `Settings` on a batch [rows, window + 1], and its terms.

        `domains`: each row's; needed where there is a budget for their perplexity.
        """
        s = self.settings
        inputs, targets = batch[:, :-1], batch[:, 1:]
        hidden, routing = self.decoder.hidden(inputs, self.routers, recompute=s.recompute)
        token_ce = self.decoder.token_losses(hidden, targets)
        ce = token_ce.mean()
        terms = {"ce": ce, **self._locality(routing)}
        terms["kl"] = losses.trust(routing.logits, routing.reference)
        if s.distill:
            with torch.no_grad():
                base, _ = self.decoder.hidden(inputs)
            terms["distill"] = self.decoder.token_divergences(hidden, base).mean()
        alpha = min(1.0, (self.step + 1) / s.loc_warmup) if s.loc_warmup else 1.0
        held = s.ce * ce if self.budget is None else self.budget.weigh(token_ce, domains)
        loss = held + s.kl * terms["kl"]
        if s.distill:
            loss = loss + s.distill * terms["distill"]
        for name in ("miss", "overlap", "reuse", "smooth", "lag", "ws"):
            if getattr(s, name):
                loss = loss + alpha * getattr(s, name) * terms[name]
        report = {name: float(value.detach()) for name, value in terms.items()}
        report.update(loss=float(loss.detach()), eor=losses.overlap_ratio(routing.chosen))
        return loss, report

    def _locality(self, routing: Routing) -> dict[str, Tensor]:
        """Return the locality terms that have a weight."""
        s = self.settings
        terms: dict[str, Tensor] = {}
        if s.miss:
            terms["miss"] = losses.miss_rate(
                routing.logits,
                routing.chosen,
                self.n_slots,
                temperature=s.miss_temperature,
                softness=s.miss_softness,
                through_past=s.miss_through_past,
            )
        if s.overlap:
            terms["overlap"] = losses.overlap(
                routing.logits, routing.chosen, temperature=s.miss_temperature
            )
        if s.reuse or s.smooth or s.lag or s.ws:
            log_p = routing.logits.log_softmax(-1)
            if s.reuse:
                terms["reuse"] = losses.reuse(log_p.exp(), routing.chosen)
            if s.smooth:
                terms["smooth"] = losses.smooth(log_p)
            if s.lag:
                terms["lag"] = losses.lagged(log_p)
            if s.ws:
                terms["ws"] = losses.working_set(log_p.exp(), s.ws_window)
        return terms

    def _rate(self, step: int) -> float:
        """Return the learning rate's share: linear warm-up, then a cosine down to a tenth."""
        s = self.settings
        if step < s.lr_warmup:
            return (step + 1) / s.lr_warmup
        progress = (step - s.lr_warmup) / max(1, s.steps - s.lr_warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))

    def run_record(self) -> dict[str, Any]:
        """Return settings, data hashes, versions and curves."""
        return {
            "base": Path(self.decoder.path).name,
            "architecture": self.decoder.shape.architecture,
            "settings": self.settings.as_dict(),
            "cache_slots": self.n_slots,
            "data": self._data,
            "device": str(self.decoder.device),
            "dtype": str(self.decoder.dtype).removeprefix("torch."),
            "versions": versions(),
            "budget": self._budget_record(),
            "history": self.history,
        }

    def _budget_record(self) -> dict[str, Any] | None:
        """Return each domain's last excess (nats) and multiplier."""
        if self.budget is None:
            return None
        names = [each["domain"] for each in self._data]
        excess, multipliers = self.budget.state
        return {"domains": names, "excess": excess, "multipliers": multipliers}

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to be resumed."""
        return {
            "settings": self.settings.as_dict(),
            "data": self._data,
            "architecture": self.decoder.shape.architecture,
            "dtype": str(self.decoder.dtype),
            "routers": float(sum(router.double().sum() for router in self.decoder.routers)),
            "start": self._start,
        }

    def save(self, path: Path) -> None:
        """Write the state, all or nothing."""
        buffer = io.BytesIO()
        torch.save(
            {
                "version": CHECKPOINT_VERSION,
                "identity": json.dumps(self._identity(), sort_keys=True),
                "step": self.step,
                "history": json.dumps(self.history),
                "routers": [router.detach().cpu() for router in self.routers],
                "averaged": [average.cpu() for average in self.averaged],
                "optimizer": self._optimizer.state_dict(),
                "budget": json.dumps(self.budget.state if self.budget else None),
            },
            buffer,
        )
        write_whole(path, buffer.getvalue())

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same run; refuse one of another."""
        try:
            state = torch.load(path, map_location=self.decoder.device, weights_only=True)
            identity, version = json.loads(state["identity"]), state["version"]
        except Exception as error:  # torch names many kinds for a damaged file
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{path}: not a readable checkpoint: {line}") from error
        if version != CHECKPOINT_VERSION:
            raise ModelError(f"{path}: checkpoint version {version}, expected {CHECKPOINT_VERSION}")
        ours = json.loads(json.dumps(self._identity(), sort_keys=True))
        for part, value in ours.items():
            if identity.get(part) != value:
                raise InputError(
                    f"{path}: belongs to a run with other {part}"
                    f"{_difference(identity.get(part), value)}; start over with --fresh, "
                    "or choose another --out"
                )
        with torch.no_grad():
            for name in ("routers", "averaged"):
                for router, saved in zip(getattr(self, name), state[name], strict=True):
                    router.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        if self.budget is not None:
            self.budget.state = json.loads(state["budget"])
        self.step = int(state["step"])
        self.history = json.loads(state["history"])


def _difference(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in ours:
            if theirs.get(key) != ours[key]:
                return f" ({key} {theirs.get(key)}, now {ours[key]})"
    return ""
