"""`regplug run`: which model is regularized, and from when on."""

import pytest

from tests.command.forked import command
from tests.command.writing import write


def run_session(text, plugins, tmp_path):
    """Run a script that shows dropout rates and names as it goes; return its lines."""
    options = [part for spec in plugins for part in ("-p", spec)]
    ended = command("run", *options, write(tmp_path, text), cwd=tmp_path)
    assert ended.code == 0, ended.err
    return ended


def test_rates_hold_from_the_first_forward_once_there_is_an_optimizer(tmp_path):
    text = """
import torch
from torch import nn
model = nn.Sequential(nn.LazyLinear(4), nn.Dropout(0.5), nn.Linear(4, 1))
x = torch.ones(2, 3)
model(x)                                     # finds out the shapes
print(model[1].p)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
print(model[1].p)
for _ in range(2):
    out = model(x)
    print(model[1].p)
    out.sum().backward()
    optimizer.step()
print(len(nn.modules.module._global_forward_pre_hooks))
"""
    ended = run_session(text, ["dropout(linear(0.2, 0.0, steps=2))"], tmp_path)
    # Before there is an optimizer, nothing; then from the next forward on; and no hook is left.
    assert ended.out.split() == ["0.5", "0.5", "0.2", "0.1", "0"]


def test_a_later_model_gets_its_rates_in_time_too(tmp_path):
    text = """
import torch
from torch import nn
for fold in range(3):
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        out = model(torch.ones(2, 3))
        print(model[1].p)
        out.sum().backward()
        optimizer.step()
"""
    ended = run_session(text, ["dropout(linear(0.2, 0.0, steps=2))"], tmp_path)
    assert ended.out.split() == ["0.2", "0.1"] * 3


def test_models_that_are_done_with_may_go(tmp_path):
    text = """
import gc, weakref, torch
gone = []
for fold in range(4):
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    gone.append(weakref.ref(model))
gc.collect()
print([ref() is None for ref in gone])
"""
    ended = run_session(text, ["l1(1)"], tmp_path)
    assert ended.out == "[True, True, True, False]\n"
    assert ended.err.count("Linear with SGD, 3 real steps") == 4
    assert ended.err.count("  l1 ") == 4  # with value and zeros, though the weights are gone


@pytest.mark.parametrize(
    ("build", "pattern"),
    [
        ("model = Net(); own = model.parameters(); call = model", "fc.*"),
        ("model = Net(); own = model.fc.parameters(); call = model", "fc.*"),
        ("model = Net(); own = model.parameters();"
         "call = lambda x: model.fc(model.body(x))", "fc.*"),
        ("model = Net(); two = Two(model, Net()); own = model.parameters(); call = model", "fc.*"),
        ("two = Two(Net(), Net()); own = two.parameters(); call = two", "a.fc.*"),
        ("whole = Two(Net(), Net()); own = whole.parameters();"
         "call = lambda x: whole.a(x) + whole.b(x)", "a.fc.*"),
        ("a, b = Net(), Net(); own = [*a.parameters(), *b.parameters()];"
         "call = lambda x: a(x) + b(x)", "a.fc.*"),
        ("a, scale = Net(), torch.nn.Parameter(torch.ones(1, 1)); own = [*a.parameters(), scale];"
         "call = lambda x: scale * a(x)", "a.fc.*"),
        ("a, scale = Net(), torch.nn.Parameter(torch.ones(1, 1)); own = [*a.parameters(), scale];"
         "call = lambda x: scale * a(x)", "param_4"),
        ("model = Net(); own = model.parameters();"
         "call = lambda x: torch.nn.utils.parametrize.torch.func.functional_call("
         "model, dict(model.named_parameters()), x)", "fc.*"),
        ("model = torch.nn.DataParallel(Net()); own = model.parameters(); call = model", "fc.*"),
        ("model = Net(); own = model.parameters(); call = torch.jit.trace(model, x)", "fc.*"),
    ],
    ids=["whole", "head", "parts", "one of two", "two", "two apart", "two roots", "and a tensor",
         "the tensor", "functional", "wrapped", "traced"],
)  # fmt: skip
def test_parameters_have_the_names_of_the_module_that_is_trained(build, pattern, tmp_path):
    text = f"""
import warnings; warnings.simplefilter("ignore")
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)
    def forward(self, x):
        return self.fc(self.body(x))
class Two(torch.nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b
    def forward(self, x):
        return self.a(x) + self.b(x)
x = torch.ones(2, 3)
{build}
optimizer = torch.optim.SGD(own, lr=0.1)
for _ in range(2):
    call(x).sum().backward()
    optimizer.step()
"""
    ended = run_session(text, [f"l1(1e-3, where=['{pattern}', '!*.bias'])"], tmp_path)
    assert "2 real steps" in ended.err
    assert " 1  " in next(line for line in ended.err.splitlines() if "  l1 " in line)


WRAPPER = """
import torch
class Outer(torch.optim.Optimizer):
    def __init__(self, inner):
        super().__init__(inner.param_groups, inner.defaults)
        self.base_optimizer = inner
        self.param_groups = inner.param_groups
    def step(self, closure=None):
        self.base_optimizer.step()
class Local(torch.optim.SGD):                # works on a part, for another
    pass
class Zero(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))
        self.optim = Local(self.param_groups[0]["params"][:1], lr=lr)
    def step(self, closure=None):
        self.optim.step()
model = torch.nn.Linear(2, 2)
optimizer = {make}
torch.nn.init.ones_(model.weight)
for _ in range(2):
    optimizer.zero_grad()
    (0 * model(torch.ones(1, 2))).sum().backward()
    {step}
print(round(model.weight[0, 0].item(), 6))
"""


@pytest.mark.parametrize(
    ("make", "step", "by"),
    [
        ("Outer(torch.optim.SGD(model.parameters(), lr=0.1))", "optimizer.step()", "SGD"),
        ("Outer(torch.optim.SGD(model.parameters(), lr=0.1))",
         "optimizer.base_optimizer.step()", "SGD"),
        ("Zero(model.parameters(), lr=0.1)", "optimizer.step()", "Zero"),
    ],
    ids=["outer", "inner", "part"],
)  # fmt: skip
def test_an_optimizer_within_another_is_not_regularized_twice(make, step, by, tmp_path):
    ended = run_session(WRAPPER.format(make=make, step=step), ["l1(0.5)"], tmp_path)
    assert float(ended.out) == 1 - 2 * 0.1 * 0.5
    assert f"Linear with {by}, 2 real steps" in ended.err
    assert ended.err.count("real steps") == 1
