"""The same cells by compiled kernels, which are otherwise left out for nets as small as these."""

import importlib.util
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from regplug.kernels import backends, cpu, cuda
from regplug.kernels.choice import Asked
from tests.matrix.cells import Row, cannot, rows
from tests.matrix.reference import by_formula
from tests.matrix.regimes import REGIMES, plugin_of, run
from tests.matrix.tasks import DEVICE
from tests.matrix.test_matrix import expected, is_random, largest_error

pytestmark = pytest.mark.matrix

REGIMES_OF_KERNELS = [
    "plain loop",
    "clipping",
    "Adam",
    "fused Adam",
    "bf16 autocast",
    "closure",
    "weights by hand",
    "GradScaler, fused",
    "resumed",
]
INTERPRETED = ["Adam", "weights by hand"]
"""Triton's interpreter takes its time."""


def has(compiler: str) -> bool:
    if importlib.util.find_spec(compiler) is None:
        return False
    return compiler == "triton" if DEVICE != "cpu" else compiler == "numba" or cuda.is_interpreted()


CELLS = [
    (compiler, regime, row)
    for compiler, regimes in (
        ("numba", REGIMES_OF_KERNELS),
        ("triton", INTERPRETED if DEVICE == "cpu" else REGIMES_OF_KERNELS),
    )
    if has(compiler)
    for regime in regimes
    for row in rows()
    if cannot(row, REGIMES[regime], plugin_of(row.spec)) is None
]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what names each launch; tensors are worth a kernel however small they are."""
    found: list[str] = []
    pays = Asked.pays
    monkeypatch.setattr(Asked, "pays", lambda self, tensors, least=0: pays(self, tensors, 0))
    monkeypatch.setattr(cpu.Numba, "pays", lambda self, sizes: any(sizes))

    def counting(own: Callable[..., Any]) -> Callable[..., Any]:
        def kernel(self: Any, *of: Any) -> Callable[..., Any]:
            execute = own(self, *of)

            def counted(*arguments: Any) -> Any:
                found.append(self.name)
                return execute(*arguments)

            return counted

        return kernel

    for backend, name in product((backends.Numba, backends.Triton), ("kernel", "row_kernel")):
        monkeypatch.setattr(backend, name, counting(getattr(backend, name)))
    return found


@pytest.mark.parametrize(("compiler", "regime", "row"), CELLS, ids=str)
def test_cell_by_compiled_kernels(
    compiler: str,
    regime: str,
    row: Row,
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REGPLUG_KERNELS", compiler)
    chosen, plugin = REGIMES[regime], plugin_of(row.spec)
    found = run(0, regime, row.spec)
    wanted = expected(chosen.task, row)
    error = largest_error(found, wanted, is_random(row))
    assert error < (2e-5 if chosen.task.exact else 1e-12 if DEVICE == "cpu" else 1e-11)
    # l2 at the step may be left to the optimizer.
    handed_over = row.delivery == "step" and row.plugin == "l2"
    is_of_rows = row.plugin == "group_lasso" and row.delivery != "loss"
    if by_formula(plugin) and (plugin.separable or is_of_rows) and not handed_over:
        assert len(launched) >= len(chosen.task.micro), "no kernel was at work"


def test_kernels_are_found_to_be_at_work(launched: list[str]) -> None:
    backend = backends.serving(torch.ones(1, device=DEVICE), (torch.float32,), "auto")
    if backend is None:
        pytest.skip("there is no compiler for this device")
    run(0, "plain loop", "l1(0.1, delivery='step')")
    assert set(launched) == {backend.name}
