"""While a CUDA graph is being captured nothing is frozen silently. tests/gpu has real captures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import regplug
from regplug.backend import captured
from regplug.errors import RegplugError


class OnCuda(nn.Parameter):
    """A parameter on the CPU that says that it is on a GPU, of which there is none here."""

    @property
    def is_cuda(self) -> bool:
        return True


class LossOnCuda(torch.Tensor):
    @property
    def is_cuda(self) -> bool:
        return True


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """Return what stands for a capture: torch's own two questions are answered as in one."""

    @contextmanager
    def capture() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            yield

    return capture


def rig(kind: type[nn.Parameter] = OnCuda) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1))
    for name, p in list(model[0].named_parameters()):
        setattr(model[0], name, kind(p.detach()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    return model, optimizer


def backward(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = torch.ones_like(p)


@pytest.mark.parametrize("spec", ["l1(0.1)", "weight_decay(0.1)", "max_norm(1)", "dropout(0.2)"])
def test_a_step_under_capture_is_refused_and_others_go_on(
    spec: str, capturing: Callable[[], object]
) -> None:
    model, optimizer = rig()
    with regplug.attach(model, optimizer, [spec]) as session:
        backward(model)
        optimizer.step()  # as one warms up
        before = [p.detach().clone() for p in model.parameters()]
        with capturing(), pytest.raises(RegplugError, match=r"CUDA graph.*outside of the graph"):
            optimizer.step()
        assert session.steps == 1
        assert all(map(torch.equal, before, (p.detach() for p in model.parameters())))
        optimizer.step()
        assert session.steps == 2
    with capturing():
        optimizer.step()  # which nothing is attached to any more


def test_a_closure_and_a_step_by_hand_are_refused_too(capturing: Callable[[], object]) -> None:
    model, optimizer = rig()
    with regplug.attach(model, optimizer, ["l2(0.1)"]):
        backward(model)
        with capturing(), pytest.raises(RegplugError, match="CUDA graph"):
            optimizer.step(lambda: torch.tensor(0.0))
    with regplug.attach(model, plugins=["l2(0.1)"]) as session:
        with capturing(), pytest.raises(RegplugError, match="CUDA graph"), session.step():
            pass
        with session.step():
            pass
        assert session.steps == 1


def test_to_attach_under_capture_is_refused_and_leaves_nothing(
    capturing: Callable[[], object],
) -> None:
    model, optimizer = rig()
    with capturing(), pytest.raises(RegplugError, match="CUDA graph"):
        regplug.attach(model, optimizer, ["dropout(0.5)"])
    assert model[1].p == 0.1
    backward(model)
    optimizer.step()


def test_weights_on_the_cpu_are_no_matter(capturing: Callable[[], object]) -> None:
    model, optimizer = rig(nn.Parameter)
    with capturing(), regplug.attach(model, optimizer, ["l1(0.1)"]) as session:
        backward(model)
        optimizer.step()
        assert session.steps == 1


def test_a_loss_with_penalties_in_it_is_refused(capturing: Callable[[], object]) -> None:
    model, _ = rig()
    loss = torch.zeros(()).as_subclass(LossOnCuda)
    with regplug.attach(model, plugins=["l1(0.1, delivery='loss')"]) as session:
        with capturing(), pytest.raises(RegplugError, match=r"CUDA graph.*delivery='step'"):
            session.loss(loss)
        assert session.loss(torch.zeros(())).item() > 0
    with regplug.attach(model, plugins=["l1(0.1, delivery='step')"]) as session, capturing():
        assert session.loss(loss) is loss


def test_a_rate_that_moves_is_refused_and_a_constant_one_is_not(
    capturing: Callable[[], object],
) -> None:
    model, optimizer = rig(nn.Parameter)
    x = torch.ones(2, 2)
    with regplug.attach(model, optimizer, ["dropout(linear(0.5, 0.1, steps=4))"]):
        with capturing(), pytest.raises(RegplugError, match=r"the rate of this .*constant rate"):
            model[1](x)
        with capturing():
            assert "p=0.5" in repr(model)
        model[1](x)
    with regplug.attach(model, optimizer, ["dropout(0.5)"]), capturing():
        model[1](x)


def test_it_is_asked_of_torch_itself() -> None:
    assert not captured.is_capturing()
    if torch.cuda.is_available():
        torch.cuda.init()
        assert not captured.is_capturing()
