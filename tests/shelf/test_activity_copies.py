"""Activity regularization where the model is copied, pickled, exported or checkpointed."""

import copy
import gc
import io
import pickle
from collections.abc import Callable
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import regplug
from regplug.errors import UnsupportedError
from regplug_builtins import Activity

X = torch.linspace(-1, 1, 20).view(5, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act = nn.Linear(4, 6), nn.ReLU()
        self.second, self.last = nn.Linear(6, 3), nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.act(self.first(x))))


def term(model: Any, strength: float = 0.1) -> float:
    """Return Σ|a|/N over both activations, by hand."""
    h = model.act(model.first(X))
    y = model.last(model.second(h))
    return strength * (h.abs().sum() + y.abs().sum()).item() / len(X)


class Images(Dataset[torch.Tensor]):
    """Makes its features with a model, as those of frozen backbones do."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.model(X).detach()


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    known = [Net, nn.Linear, nn.ReLU, nn.Tanh]
    with torch.serialization.safe_globals(known):  # what the script knows of its model
        loaded: nn.Module = torch.load(file, weights_only=True)
    return loaded


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy of a copy": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "AveragedModel": lambda model: AveragedModel(model).module,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "a worker's": lambda model: pickle.loads(ForkingPickler.dumps(Images(model))).model,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_between_forward_and_loss_is_free_of_it(how: str) -> None:
    model = Net()
    expected = term(model)
    with regplug.attach(model, plugins=["activity(0.1)"]) as session:
        model(X)
        other = COPIES[how](model)
        assert not any(m._forward_hooks for m in other.modules())
        for mine, plain in zip(other.modules(), Net().modules(), strict=True):
            assert vars(mine).keys() == vars(plain).keys()
        for _ in range(3):  # a copy that is trained brings nothing to the session's loss
            other(X).sum().backward()
        assert session.loss(torch.tensor(0.0)).item() == pytest.approx(expected, rel=1e-6)
        other(X)
        assert session.loss(torch.tensor(0.0)).item() == 0


def test_the_hooks_of_others_are_copied_as_ever() -> None:
    model, seen = Net(), []
    hook = model.act.register_forward_hook(lambda *_: seen.append("act"))
    with regplug.attach(model, plugins=["activity(0.1)"]):
        copy.deepcopy(model)(X)
        assert seen == ["act"]
        hook.remove()
        assert [len(m._forward_hooks) for m in (model.act, model.last)] == [1, 1]
    assert not any(m._forward_hooks for m in model.modules())


def graphs() -> int:
    gc.collect()
    return sum(type(o) is torch.Tensor and o.grad_fn is not None for o in gc.get_objects())


@pytest.mark.filterwarnings("ignore:.torch.distributed.reduce_op:FutureWarning")
@pytest.mark.parametrize("parametrized", [False, True])
def test_a_copy_that_is_trained_keeps_no_graph(parametrized: bool) -> None:
    """A parametrized layer's class copies its hooks by itself."""
    model = Net()
    if parametrized:
        parametrizations.weight_norm(model.first)
    with regplug.attach(model, plugins=[Activity(0.1, where=["first", "act"])]) as session:
        session.loss(model(X).sum()).backward()
        twin = copy.deepcopy(model)
        twin(X).sum().backward()
        before = graphs()
        for _ in range(20):
            twin(X).sum().backward()
        assert graphs() <= before
        assert session.loss(torch.tensor(0.0)).item() == 0
    copy.deepcopy(twin)(X)


def test_a_loader_spawns_workers_that_hold_the_model() -> None:
    model = Net()
    with regplug.attach(model, plugins=["activity(0.1)"]):
        loader = DataLoader(Images(model), num_workers=1, multiprocessing_context="spawn")
        for batch in loader:
            torch.testing.assert_close(batch[0], model(X).detach())


# Checkpointing


@pytest.mark.parametrize("whole", [True, False])
def test_reentrant_checkpointing_is_refused_with_the_way_out(whole: bool) -> None:
    class Checkpointed(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = checkpoint(lambda y: self.act(self.first(y)), x, use_reentrant=True)
            return self.last(self.second(h))

    x = X.clone().requires_grad_()
    model = Net() if whole else Checkpointed()
    with regplug.attach(model, plugins=["activity(0.1)"]):
        message = r"activity: act .*use_reentrant=False.*where=\['activations', '!act'\]"
        with pytest.raises(UnsupportedError, match=message):
            (partial(checkpoint, model, use_reentrant=True) if whole else model)(x)
    model = Checkpointed()
    with regplug.attach(model, plugins=[Activity(0.1, where=["activations", "!act"])]) as session:
        y = model(x)
        assert session.loss(torch.tensor(0.0)).item() == pytest.approx(
            0.1 * y.abs().sum().item() / len(X)
        )


def test_checkpointing_that_is_not_reentrant_counts_once_and_has_the_gradient() -> None:
    x = X.clone().requires_grad_()
    gradients, losses = [], []
    for checkpointed in (True, False):
        model = Net()
        with regplug.attach(model, plugins=["activity(0.1, 0.2)"]) as session:
            for _ in range(3):
                y = checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
                loss = session.loss(y.sum())
                loss.backward()
                losses.append(loss.item())
            gradients.append([p.grad for p in model.parameters()])
    assert losses == [losses[0]] * 6
    torch.testing.assert_close(*gradients)


# Scripts, traces, exports


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripting_says_what_to_do() -> None:
    model = Net()
    with regplug.attach(model, plugins=["activity(0.1)"]):
        with pytest.raises(
            UnsupportedError, match=r"activity watches act.*copy\.deepcopy\(model\)"
        ):
            torch.jit.script(model)
        assert torch.jit.script(copy.deepcopy(model))(X).shape == (5, 3)
    assert torch.jit.script(model)(X).shape == (5, 3)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["trace", "export"])
def test_what_is_traced_or_exported_in_training_mode_is_no_batch(how: str) -> None:
    model = Net()
    expected = term(model)
    with regplug.attach(model, plugins=["activity(0.1)"]) as session:
        model(X)
        if how == "trace":
            torch.jit.trace(model, X)
        else:
            torch.export.export(model, (X,))
        added = session.loss(torch.tensor(0.0))
    assert type(added) is torch.Tensor
    assert added.item() == pytest.approx(expected, rel=1e-6)
