"""Past prompts beside a running engine: expect by them what a new one uses, and learn from it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from remoe_edge.engine.nextn_layers import n_layers_run
from remoe_edge.errors import InputError
from remoe_edge.files.reading import read_whole
from remoe_edge.files.taking_turns import taking_turns
from remoe_edge.native import _core
from remoe_edge.predict.embeddings import Floats, TokenEmbeddings
from remoe_edge.predict.predictor import SimilarPrompts
from remoe_edge.predict.similarity import summary
from remoe_edge.predict.store import PromptStore

if TYPE_CHECKING:
    from remoe_edge._core import StreamedModel

# Of a tuning by replays, docs/prediction.md: how much a prediction counts beside what the policy has
# seen, in log odds, and how even use is mixed in.
WEIGHT = 0.6
EVEN = 0.1
# The search takes up what was learnt once so many times the prompts are there.
_GROWTH = 1.25


def bonus(scores: Floats) -> Floats:
    """Turn a prediction [layers, experts], each layer's adding up to 1, into what a policy adds."""
    lift = (scores.shape[1] * scores + EVEN) / (1 + EVEN)
    return np.asarray(WEIGHT * np.log(lift), np.float32)


@dataclass(frozen=True)
class PastPromptsFile:
    """Name the file of past prompts for an engine, which opens it. routers: see `PastPrompts`."""

    path: Path
    routers: Path | None = None

    def open(self, model: Path, native: StreamedModel) -> PastPrompts:
        """Open it for a model. Raises as `PastPrompts`."""
        return PastPrompts(self.path, model, native.n_layers, native.n_experts, self.routers)


class PastPrompts:
    """The past prompts of one model in a file, which is read at once and written by `save`.

    Raises InputError where it is damaged, cannot be read or written, or is of another model, and
    ModelError or UnsupportedError where the model's token embeddings cannot be had.
    """

    def __init__(
        self, path: Path, model: Path, n_layers: int, n_experts: int, routers: Path | None = None
    ) -> None:
        """Open the file if it is there. `routers`: a tuned overlay, under which prompts of their own
        are kept."""
        from remoe_edge.files.fingerprint import fingerprint

        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"{path} cannot hold past prompts: give the path of a file")
        self.path = path
        self._embeddings = TokenEmbeddings(model)
        # A format that cannot be decoded is said now, not after an answer.
        self._embeddings.unit([0])
        file = _core.ModelFile.open(str(model))
        self._n_run = n_layers_run(file)
        own = fingerprint(file)
        if routers is not None:
            own = hashlib.sha256(own.encode() + read_whole(routers, "tuned routers")).hexdigest()
        self.store = PromptStore(n_layers, n_experts, own)
        self._read()
        self._n_learned = 0  # of the store's last prompts, those that the file has not
        self._search: SimilarPrompts | None = None
        self._searched = 0

    def _read(self) -> None:
        if not self.path.exists():
            return
        store, own = PromptStore.load(self.path, self.store.fingerprint), self.store
        shape = own.n_layers, own.n_experts, store.width and self._embeddings.width
        if (store.n_layers, store.n_experts, store.width) != shape:
            raise InputError(f"{self.path}: prompts of another model, of another shape")
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def expect(self, tokens: Sequence[int]) -> Floats | None:
        """Give what a policy shall add for a new prompt, [layers, experts]; None without a past."""
        shares = self.shares(tokens)
        return None if shares is None else bonus(shares)

    def shares(self, tokens: Sequence[int]) -> Floats | None:
        """Predict a prompt's shares of experts, [layers, experts]; None without a past."""
        if not len(self.store):
            return None
        if self._search is None or len(self.store) >= _GROWTH * self._searched:
            self._search = SimilarPrompts(self.store, self._embeddings)
            self._searched = len(self.store)
        return self._search.predict(tokens)

    def learn(self, tokens: Sequence[int], choices: npt.NDArray[np.integer]) -> None:
        """Add a prompt and how many of its tokens and its answer's chose each expert.

        `choices`: [layers * experts]. What did not run through every layer is left out, but for layers
        that predict further tokens: where those did not run, their experts count alike.
        """
        counts = choices.reshape(self.store.n_layers, self.store.n_experts)
        total = counts.sum(1, keepdims=True)
        if not tokens or not total[: self._n_run].all():
            return
        counts, total = np.where(total, counts, 1), np.where(total, total, counts.shape[1])
        shares = np.asarray(counts / total, np.float32)
        self.store.add(summary(tokens, self._embeddings), shares)
        self._n_learned = min(self._n_learned + 1, len(self.store))

    @contextlib.contextmanager
    def beside(self, model: StreamedModel, tokens: Sequence[int]) -> Iterator[None]:
        """Tell the model's policy what to expect while a prompt is answered, then learn from it."""
        model.expect(self.expect(tokens))
        before = model.choices().astype(np.int64)
        try:
            yield
        finally:
            model.expect(None)
            self.learn(tokens, model.choices() - before)

    def save(self) -> None:
        """Add what was learnt to what the file holds by now, and write it, whole or not at all.

        Raises as it was opened; the file is then as it was.
        """
        if not self._n_learned:
            return
        with taking_turns(self.path):
            mine = self.store
            self._read()
            if self.store is not mine:
                self.store.add_last(mine, self._n_learned)
            self.store.save(self.path)
        self._n_learned = 0
