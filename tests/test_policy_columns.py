"""The columns of reuse-biased come from one table: what is built, written and documented agrees."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import fit_defaults
from remoe_edge import _core
from remoe_edge.profile.fit import SHARES

ROOT = Path(__file__).parent.parent
COLUMNS = _core.reuse_columns()


def choices(scale: float = 1) -> dict[float, Any]:
    """Make what a fit would have chosen: the weights that are built in, times `scale`."""
    return {
        share: SimpleNamespace(weights=scale * np.array([weights[i] for _, weights, _ in COLUMNS]))
        for i, share in enumerate(SHARES)
    }


def test_names_are_those_of_the_columns() -> None:
    names = [name for name, _, _ in COLUMNS]
    assert names == _core.feature_names()
    assert len(set(names)) == len(names) == 27
    assert np.allclose(_core.reuse_shares(), SHARES)
    # Links and probabilities weigh nothing without a profile; every other column something.
    silent = {name for name, weights, _ in COLUMNS if not any(weights)}
    assert silent == {name for name in names if name.startswith("link-") or "prob" in name}


def test_the_writer_leaves_the_table_as_it_is_when_nothing_changed() -> None:
    text = fit_defaults.TABLE.read_text()
    assert fit_defaults.table(text, choices()) == text


def test_the_writer_puts_each_number_into_its_row() -> None:
    text = fit_defaults.TABLE.read_text()
    halved = fit_defaults.table(text, choices(0.5))
    before, after = text.splitlines(), halved.splitlines()
    assert [a.count("REMOE_COLUMN(") for a in before] == [b.count("REMOE_COLUMN(") for b in after]
    (row,) = [line for line in after if '"learned-now",' in line]
    assert [each.strip() for each in row.split(",")[2:5]] == ["0.8485f", "0.4665f", "0.3076f"]


def test_the_documentation_has_the_table_that_is_built() -> None:
    assert fit_defaults.documentation() in (ROOT / "docs/policies.md").read_text()
