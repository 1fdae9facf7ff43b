"""Strengths by pattern in compiled kernels: one for each tensor of the table, in one launch."""

import importlib.util
import itertools

import pytest
import torch
from torch import nn, optim

import regplug
from regplug.kernels import cuda
from regplug.kernels.choice import Choice
from regplug.kernels.engine import Engine

F64 = torch.float64


class Layers(nn.Module):
    """Weights of two dtypes, and one that lies otherwise, in three parts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Linear(9, 7)
        self.second = nn.Linear(7, 5)
        self.filters = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        self.wide = nn.Linear(5, 6).double()
        self.last = nn.Linear(5, 6)


OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.05, momentum=0.5),
    "Adam": lambda p: optim.Adam(p, lr=0.02, eps=1e-3),
}
MAPPING = "{'first.*': 0.02, 'last.*': 0.0, 'wide.*': 0.05, '*': linear(0.03, 0.09, steps=2)}"
SPECS = {
    "l1": "l1(MAPPING, delivery='HOW')",
    "l2": "l2(MAPPING, delivery='HOW')",
    "elastic_net": "elastic_net(MAPPING, {'filters.*': 0.04, '*': 0.01}, delivery='HOW')",
    "l2_sp": "l2_sp(MAPPING, delivery='HOW')",
    "group_lasso": "group_lasso(MAPPING, delivery='HOW')",
}
COMPILERS = [name for name in ("numba", "triton") if importlib.util.find_spec(name) is not None]


@pytest.fixture
def launches(monkeypatch):
    """Return what each launch computed; tensors are worth a kernel however small they are."""
    found = []
    pays, run = Choice.pays, Engine._run
    monkeypatch.setattr(Choice, "pays", lambda self, tensors, least=0: pays(self, tensors, 0))
    monkeypatch.setattr("regplug.kernels.cpu.Numba.pays", lambda self, sizes: any(sizes))

    def counted(self, table, columns, scalars, *others):
        done = run(self, table, columns, scalars, *others)
        if done is not None:
            found.append([len(columns[0]), len(scalars)])
        return done

    monkeypatch.setattr(Engine, "_run", counted)
    return found


def trained(spec, optimizer, kernels, model_of=Layers, steps=3, ask=True):
    model = model_of()
    stepping = OPTIMIZERS[optimizer](model.parameters())
    generator = torch.Generator().manual_seed(5)
    with regplug.attach(model, stepping, [spec], kernels=kernels, handover=False) as session:
        for _ in range(steps):
            for w in model.parameters():
                w.grad = torch.empty_like(w).copy_(torch.randn(w.shape, generator=generator))
            stepping.step()
        figures = session.metrics() if ask else {}
    return model, figures


QUICK = [
    ("l1", "step", "SGD", "numba"),
    ("elastic_net", "step", "Adam", "numba"),
    ("elastic_net", "proximal", "Adam", "numba"),
    ("l2_sp", "proximal", "SGD", "numba"),
    ("l1", "step", "SGD", "triton"),
    ("elastic_net", "proximal", "Adam", "triton"),
    ("group_lasso", "step", "SGD", "triton"),
]
EVERY = itertools.product(SPECS, ("step", "proximal"), OPTIMIZERS, ("numba", "triton"))
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in EVERY
    if case[-1] in COMPILERS
]


@pytest.mark.parametrize(("name", "how", "optimizer", "compiler"), CASES)
def test_kernels_do_what_torch_does_part_by_part(name, how, optimizer, compiler, launches):
    if compiler == "triton" and (torch.cuda.is_available() or not cuda.is_interpreted()):
        pytest.skip("Triton is not interpreted")
    spec = SPECS[name].replace("MAPPING", MAPPING).replace("HOW", how)
    found, figures = trained(spec, optimizer, compiler)  # a kernel that differs would warn
    if name != "group_lasso":
        assert launches
    torchs, wanted = trained(spec, optimizer, "foreach")
    torch.testing.assert_close(found.state_dict(), torchs.state_dict(), rtol=2e-5, atol=1e-6)
    assert figures == pytest.approx(wanted, rel=1e-5)


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.layers = nn.ModuleList(nn.Linear(9, 7) for _ in range(6))


@pytest.mark.skipif("numba" not in COMPILERS, reason="no numba")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("how", ["step", "proximal"])
def test_one_launch_serves_all_parts(how, optimizer, launches):
    spec = f"elastic_net(per_layer(0.1, decay=0.7), 0.01, delivery='{how}')"
    trained(spec, optimizer, "numba", Deep, steps=1, ask=False)
    ((tensors, scalars),) = launches
    assert tensors == 6
    assert scalars >= 1  # a strength for each tensor
    launches.clear()
    plain = spec.replace("per_layer(0.1, decay=0.7)", "0.1")
    trained(plain, optimizer, "numba", Deep, steps=1, ask=False)
    ((tensors, others),) = launches
    assert tensors == 6
    assert others == scalars - (2 if how == "step" else 1)  # one for all is a number, as ever
