"""The routers of a tuned GGUF as an overlay for its base."""

from __future__ import annotations

import json
from pathlib import Path

from remoe_edge.errors import InputError
from remoe_edge.files.atomic import check_output
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.files.overlay import name_of, require_all, require_finite, write_overlay
from remoe_edge.files.own_gguf import open_model
from remoe_edge.files.router_tensors import routers_of
from remoe_edge.files.tensor_values import from_float32, read_tensor, to_float32
from remoe_edge.native import _core


def extract(
    tuned_path: Path, output: Path, base_path: Path | None = None, rebase: bool = False
) -> None:
    """Write the overlay that turns the base into the tuned model.

    A fingerprint does not depend on the routers, so the tuned file has its base's; `base_path`
    verifies that. `rebase` takes the routers for a base that differs elsewhere (another
    quantisation of the same model): only the routers' names and shapes must agree then. Raises
    InputError naming what differs.
    """
    tuned = open_model(tuned_path)
    if rebase and base_path is None:
        raise InputError("--rebase needs the base to fit the routers to; give --base")
    base = tuned if base_path is None else open_model(base_path)
    check_output(output, [*tuned.paths, *base.paths])
    if base.architecture != tuned.architecture:
        raise InputError(
            f"{tuned_path} is '{tuned.architecture}', the base {base_path} is '{base.architecture}'"
        )
    base_fingerprint = fingerprint(base)
    if base is not tuned and not rebase and base_fingerprint != fingerprint(tuned):
        raise InputError(
            f"{base_path} is not the base of {tuned_path}: {_difference(tuned, base)}; "
            "if it is another quantisation of it, --rebase takes the routers all the same"
        )
    found = routers_of(tuned)
    require_all(f"{tuned_path}", set(routers_of(base)), set(found))
    tensors: dict[str, bytes] = {}
    for name, router in routers_of(base).items():
        if found[name].shape != router.shape:
            raise InputError(
                f"{tuned_path}: '{name}' is {found[name].shape}, the base model's is {router.shape}"
            )
        raw = read_tensor(tuned, found[name])
        values = to_float32(raw, found[name])
        require_finite(f"{tuned_path}: '{name}'", values)
        if found[name].type != router.type:
            raw = from_float32(values, router)
            require_finite(f"{tuned_path}: '{name}' as {router.type_name}", to_float32(raw, router))
        tensors[name] = raw
    run = json.dumps({"extracted_from": name_of(tuned), "rebased": rebase})
    write_overlay(output, base, tensors, base_fingerprint, run)


def _difference(tuned: _core.ModelFile, base: _core.ModelFile) -> str:
    """Say where two models first differ apart from their routers' values."""
    theirs = {tensor.name: tensor for tensor in base.tensors}
    for tensor in tuned.tensors:
        other = theirs.pop(tensor.name, None)
        if other is None:
            return f"'{tensor.name}' is missing there"
        if tensor.shape != other.shape:
            return f"'{tensor.name}' is {tensor.shape} against {other.shape}"
        if tensor.type != other.type:
            return f"'{tensor.name}' is {tensor.type_name} against {other.type_name}"
    if theirs:
        return f"'{min(theirs)}' is only there"
    return "the values of tensors other than routers differ"
