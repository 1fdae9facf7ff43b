"""The device that is made up for the exam: what it does as a GPU does, and what is done without."""

import atexit

import pytest
import torch

from regplug.backend import elsewhere as place
from regplug.backend import process
from regplug.backend.elsewhere import Elsewhere, elsewhere
from tests.testing.sat import sat


@pytest.fixture
def device():
    with elsewhere() as device:
        yield device


def test_what_is_made_there_stays_there(device):
    w = torch.nn.Parameter(Elsewhere(torch.ones(3)))
    made = [
        torch.zeros(3, device=device),
        torch.tensor([1.0, 2.0, 3.0], device=w.device),
        w.new_tensor([1.0, 2.0, 3.0]),
        torch.rand_like(w),
        torch.ones(3).to(device),
        torch.randn(3, device=device, generator=torch.Generator(device).manual_seed(1)),
    ]
    for tensor in made:
        assert tensor.device == device
        assert (tensor + w).device == device
    (w * 2).sum().backward()
    assert w.grad.device == device
    assert w.grad.tolist() == [2.0, 2.0, 2.0]
    assert w.detach().cpu().tolist() == [1.0, 1.0, 1.0]
    w.data = w.data * 3
    assert float(w.detach().sum()) == 9.0


@pytest.mark.parametrize(
    "mix",
    [
        lambda w: w + torch.ones(3),
        lambda w: torch.ones(3).add_(w),
        lambda w: torch.stack([w.sum(), torch.tensor(1.0)]),
        lambda w: torch._foreach_add([w], [torch.ones(3)]),
        lambda w: torch.randn(3, device=w.device, generator=torch.Generator()),
        lambda w: w.numpy(),
    ],
)
def test_what_a_gpu_refuses_is_refused(device, mix):
    with pytest.raises((RuntimeError, TypeError), match=r"device|numpy"):
        mix(Elsewhere(torch.ones(3)))


def test_what_a_gpu_takes_is_taken(device):
    w = Elsewhere(torch.ones(3))
    assert (w * torch.tensor(2.0)).tolist() == [2.0, 2.0, 2.0]
    assert w[torch.tensor([0, 1])].device == device
    assert torch.empty(3).copy_(w).tolist() == [1.0, 1.0, 1.0]


def test_generators_are_torchs_own_again_afterwards():
    plain = torch.Generator
    with elsewhere():
        assert torch.Generator is not plain
    assert torch.Generator is plain


def test_where_torch_makes_no_such_tensors_the_question_is_left_out(monkeypatch):
    monkeypatch.setattr(place, "_WRAPPER", "no_such_name")
    report = sat("l2(1e-3)", ["device"])
    skipped = {r.regime: r.message for r in report.of("skipped")}
    assert "no device that is written in Python" in skipped["another device, step"]
    assert report.passed


def test_what_runs_at_the_end_is_counted_or_unknown(monkeypatch):
    before = process.exit_callbacks()
    atexit.register(print)
    assert process.exit_callbacks() == before + 1
    atexit.unregister(print)
    monkeypatch.setattr(process, "_COUNT", "no_such_name")
    assert process.exit_callbacks() is None


def test_modes_are_counted_or_unknown(monkeypatch):
    before = process.modes_entered()
    with elsewhere():
        assert process.modes_entered() == (before[0] + 1, before[1] + 1)
    monkeypatch.setattr(process, "_MODES", ("no_such_name", "nor_this"))
    assert process.modes_entered() == (None, None)
