"""The spectral norm penalty against singular values."""

import numpy as np
import pytest
import torch

from regplug_builtins import SpectralNorm


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (5, 5), (4, 3, 2, 2), (1, 6), (6, 1)])
def test_value_and_gradient_are_those_of_the_largest_singular_value(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    w = torch.randn(shape, dtype=torch.float64)
    left, sizes, right = np.linalg.svd(w.flatten(1).numpy())
    penalty = SpectralNorm(1.0)
    assert penalty.value(w).item() == pytest.approx(sizes[0] ** 2, rel=1e-12)
    expected = 2 * sizes[0] * np.outer(left[:, 0], right[0])
    np.testing.assert_allclose(penalty.gradient(w).flatten(1).numpy(), expected, atol=1e-12)


def test_the_gradient_is_that_of_the_value_and_can_be_differentiated() -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    penalty = SpectralNorm(1.0)
    torch.autograd.gradcheck(penalty.value, (w,))
    torch.autograd.gradcheck(penalty.gradient, (w,))
    (by_autograd,) = torch.autograd.grad(penalty.value(w), w)
    torch.testing.assert_close(penalty.gradient(w), by_autograd)


def test_halves_are_computed_in_float32_by_the_session() -> None:
    import regplug

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3, bias=False, dtype=torch.bfloat16)
    with regplug.attach(model, plugins=["spectral_norm(1.0)"]) as session:
        sizes = torch.linalg.svdvals(model.weight.detach().float())
        assert session.metrics()["spectral_norm/value"] == pytest.approx(sizes[0].item() ** 2, 1e-5)
