"""Make a price list: have a model read texts under one setting after another, and compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from remoe_edge.engine.engine import Engine
from remoe_edge.engine.settings import EngineSettings
from remoe_edge.errors import InputError
from remoe_edge.files.coarse import CoarseRecord
from remoe_edge.quality import price_list
from remoe_edge.quality.measure import load_text, measure
from remoe_edge.quality.price_list import Price, PriceList
from remoe_edge.quality.setting import Setting


class Pricing:
    """Measure settings of one model, each in an engine of its own. It begins with the one without loss.

    settings: how engines run; windows of a text have `n_ctx` tokens. data_tokens: of each text; 0 is
    all. progress: told a setting and how many of its tokens are done.

    Raises InputError for a text that is too short and a model without experts, and what Engine raises.
    """

    def __init__(
        self, model: Path, settings: EngineSettings, texts: Sequence[Path], data_tokens: int,
        progress: Callable[[Setting, int], None],
    ) -> None:  # fmt: skip
        self._model, self._settings, self._progress = model, settings, progress
        routers = settings.routers
        self._identity = price_list.identity(model, None if routers is None else Path(routers))
        with Engine(model, settings) as engine:
            native = engine.native
            if native is None:
                raise InputError(f"{model} has no experts: there is nothing to do without")
            self.top_k = int(native.n_experts_used)
            self._cache_share = native.n_slots / native.total_experts
            self._texts = [
                load_text(path, engine.tokenize, settings.n_ctx, data_tokens) for path in texts
            ]
            self._base = measure(engine, self._texts, lambda n: progress(Setting(), n))
        self.lossless = price_list.price(Setting(), self._base, self._base)

    def price(self, setting: Setting) -> Price:
        """Measure a setting, and compare it with the model without loss."""
        with Engine(self._model, self._settings.replace(**asdict(setting))) as engine:
            found = measure(engine, self._texts, lambda n: self._progress(setting, n), self._base)
        return price_list.price(setting, found, self._base)

    def fitting(
        self, found: PriceList, coarse: CoarseRecord | None, name: str
    ) -> tuple[Price, ...]:
        """Give the prices of this model's list that was kept as `name`, to go on from them.

        Raises InputError where they were measured under other conditions, or where those without loss
        are other numbers than now, as on another kind of processor.
        """
        own = self.listed((self.lossless,), coarse)
        for what, then, now in (
            ("another cache", found.cache, own.cache),
            ("another policy", found.policy, own.policy),
            ("another window", found.window, own.window),
            ("other texts", found.texts, own.texts),
            ("another file of coarse experts", found.coarse, own.coarse),
            ("other bits without loss", *(each.prices[0].perplexity for each in (found, own))),
        ):
            if then != now:
                raise InputError(
                    f"{name} was measured with {what}: give another output, or leave out --resume to "
                    "measure all anew"
                )
        return found.prices

    def listed(self, prices: Sequence[Price], coarse: CoarseRecord | None) -> PriceList:
        """Put prices into this model's list; `coarse` tells of the coarser experts that there were."""
        own, overlay = self._identity
        return PriceList(
            model=self._model.name,
            fingerprint=own,
            routers=overlay,
            cache=self._cache_share,
            policy=self._settings.policy,
            window=self._settings.n_ctx,
            texts=tuple(
                {"name": each.name, "sha256": each.sha256, "tokens": each.n_tokens}
                for each in self._texts
            ),
            prices=tuple(prices),
            coarse=None if coarse is None else {"type": coarse.type, "fingerprint": coarse.own},
        )
