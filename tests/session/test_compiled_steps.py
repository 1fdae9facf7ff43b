"""torch.compile: compiled steps and losses act as eager ones."""

import itertools

import pytest
import torch
from torch import nn

import regplug
from tests.helpers.compiling import graphs

pytestmark = [
    # Inductor imports a deprecated part of torch; Dynamo looks at .grad of what it resumes with.
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.usefixtures("fresh_compiler"),
]


def train(compiled: bool, plugin: str, steps: int = 12, *, loss: bool = False) -> torch.Tensor:
    torch.manual_seed(1)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    session = regplug.attach(model, optimizer, [plugin])

    def objective(x: torch.Tensor) -> torch.Tensor:
        data = model(x).square().mean()
        return session.loss(data) if loss else data

    step = optimizer.step
    if compiled:
        objective = torch.compile(objective, backend="eager")
        step = torch.compile(step, backend="eager")
    for _ in range(steps):
        optimizer.zero_grad()
        objective(torch.eye(4)).backward()
        step()
    assert session.steps == steps
    return model.weight.detach().clone()


@pytest.mark.parametrize(
    ("plugin", "loss"),
    [
        ("l1(linear(0.0, 0.1, steps=12))", False),
        ("l1(linear(0.0, 0.1, steps=12))", True),
        ("l1(linear(0.0, 0.1, steps=12), delivery='proximal')", False),
        ("weight_decay(linear(0.0, 0.5, steps=12))", False),
    ],
)
def test_a_compiled_step_and_loss_act_as_eager_ones(plugin: str, loss: bool) -> None:
    eager = train(False, plugin, loss=loss)
    compiled = train(True, plugin, loss=loss)
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-7)
    # One graph of the loss, one of the update, one more where the first step makes the momentum.
    assert graphs() <= 4


def test_a_graph_that_must_be_whole_names_what_cannot_be_in_it() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["l1(0.1)"])
    before = model.weight.detach().clone()
    whole = torch.compile(lambda x: session.loss(model(x).sum()), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"Session\.loss"):
        whole(torch.eye(4))
    model(torch.eye(4)).sum().backward()
    step = torch.compile(optimizer.step, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"StepHooks\._before"):
        step()
    assert torch.equal(model.weight, before)
    assert session.steps == 0
    optimizer.step()
    assert session.steps == 1


def test_a_compiled_model_is_regularized_as_an_eager_one() -> None:
    weights = []
    for attach_first, compiled in itertools.product((True, False), repeat=2):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        plugins = ["l1(1e-2)", "weight_decay(0.1)"]
        called: nn.Module = model
        if attach_first:
            regplug.attach(model, optimizer, plugins)
        if compiled:
            called = torch.compile(model, backend="aot_eager")
        if not attach_first:
            regplug.attach(called, optimizer, plugins)
        for _ in range(3):
            optimizer.zero_grad()
            called(torch.eye(4)).square().mean().backward()
            optimizer.step()
        weights.append(model[0].weight.detach().clone())
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-6, atol=1e-7)
