"""Make text of an answer's tokens, and keep what is asked of them, whoever computes them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from remoe_edge.engine.answer import Produced, TokenLogprob
from remoe_edge.engine.loaded import Loaded
from remoe_edge.engine.request import Request
from remoe_edge.engine.stop_strings import StopStrings

Row = npt.NDArray[np.float32]


class Writer:
    """Take an answer's tokens one by one; give out its text and say when it ends (`stats.stop`)."""

    def __init__(self, loaded: Loaded, request: Request, produced: Produced) -> None:
        self._loaded, self._request, self._produced = loaded, request, produced
        self._text = StopStrings(request.stop, produced.reader)

    def record(self, token: int, row: Row | None) -> None:
        """Keep a token that was sampled; row: the logits [n_vocab] it was sampled from, if they are
        asked for."""
        produced = self._produced
        produced.stats.n_generated += 1
        if produced.logprobs is not None and row is not None:
            produced.logprobs.append(self._logprob(token, row))
        produced.token_ids.append(token)

    def take(self, token: int, n_in_context: int) -> str:
        """Take a token that was recorded; give the text that is certain now, kept in `produced` too.

        n_in_context: the tokens that have been computed.
        """
        produced, stats = self._produced, self._produced.stats
        if self._loaded.is_end(token) or token in self._request.form.ends:
            stats.stop = "end"
            return ""
        given = self._text.take(token, self._loaded.words().piece(token))
        if self._text.found:
            produced.stop_string = self._text.which
            stats.stop = "stop"
        elif stats.n_generated >= self._request.max_tokens:
            stats.stop = "length"
        elif n_in_context >= self._loaded.n_ctx:
            stats.stop = "context"
        if given:
            produced.texts.append(given)
        return given

    def rest(self) -> str:
        """Give the text that was held back, once no token follows."""
        rest = self._text.rest()
        if rest:
            self._produced.texts.append(rest)
        return rest

    def _logprob(self, token: int, row: Row) -> TokenLogprob:
        logits = row.astype(np.float64)
        logits -= logits.max()
        found = logits - np.log(np.exp(logits).sum())
        n_top = min(self._request.logprobs or 0, len(found))
        top = np.argsort(-found, kind="stable")[:n_top]
        return TokenLogprob(
            int(token),
            self._loaded.words().piece(token, special=True).decode("utf-8", "replace"),
            float(found[token]),
            tuple((int(each), float(found[each])) for each in top),
        )
