"""How tokens are chosen, as OpenAI's protocols ask for it; what llama.cpp adds goes by its own name."""

from __future__ import annotations

from typing import Any

from remoe_edge.engine.request import MAX_LOGPROBS
from remoe_edge.serve.fields import BadField, Fields

_INT32_MAX = 2**31 - 1
_MOST_STOPS = 16
_LONGEST_STOP = 1000
_MOST_BIASES = 4096
_NUMBERS = {
    "temperature": (0, 100), "top_p": (0, 1), "min_p": (0, 1),
    "frequency_penalty": (-2, 2), "presence_penalty": (-2, 2),
}  # fmt: skip
# Samplers of llama.cpp that the engine's chain does not have, and those of others.
_NOT_HERE = (
    "typical_p", "tfs_z", "mirostat", "mirostat_mode", "mirostat_tau", "mirostat_eta", "top_a",
    "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base", "dry_allowed_length",
    "dynatemp_range", "top_n_sigma", "min_tokens", "length_penalty", "use_beam_search", "best_of",
    "ignore_eos", "logit_bias_type", "repeat_last_n", "penalize_nl", "samplers",
)  # fmt: skip


def sampling(fields: Fields) -> dict[str, Any]:
    """Give the keywords of `Engine.generate` for the fields that several protocols have."""
    found: dict[str, Any] = {}
    for name, (least, most) in _NUMBERS.items():
        value = fields.number(name, least, most)
        if value is not None:
            found[name] = value
    top_k = fields.whole("top_k", 0, _INT32_MAX)
    if top_k is not None:
        found["top_k"] = top_k
    seed = fields.whole("seed", 0, 2**32 - 2)
    if seed is not None:
        found["seed"] = seed
    for name in ("repeat_penalty", "repetition_penalty"):
        value = fields.number(name, 1e-3, 100)
        if value is not None:
            found["repeat_penalty"] = value
    for name in _NOT_HERE:
        fields.refuse(
            name, "this server's sampler has none", unless=(1,) if name == "best_of" else ()
        )
    if "stop" not in found:
        found["stop"] = stop_strings(fields, "stop")
    bias = logit_bias(fields)
    if bias:
        found["logit_bias"] = bias
    found["max_tokens"] = None
    return found


def max_tokens(fields: Fields, *names: str, least: int = 1) -> int | None:
    """Give the limit of an answer, which has several names; None without one."""
    found = [
        (name, n) for name in names if (n := fields.whole(name, least, _INT32_MAX)) is not None
    ]
    if len({n for _, n in found}) > 1:
        raise BadField(found[0][0], f"{found[0][0]} and {found[1][0]} differ: give one of them")
    return found[0][1] if found else None


def stop_strings(fields: Fields, name: str) -> list[str]:
    """Give one stop string or several."""
    value = fields.any(name, [])
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise BadField(fields.name(name), f"{fields.name(name)} is a text, or a list of texts")
    if len(found) > _MOST_STOPS or not all(0 < len(each) <= _LONGEST_STOP for each in found):
        raise BadField(
            fields.name(name),
            f"{fields.name(name)} has up to {_MOST_STOPS} texts of 1 to {_LONGEST_STOP} characters",
        )
    return list(found)


def logit_bias(fields: Fields) -> dict[int, float]:
    """Give what to add to the logits of tokens."""
    found = fields.object("logit_bias")
    if found is None:
        return {}
    values = found.plain()
    if len(values) > _MOST_BIASES:
        raise BadField("logit_bias", f"logit_bias has up to {_MOST_BIASES} tokens")
    made = {}
    for key in values:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise BadField("logit_bias", "logit_bias maps token ids to numbers of -100 to 100")
        value = found.number(key, -100, 100)
        if value is not None:
            made[int(key)] = value
    return made


def check_bias(bias: dict[int, float] | None, n_vocab: int) -> None:
    """Raise BadField for tokens that the model does not have."""
    for token in bias or {}:
        if token >= n_vocab:
            raise BadField("logit_bias", f"logit_bias: {token} is no token, there are {n_vocab}")


def top_logprobs(fields: Fields, name: str, most: int) -> int | None:
    """Give of how many tokens the log probabilities are wanted beside the chosen one."""
    return fields.whole(name, 0, min(most, MAX_LOGPROBS))
