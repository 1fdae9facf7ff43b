"""What is computed otherwise on a device that is not to be waited for, against the exact ways."""

import numpy as np
import pytest
import torch

import regplug
from regplug_builtins.spectral_norm import leading_vector

F64 = torch.float64


@pytest.mark.parametrize("size", [1, 2, 7, 60])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_leading_vector_is_that_of_eigh(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    w = torch.randn(size, 80, dtype=F64)
    gram = w @ w.T
    found = leading_vector(gram.to(dtype)).double()
    left, sizes, _ = np.linalg.svd(w.numpy())
    assert abs(float((found.numpy()[:, 0] * left[:, 0]).sum())) == pytest.approx(1, abs=1e-5)
    value = float((found.T @ gram @ found).squeeze())
    assert value == pytest.approx(sizes[0] ** 2, rel=1e-6 if dtype is torch.float32 else 1e-12)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_the_leading_vector_knows_ties_zeros_and_scales(scale: float) -> None:
    tied = scale * torch.diag(torch.tensor([5.0, 5.0, 1.0]))
    vector = leading_vector(tied)
    assert torch.linalg.vector_norm(vector).item() == pytest.approx(1.0)
    assert abs(float(vector[2, 0])) < 1e-6
    close = scale * torch.diag(torch.tensor([1.0, 0.999, 0.5]))
    assert abs(float(leading_vector(close)[0, 0])) > 1 - 1e-6
    assert not leading_vector(torch.zeros(3, 3)).any()


def test_iterations_stop_on_the_cpu_as_soon_as_nothing_changes() -> None:
    rounds = []

    def halved(x: torch.Tensor) -> torch.Tensor:
        rounds.append(1)
        return torch.where(x > 1, x / 2, x)

    start = torch.tensor([8.0, 1.0])
    assert regplug.iterated(halved, start, rounds=50).tolist() == [1.0, 1.0]
    assert len(rounds) == 4
    assert start.tolist() == [8.0, 1.0]
    assert regplug.iterated(halved, start, rounds=2).tolist() == [2.0, 1.0]
