"""What `/stats` tells in a chat: a few lines with units, for a person."""

from __future__ import annotations

from typing import Any

from remoe_edge.engine import lossy
from remoe_edge.units import mib

_ENDS = {
    "end": "the model ended it",
    "stop": "it came to a stop text",
    "length": "it reached -n",
    "context": "the context was full",
    "cancelled": "it was stopped",
}


def stats_lines(model: str, stats: dict[str, Any]) -> list[str]:
    """Write what `EngineStats.to_dict` gives, a line for each thing that a person asks about."""
    rows = [("model", _model(model, stats)), ("last answer", _answer(stats)), *_speed(stats)]
    if stats["cache"] is not None:
        rows += _cache_rows(stats["cache"], stats["io"], stats["tpot_ms"]["mean"])
    if loss := stats.get("lossy"):
        rows.append(
            (
                "lossy",
                f"{loss['means']}; {lossy.said_of(loss)}" if loss["weighed"] else loss["means"],
            )
        )
    rows += _peer_rows(stats.get("remote"))
    rows.append(("memory", _memory(stats)))
    energy = stats["energy"]
    if energy and energy.get("joules_per_token") is not None:
        rows.append(("energy", f"{energy['joules_per_token']:.2f} J per token"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _model(model: str, stats: dict[str, Any]) -> str:
    how = "experts streamed" if stats["streamed"] else "loaded whole"
    return (
        f"{model}, {how}, {_count(stats['threads'], 'thread')}, "
        f"context {stats['n_ctx']:,} tokens, loaded in {stats['load_ms'] / 1000:.1f} s"
    )


def _answer(stats: dict[str, Any]) -> str:
    if not stats["stop"]:
        return "none yet"
    prompt = _count(stats["n_prompt"], "token")
    end = _ENDS.get(stats["stop"], stats["stop"])
    return f"{_count(stats['n_generated'], 'token')} after a prompt of {prompt}; {end}"


def _peer_rows(remote: dict[str, Any] | None) -> list[tuple[str, str]]:
    if remote is None:
        return []
    peers = ", ".join(
        f"{peer['address']} {peer['state']}" + (f" ({peer['why']})" if peer["why"] else "")
        for peer in remote["peers"]
    )
    answers = (
        f"{_count(remote['remote_rows'], 'row')} of {_count(remote['remote_experts'], 'expert')} came "
        f"from them; {_count(remote['remote_hedges'], 'expert')} came from storage as they were late; "
        f"{_count(remote['remote_audited'], 'answer')} audited"
    )
    return [("peers", peers), ("", answers)]


def _speed(stats: dict[str, Any]) -> list[tuple[str, str]]:
    parts = []
    tpot = stats["tpot_ms"]
    if tpot["mean"]:
        parts.append(
            f"{1000 / tpot['mean']:.1f} tokens/s: {tpot['mean']:.1f} ms per token "
            f"(90 % of them within {tpot['p90']:.1f}, 99 % within {tpot['p99']:.1f})"
        )
    if stats["ttft_ms"] is not None:
        parts.append(f"first token after {stats['ttft_ms'] / 1000:.2f} s")
    return [("speed", "; ".join(parts))] if parts else []


def _cache_rows(
    cache: dict[str, Any], io: dict[str, Any], tpot_ms: float | None
) -> list[tuple[str, str]]:
    rows = [
        ("cache", f"{mib(cache['budget_bytes'])}, {cache['slots']:,} experts, {cache['policy']}")
    ]
    used = cache["hits"] + cache["misses"]
    if used:
        rows.append(
            (
                "hits",
                f"{100 * cache['hits'] / used:.1f} % of {used:,} uses of experts; "
                f"{cache['misses']:,} were read",
            )
        )
    waited = f", {cache['stall_ms']:,.0f} ms of waiting" if tpot_ms else ""
    direct = "O_DIRECT" if io["direct"] else "the page cache"
    rows.append(
        (
            "reads",
            f"{mib(cache['bytes_read'])} for the answer{waited}; by {io['backend']} and {direct}, "
            f"{io['depth']} in flight",
        )
    )
    rows.append(("prefetch", _prefetch(cache["prefetch"])))
    return rows


def _prefetch(prefetch: dict[str, Any]) -> str:
    state = str(prefetch["state"])
    if prefetch["why_not"]:
        state += f" ({prefetch['why_not']})"
    useful, wasted = prefetch["useful_bytes"], prefetch["wasted_bytes"]
    if not useful and not wasted:
        return state
    return f"{state}; {mib(useful)} were used, {mib(wasted)} were not"


def _memory(stats: dict[str, Any]) -> str:
    peak = stats["peak_rss_bytes"]
    parts = [] if peak is None else [f"{mib(peak)} at most"]
    if stats["cache"] is not None:
        parts.append(f"experts {mib(stats['cache']['budget_bytes'])}")
    weights = "dense weights" if stats["streamed"] else "weights"
    names = {"model": weights, "KV": "KV cache", "compute": "compute buffers"}
    for name, n_bytes in stats["buffers"].items():
        if name in names and n_bytes:
            parts.append(f"{names[name]} {mib(n_bytes)}")
    return ", ".join(parts)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
