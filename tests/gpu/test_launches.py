"""One launch an event, however many tensors there are, and no memory of the model's size."""

import pytest
import torch
from torch import nn

import regplug
from tests.helpers.profiled import launches, on_the_device

SGD = {"SGD": lambda p: torch.optim.SGD(p, lr=1e-3, fused=True)}
ADAM = {
    "fused Adam": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "capturable Adam": lambda p: torch.optim.Adam(p, lr=1e-3, capturable=True),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
}
STEP = ["l1(0.1)", "l2(0.1)", "elastic_net(0.1, 0.1)"]
PROXIMAL = ["l1(0.1, delivery='proximal')", "elastic_net(0.1, 0.1, delivery='proximal')"]
OTHERS = [
    "l2_sp(0.1, delivery='step')",
    "group_lasso(0.1, delivery='step')",
    "group_lasso(0.1, delivery='proximal')",
    "orthogonal(0.1, delivery='step')",
    "spectral_norm(0.1, delivery='step')",
    "weight_decay(0.1, existing='replace')",
    "weight_decay(0.1, existing='replace', cautious=True)",
    "max_norm(0.1)",
    "unit_norm()",
    "non_negative()",
    "l1_ball(0.5)",
    "hard_threshold(0.5)",
    "gradient_noise(0.1)",
]


def rig(make, spec, tensors=50, *, kernels="triton", size=(30, 20)):
    """Return the events of a plugin, and a whole step of its loop without the backward pass."""
    torch.manual_seed(0)
    weights = nn.ParameterList(torch.randn(size, device="cuda") for _ in range(tensors))
    for w in weights:
        w.grad = torch.randn_like(w)
    optimizer = make(weights.parameters())
    session = regplug.attach(weights, optimizer, [spec], kernels=kernels, handover=False)

    def events():
        with torch.no_grad():
            session.gradients_ready()
            session.before_update()
            session.after_update()

    for _ in range(3):  # kernels are compiled, and compared once; states are made
        optimizer.step()
        events()
    return events, optimizer, weights


def test_the_profiler_sees_launches_and_copies():
    x = torch.ones(8, device="cuda")
    assert launches(lambda: x.add_(1)) == 1
    assert launches(lambda: (x.add_(1), x.mul_(2))) == 2
    assert launches(x.cpu) == 0
    assert sum(on_the_device(x.cpu).values()) == 1


@pytest.mark.parametrize("tensors", [1, 4, 300])
@pytest.mark.parametrize(
    "spec", [*STEP, *PROXIMAL, "l2_sp(0.1, delivery='step')", "non_negative()"]
)
def test_an_event_is_one_launch(spec, tensors):
    events, _, _ = rig(SGD["SGD"], spec, tensors)
    assert launches(events) == 1


@pytest.mark.parametrize("tensors", [1, 300])
@pytest.mark.parametrize("optimizer", ADAM)
@pytest.mark.parametrize("spec", PROXIMAL)
def test_an_event_under_adam_is_one_launch(spec, optimizer, tensors):
    events, _, _ = rig(ADAM[optimizer], spec, tensors)
    assert launches(events) == 1


def test_nothing_is_sent_where_nothing_changed():
    """Addresses and numbers are on the device already."""
    events, _, _ = rig(SGD["SGD"], "l1(0.1)")
    assert len(on_the_device(events)) == 1


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16)])
def test_there_is_a_launch_for_each_dtype(dtypes):
    events, _, weights = rig(SGD["SGD"], "l1(0.1)", 40)
    for w in list(weights)[::2]:
        w.grad = None
        w.data = w.data.to(dtypes[1])
        w.grad = torch.randn_like(w)
    for _ in range(2):
        events()
    assert launches(events) == len(dtypes)


@pytest.mark.parametrize("optimizer", [*SGD, *ADAM])
@pytest.mark.parametrize("spec", OTHERS)
def test_no_plugin_launches_more_than_with_torchs_own_operations(spec, optimizer):
    make = {**SGD, **ADAM}[optimizer]
    own, plain = (
        launches(rig(make, spec, 20, kernels=kernels)[0]) for kernels in ("auto", "foreach")
    )
    assert own <= plain


def in_loss(spec, tensors, kernels):
    """Return what takes a penalty's value and gradient; gradients are made anew."""
    weights = nn.ParameterList(torch.randn(30, 20, device="cuda") for _ in range(tensors))
    session = regplug.attach(weights, None, [spec], kernels=kernels)
    start = torch.zeros((), device="cuda", requires_grad=True)

    def run():
        for w in weights:
            w.grad = None
        session.loss(start * 1.0).backward()

    for _ in range(3):
        run()
    return run


@pytest.mark.parametrize("spec", [f"{spec[:-1]}, delivery='loss')" for spec in STEP])
def test_in_the_loss_launches_do_not_grow_with_the_tensors(spec):
    few, many, plain = (
        launches(in_loss(spec, tensors, kernels))
        for tensors, kernels in ((4, "triton"), (300, "triton"), (300, "foreach"))
    )
    assert many == few
    assert many < plain


@pytest.mark.parametrize("kernels", ["triton", "foreach"])
@pytest.mark.parametrize("spec", [*STEP, *PROXIMAL])
def test_no_memory_of_the_models_size_is_taken(spec, kernels):
    """256 MiB of weights; torch's operations work on 64 MiB at a time."""
    events, _, weights = rig(SGD["SGD"], spec, 4, kernels=kernels, size=(4096, 4096))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        events()
    taken = torch.cuda.max_memory_allocated() - before
    whole = sum(w.nbytes for w in weights)
    assert taken <= (whole // 100 if kernels == "triton" else 3 * whole // 4)
