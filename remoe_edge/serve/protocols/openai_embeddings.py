"""OpenAI's `/v1/embeddings`: each text becomes a vector of length 1."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from remoe_edge.serve.conversations import Ask
from remoe_edge.serve.events import Event, Vector
from remoe_edge.serve.fields import BadField, Fields
from remoe_edge.serve.protocols.openai_completions import check_ids, texts_or_ids
from remoe_edge.serve.protocols.reply import Frame

if TYPE_CHECKING:
    from remoe_edge.engine.engine import Engine

_MOST_TEXTS = 2048  # OpenAI's


@dataclass(frozen=True)
class EmbeddingRequest:
    """Hold what was asked for. texts: each a text or token ids. dimensions: None for all."""

    texts: list[str | list[int]]
    as_base64: bool
    dimensions: int | None


def read(fields: Fields) -> EmbeddingRequest:
    """Read a request. Raises BadField."""
    fields.text("model")
    texts = texts_or_ids(fields.required("input"), "input", _MOST_TEXTS)
    form = fields.one_of("encoding_format", ("float", "base64"))
    dimensions = fields.whole("dimensions", 1)
    fields.ignore("user")
    fields.end()
    return EmbeddingRequest(texts, form == "base64", dimensions)


def asks(engine: Engine, asked: EmbeddingRequest) -> list[Ask]:
    """Tokenize the texts and make their asks. Raises BadField, and UnsupportedError as `Engine.embed`."""
    most = engine.longest_embedded
    n_embd = int(engine.llama.n_embd())
    if asked.dimensions is not None and asked.dimensions > n_embd:
        raise BadField("dimensions", f"dimensions: this model's embeddings have {n_embd}")
    found = []
    for i, text in enumerate(asked.texts):
        param = "input" if len(asked.texts) == 1 else f"input[{i}]"
        if isinstance(text, str):
            tokens = engine.tokenize(text)
        else:
            check_ids(engine, text, param)
            tokens = list(text)
        if not tokens or not text:
            raise BadField(param, f"{param} is empty")
        if len(tokens) > most:
            raise BadField(
                param,
                f"{param} has {len(tokens)} tokens, and up to {most} become one embedding: shorten it, "
                "or start the server with a larger --ubatch",
            )
        found.append(Ask(tokens, {}, embeds=True))
    return found


class EmbeddingReply:
    """Write the vectors. Implements `Reply`; nothing of it is streamed."""

    def __init__(self, asked: EmbeddingRequest, model: str) -> None:
        self._asked, self._model = asked, model
        self._found: dict[int, Vector] = {}

    def begin(self) -> Iterable[Frame]:
        """Write nothing."""
        return ()

    def take(self, index: int, event: Event) -> Iterable[Frame]:
        """Take in a vector."""
        assert isinstance(event, Vector)
        self._found[index] = event
        return ()

    def end(self) -> Iterable[Frame]:
        """Write nothing."""
        return ()

    def failed(self, status: int, body: dict[str, Any]) -> Iterable[Frame]:
        """Write nothing."""
        return ()

    def whole(self) -> dict[str, Any]:
        """Write the vectors in the order of the texts."""
        n_in = sum(each.n_tokens for each in self._found.values())
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": self._written(self._found[i])}
                for i in sorted(self._found)
            ],
            "model": self._model,
            "usage": {"prompt_tokens": n_in, "total_tokens": n_in},
        }

    def _written(self, found: Vector) -> list[float] | str:
        vector = unit(found.values[: self._asked.dimensions])
        if self._asked.as_base64:
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        written: list[float] = vector.tolist()
        return written


def unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Give a vector length 1; one of zeros stays so."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / (length or 1.0)).astype(np.float32)
