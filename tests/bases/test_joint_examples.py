"""The plugins that docs/several_parameters.md shows, against the same sums written out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regplug

PAGE = (Path(__file__).parents[2] / "docs" / "several_parameters.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """Return what the page's code leaves behind."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        exec(block, names)
    return names


def test_a_unit_is_all_its_gates(shown: Any) -> None:
    lstm = nn.LSTM(3, 5, num_layers=2).double()
    expected = 0.0
    for layer in range(2):
        ih, hh = getattr(lstm, f"weight_ih_l{layer}"), getattr(lstm, f"weight_hh_l{layer}")
        for unit in range(5):
            rows = [w[gate * 5 + unit] for w in (ih, hh) for gate in range(4)]
            expected += torch.cat(rows).norm().item()
    with regplug.attach(lstm, plugins=[shown["Units"](0.5)]) as session:
        assert session.metrics()["units/value"] == pytest.approx(0.5 * expected)


def test_a_head_is_its_rows_and_columns(shown: Any) -> None:
    attention = nn.MultiheadAttention(6, 3).double()
    expected = 0.0
    for head in range(3):
        own = slice(2 * head, 2 * head + 2)
        rows = [part[own].flatten() for part in attention.in_proj_weight.chunk(3)]
        columns = attention.out_proj.weight[:, own].flatten()
        expected += torch.cat([*rows, columns]).norm().item()
    with regplug.attach(attention, plugins=[shown["Heads"](0.5, heads=3)]) as session:
        assert session.metrics()["heads/value"] == pytest.approx(0.5 * expected)


def test_units_that_nothing_needs_vanish_as_a_whole(shown: Any) -> None:
    lstm = nn.LSTM(3, 4, batch_first=True).double()
    optimizer = torch.optim.Adam(lstm.parameters(), lr=0.02)
    regplug.attach(lstm, optimizer, [shown["Units"](0.02)])
    x = torch.randn(16, 6, 3, dtype=torch.float64)
    for _ in range(400):
        optimizer.zero_grad()
        (lstm(x)[0][..., 0] - x[..., 0].tanh() / 2).square().mean().backward()
        optimizer.step()
    sizes = sum(
        w.unflatten(0, (4, 4)).square().sum((0, 2)) for w in (lstm.weight_ih_l0, lstm.weight_hh_l0)
    )
    first, *others = sizes.sqrt().tolist()
    assert first > 0.3
    assert max(others) < 0.1
