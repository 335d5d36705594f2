"""A record as a bench writes it, made up: three layers, two prompts, twelve tokens each."""

from __future__ import annotations

from typing import Any

from remoe_edge.bench import summary
from remoe_edge.bench.record import FORMAT, VERSION

N_LAYERS, N_TOKENS = 3, 12


def made_up(
    arms: tuple[str, ...], *, rounds: int = 2, watts: bool = True, slower: float = 1.0
) -> dict[str, Any]:
    """Make a record; stream arms named `cache=N%` have a cache of N MiB."""
    runs = [
        _run(name, i, round_, watts, slower)
        for round_ in range(1, rounds + 1)
        for i, name in enumerate(arms)
    ]
    record: dict[str, Any] = {
        "format": FORMAT, "version": VERSION, "complete": True, "ended": "done",
        "command": "remoe-edge bench made-up.gguf --memory-limit 100M --json made-up.json",
        "started": "2026-01-02T03:04:05+00:00", "finished": "2026-01-02T03:05:06+00:00",
        "machine": {
            "board": None, "cpu": "A processor", "architecture": "x86_64", "cpus": 2,
            "virtual": True, "governor": None, "memory_bytes": 8 << 30, "swap_bytes": 0,
            "cgroup_limit_bytes": None, "kernel": "6.1.0", "system": "A system",
        },
        "software": {"remoe_edge": "0", "llama_cpp_python": "0"},
        "storage": {
            "disk": "sda",
            "probe": {"backend": "pread", "direct": True, "notes": [], "points": [],
                      "pick": {"mib_per_s": 900.0, "depth": 4, "block_bytes": 1 << 20}},
        },
        "model": {
            "file": "made-up.gguf", "name": "made up", "architecture": "qwen3moe",
            "fingerprint": "f" * 64, "file_bytes": 300 << 20, "dense_bytes": 30 << 20, "layers": 3,
            "expert_layers": N_LAYERS, "experts_per_layer": 8, "experts_used": 2,
            "expert_bytes": 270 << 20, "bytes_per_token": 60 << 20, "types": {"Q4_0": 270 << 20},
        },
        "settings": {
            "rounds": rounds, "tokens": N_TOKENS - 2, "warm": 2, "n_ctx": 256, "seed": 0,
            "limits": {"memory_bytes": 100 << 20, "read_bytes_per_s": None},
        },
        "box": "cgroup v2", "page_cache": "dropped whole",
        "power": {"source": "rapl: package-0" if watts else None, "idle": None, "missing": None},
        "read_ahead": {"found_kib": 8192, "kib": 128, "note": "set, from 8192 KiB"},
        "arms": {name: _arm(name) for name in arms},
        "prompts": [{"name": f"chat/{i}", "n_tokens": 20, "forced": False} for i in (1, 2)],
        "skipped": {}, "failed": {}, "differs": None, "runs": runs,
    }  # fmt: skip
    record["summary"] = summary.summarise(record)
    return record


def _arm(name: str) -> dict[str, Any]:
    spec = name.partition(" ")[0]
    kind, _, policy = spec.partition(":")
    return {
        "name": name, "kind": kind, "threads": 2, "repack": False, "policy": policy or None,
        "cache": None if kind != "stream" else name.partition("cache=")[2] or "auto",
        "routers": "off", "options": {}, "bits": "plain",
    }  # fmt: skip


def _run(name: str, index: int, round_: int, watts: bool, slower: float) -> dict[str, Any]:
    stream = name.startswith("stream")
    share = int(name.partition("cache=")[2].rstrip("%") or 50)
    about = {"cache": {"budget_bytes": share << 20}} if stream else {"load_mode": "mmap"}
    return {
        "arm": name, "round": round_, "about": about, "load_ms": 900.0 + round_,
        "first_token_ms": 1500.0, "major_faults": 40, "cpu_seconds": 2.0, "peak_bytes": 90 << 20,
        "peak_source": "cgroup v2", "energy_joules": 30.0 if watts else None,
        "joules_per_token": 0.5 if watts else None, "net_joules_per_token": None, "machine": {},
        "watts": [[i / 2, 7 + i % 3] for i in range(20)] if watts else None,
        "marks": ["other programs used 30% of the processors"] if round_ == 1 else [],
        "prompts": [_prompt(f"chat/{i}", i, index, round_, stream, slower) for i in (1, 2)],
    }  # fmt: skip


def _prompt(
    name: str, number: int, index: int, round_: int, stream: bool, slower: float
) -> dict[str, Any]:
    steps = range(N_TOKENS)
    tokens: dict[str, list[Any]] = {
        "token_ms": [slower * (100.0 - 20 * index + round_ + i % 5) for i in steps],
        "storage_bytes": [(10 - index) << 20 for _ in steps],
        "major_faults": [3 - min(index, 3) for _ in steps],
        "memory_bytes": [(80 + i) << 20 for i in steps],
    }
    if stream:
        by_layer = [[(i + layer + number) % 3 for layer in range(N_LAYERS)] for i in steps]
        tokens["layer_misses"] = by_layer
        tokens["layer_hits"] = [[2 - value for value in row] for row in by_layer]
        tokens["misses"] = [sum(row) for row in by_layer]
        tokens["hits"] = [2 * N_LAYERS - sum(row) for row in by_layer]
        tokens["bytes_read"] = [value << 20 for value in tokens["misses"]]
        tokens["stall_ms"] = [20.0 for _ in steps]
        tokens["ffn_ms"] = [50.0 for _ in steps]
    return {
        "name": name, "ttft_ms": 300.0 + round_, "tokens": tokens, "prefill": {},
        "chosen": [(7 * i + number) % 50 for i in range(N_TOKENS + 1)],
    }  # fmt: skip
