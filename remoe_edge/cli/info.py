"""`remoe-edge info`: a model's experts, sizes, memory floor and what fits here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from remoe_edge.cli import options
from remoe_edge.cli.results import print_json
from remoe_edge.cli.terminal import escape


@click.command(name="info")
@options.model
@options.json_flag()
def command(model: Path, as_json: bool) -> None:
    """Show what MODEL holds, and how much of it fits into this machine's memory.

    Nothing is loaded. MODEL may also be a router overlay.
    """
    from remoe_edge.inspect.info import describe

    about = describe(model)
    if as_json:
        print_json(about)
        return
    rows = _overlay_rows(about) if about["kind"] == "routers" else _model_rows(about)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {escape(value)}")


def _overlay_rows(about: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("routers", f"a tuned-router overlay, to be used with --routers {about['path']}"),
        ("architecture", about["architecture"]),
        ("made for", f"{about['base_name'] or 'a base without name'}"),
        ("base", f"fingerprint {about['base_fingerprint']}"),
        ("tensors", f"{about['routers']}, {_mib(about['file_bytes'])}"),
    ]


def _model_rows(about: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("model", about["name"] or Path(about["path"]).name),
        ("architecture", f"{about['architecture']}, {_or_unknown(about['layers'])} layers"),
        ("context", f"{_or_unknown(about['context_length'])} tokens"),
        ("file", _mib(about["file_bytes"]) + _shards(about["shards"])),
    ]
    rows += _mark_rows(about["marks"])
    rows.append(("dense weights", f"{_mib(about['dense_bytes'])} ({_types(about['dense_types'])})"))
    experts = about.get("experts")
    if experts is None:
        rows.append(("experts", "none: a dense model, there is nothing to stream"))
    else:
        rows += _expert_rows(experts)
    kv = about["kv_bytes_per_1k_tokens"]
    rows.append(
        ("KV cache", "known once loaded" if kv is None else f"{_mib(kv)} per 1000 tokens (F16)")
    )
    rows += _fit_rows(about["here"], experts)
    if "fingerprint" in about:
        rows.append(("fingerprint", about["fingerprint"]))
    return rows


def _expert_rows(experts: dict[str, Any]) -> list[tuple[str, str]]:
    small, large = experts["bytes_each_min"], experts["bytes_each_max"]
    each = _mib(large) if small == large else f"{_mib(small)} to {_mib(large)}"
    return [
        (
            "experts",
            f"{experts['layers']} layers of {experts['per_layer']}, "
            f"{experts['used_per_token']} used by a token",
        ),
        ("expert weights", f"{_mib(experts['bytes'])} ({_types(experts['types'])})"),
        ("one expert", f"{each}; its slot {_mib(experts['slot_bytes'])}"),
        ("one token", f"{_mib(experts['bytes_per_token'])} of experts in all layers"),
        (
            "floor",
            f"{_mib(experts['floor_bytes'])}: --cache {experts['floor_cache']} holds the "
            f"{experts['floor_slots']} experts that a token uses of a layer",
        ),
    ]


def _fit_rows(here: dict[str, Any], experts: dict[str, Any] | None) -> list[tuple[str, str]]:
    rows = [("memory here", f"{_mib(here['available_bytes'])} by {here['limited_by']}")]
    if experts is None:
        rows.append(("fits here", "whole" if here["fits_whole"] else "not whole"))
    elif not here["runs"]:
        rows.append(("fits here", "no: not even the floor, beside dense weights and KV cache"))
    else:
        rows.append(
            (
                "fits here",
                f"about {here['share_of_experts']:.0%} of the experts: {here['auto_slots']} of "
                f"{experts['total']}, {_mib(here['auto_bytes'])}, less llama.cpp's compute buffers",
            )
        )
    return rows


def _mark_rows(marks: dict[str, str | int]) -> list[tuple[str, str]]:
    rows = []
    if marks.get("shape_only"):
        rows.append(("note", "random weights at a published shape: for sizes and speed, not text"))
    if "widened_from" in marks:
        source = marks["widened_from"]
        rows.append(("note", f"{source} made wider: its text and routing, at real expert sizes"))
    return rows


def _types(types: dict[str, int]) -> str:
    return ", ".join(types)


def _shards(shards: list[dict[str, Any]]) -> str:
    return f" in {len(shards)} shards" if len(shards) > 1 else ""


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _mib(n_bytes: int) -> str:
    from remoe_edge.units import mib

    return mib(n_bytes)
