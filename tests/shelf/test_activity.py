"""Activity regularization against Keras, and through loops, compilation and checkpointing."""

import keras
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import regplug
from regplug.errors import RegplugError, SelectionError
from regplug_builtins import Activity


def make(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Tanh(), nn.Softmax(-1))


@pytest.mark.parametrize("batch", [1, 5])
def test_the_term_is_that_of_keras(batch: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(batch, 6)
    layer = keras.layers.ActivityRegularization(l1=0.3, l2=0.2)
    layer(hidden)
    (theirs,) = layer.losses
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 1))
    with regplug.attach(model, plugins=[Activity(0.3, 0.2, where="0")]) as session:
        model(hidden.requires_grad_())
        torch.testing.assert_close(session.loss(torch.tensor(0.0)), theirs)


def test_the_gradient_is_that_of_the_formula_under_accumulation() -> None:
    x = torch.randn(8, 4)
    model, other = make(), make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with regplug.attach(model, optimizer, ["activity(0.1, 0.2)"]) as session:
        for part in x.split(4):
            session.loss(model(part).square().mean() / 2).backward()
        optimizer.step()
    for part in x.split(4):
        h = other[1](other[0](part))
        y = other[3](other[2](h))
        term = sum(0.1 * a.abs().sum() / 4 + 0.2 * a.square().sum() / 4 for a in (h, y))
        (other[4](y).square().mean() / 2 + term).backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_only_training_passes_with_gradients_count() -> None:
    model = make()
    with regplug.attach(model, plugins=["activity(0.1)"]) as session:
        model(torch.ones(2, 4))
        once = session.loss(torch.tensor(0.0)).item()
        model.eval()
        model(torch.ones(2, 4))
        model.train()
        with torch.no_grad():
            model(torch.ones(2, 4))
        model(torch.ones(2, 4))
        assert once > 0
        assert session.loss(torch.tensor(0.0)).item() == once
        assert session.loss(torch.tensor(0.0)).item() == 0  # each output counts once


def test_what_is_computed_again_in_a_backward_pass_does_not_count() -> None:
    model = make()
    with regplug.attach(model, plugins=["activity(0.1)"]) as session:
        terms = []
        for _ in range(2):
            y = checkpoint(model, torch.ones(2, 4, requires_grad=True), use_reentrant=False)
            loss = session.loss(y.sum() * 0)
            loss.backward()
            terms.append(loss.item())
        assert terms[0] == terms[1] > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_puts_out_the_same() -> None:
    losses = []
    for compiled in (False, True):
        model = make()
        with regplug.attach(model, plugins=["activity(0.1)"]) as session:
            called = torch.compile(model, backend="eager") if compiled else model
            losses += [session.loss(called(torch.ones(2, 4)).sum() * 0) for _ in range(2)]
    torch.testing.assert_close(losses, losses[:1] * 4)


def test_outputs_of_any_structure_count() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return {"a": x, "b": [x.sum(), torch.ones(2, dtype=torch.long)]}

    model = nn.Sequential(nn.Linear(2, 2, bias=False), Pair())
    nn.init.eye_(model[0].weight)
    with regplug.attach(model, plugins=[Activity(1.0, where="1")]) as session:
        model(torch.ones(4, 2))
        assert session.loss(torch.tensor(0.0)).item() == 8 / 4 + 8


def test_halves_are_summed_in_float32_and_maximize_turns_the_sign() -> None:
    model = nn.Sequential(nn.Linear(1, 4096, bias=False), nn.ReLU()).bfloat16()
    nn.init.ones_(model[0].weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    with regplug.attach(model, optimizer, ["activity(1.0)"]) as session:
        model(torch.ones(1, 1, dtype=torch.bfloat16))
        assert session.loss(torch.tensor(0.0)).item() == -4096


def test_misuse_is_told() -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SelectionError, match="matches no module"):
        regplug.attach(model, optimizer, [Activity(0.1, where="missing*")])
    with regplug.attach(model, optimizer, ["activity(0.1)"]) as session:
        with pytest.raises(RegplugError, match="put anything out"):
            session.loss(torch.tensor(0.0))
        model(torch.ones(2, 4)).sum().backward()
        with pytest.raises(RegplugError, match=r"session\.loss\(loss\)"):
            optimizer.step()
    assert not any(module._forward_hooks for module in model.modules())
