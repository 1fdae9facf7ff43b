"""The orthogonality penalty against Keras."""

import keras
import pytest
import torch
from torch import nn

import regplug
from regplug_builtins import Orthogonal


@pytest.mark.parametrize("groups", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(4, 3), (3, 7), (2, 2)])
def test_value_is_that_of_keras(groups: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    w = torch.randn(shape)
    theirs = keras.regularizers.OrthogonalRegularizer(factor=0.3, mode=groups)(w)
    torch.testing.assert_close(0.3 * Orthogonal(0.3, groups=groups).value(w), theirs)


def test_a_dense_kernel_of_keras_is_transposed() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 4, bias=False)
    kernel = layer.weight.detach().T  # (in, out), as in Dense
    theirs = keras.regularizers.OrthogonalRegularizer(factor=1.0, mode="columns")(kernel)
    torch.testing.assert_close(Orthogonal(1.0).value(layer.weight.detach()), theirs)


def test_a_convolution_counts_filter_by_filter() -> None:
    w = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    penalty = Orthogonal(1.0)
    torch.testing.assert_close(penalty.value(w), penalty.value(w.flatten(1)))
    columns = Orthogonal(1.0, groups="columns")
    torch.testing.assert_close(columns.value(w), penalty.value(w.transpose(0, 1)))


def test_gradient_and_bounds() -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    penalty = Orthogonal(1.0)
    torch.autograd.gradcheck(penalty.value, (w,))
    torch.testing.assert_close(penalty.value(torch.ones(3, 3)), torch.tensor(1.0))
    assert penalty.value(torch.eye(3) * torch.tensor([1.0, 5.0, 9.0])) == 0
    assert penalty.value(torch.randn(1, 3)) == 0  # no pair
    assert penalty.gradient(torch.zeros(2, 3)).isfinite().all()


def test_training_makes_rows_orthogonal() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with regplug.attach(model, optimizer, ["orthogonal(linear(1.0, 0.0, steps=400))"]) as session:
        before = session.metrics()["orthogonal/value"]
        for _ in range(400):
            optimizer.zero_grad()
            (model(torch.ones(1, 6)) * 0).sum().backward()
            optimizer.step()
        after = Orthogonal(1.0).value(model.weight.detach())
    assert before > 0.2
    assert after < 0.01
