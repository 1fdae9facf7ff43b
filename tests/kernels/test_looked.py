"""A compiled loop says of tensors what they say themselves, at each step anew."""

import copy
import importlib.util
import sys

import pytest
import torch
from torch import nn

import regplug
from regplug.backend import private_handles
from regplug.kernels import cpu_tables
from regplug.kernels.tables import Table

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not installed"
)

MANY = 60


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    """Return what reads many tensors, known to be there; it reads few ones, too."""
    monkeypatch.setattr(cpu_tables, "_MANY", 1)
    found = cpu_tables._reader()
    assert found is not None
    return found


class Own(torch.Tensor):
    pass


def _freed():
    tensor = torch.ones(4, 3)
    tensor.untyped_storage().resize_(0)
    return tensor


def _ones(*sizes):
    return torch.ones(*sizes)


TAKEN = {
    "plain": lambda: (_ones(4, 3), _ones(4, 3)),
    "a parameter": lambda: (nn.Parameter(_ones(4, 3)), _ones(4, 3)),
    "no dimensions": lambda: (_ones(()), _ones(())),
    "one element": lambda: (_ones(1, 1), _ones(1, 1).T),
    "nothing": lambda: (_ones(0, 3), _ones(0, 3)),
    "both transposed": lambda: (_ones(3, 4).T, _ones(3, 4).T),
    "channels last": lambda: tuple(
        _ones(2, 3, 4, 5).to(memory_format=torch.channels_last) for _ in range(2)
    ),
    "channels last of 1": lambda: tuple(
        _ones(2, 3, 1, 1).to(memory_format=torch.channels_last) for _ in range(2)
    ),
    "an offset": lambda: (_ones(15)[3:].view(4, 3), _ones(20)[1:13].view(4, 3)),
    "rows of a larger one": lambda: (_ones(8, 3)[2:6], _ones(4, 3)),
    "permuted": lambda: (_ones(2, 3, 4).permute(2, 0, 1), _ones(2, 3, 4).permute(2, 0, 1)),
}

LEFT = {
    "one transposed": lambda: (_ones(3, 4).T, _ones(4, 3)),
    "with gaps": lambda: (_ones(4, 6)[:, ::2], _ones(4, 6)[:, ::2]),
    "expanded": lambda: (_ones(4, 1).expand(4, 3), _ones(4, 3)),
    "expanded alike": lambda: (_ones(4, 4)[:, :1].expand(4, 4), _ones(4, 4)[:, :1].expand(4, 4)),
    "overlapping": lambda: tuple(_ones(30).as_strided((4, 4), (0, 5)) for _ in range(2)),
    "windows": lambda: tuple(_ones(30).as_strided((3, 3), (1, 1)) for _ in range(2)),
    "other dtypes": lambda: (_ones(4, 3), _ones(4, 3).double()),
    "halves": lambda: (_ones(4, 3).half(), _ones(4, 3).half()),
    "integers": lambda: (_ones(4, 3).int(), _ones(4, 3).int()),
    "another size": lambda: (_ones(4, 3), _ones(4, 4)),
    "a subclass": lambda: (_ones(4, 3), _ones(4, 3).as_subclass(Own)),
    "sparse": lambda: (_ones(4, 3), _ones(4, 3).to_sparse()),
    "no memory": lambda: (_ones(4, 3), torch.empty(4, 3, device="meta")),
    "memory that was taken away": lambda: (_freed(), _ones(4, 3)),
    "negative": lambda: (_ones(1, 1), torch.tensor([[1 + 2j]]).conj().imag),
    "a negative number": lambda: (_ones(()), torch.tensor(1 + 2j).conj().imag),
    "None": lambda: (_ones(4, 3), None),
}

PLAIN = {  # where Python takes what is left to it
    "another shape": lambda: (_ones(4, 3), _ones(3, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", TAKEN)
def test_what_lies_alike_is_read_as_python_reads_it(reader, case, dtype):
    rows = [[t.to(dtype) for t in made()] for made in (TAKEN["plain"], TAKEN[case])]
    columns = [list(column) for column in zip(*rows, strict=True)]
    scalars = [[torch.tensor(float(row)) for row in range(2)]]
    known = Table()
    assert known.read(columns, scalars)
    packed, dtypes = reader(columns, scalars)
    assert packed.tolist() == [*known.addresses, known.sizes]
    assert dtypes == [dtype, dtype, torch.float32]
    assert (known.dtypes, known.of_scalars) == ((dtype, dtype), (torch.float32,))


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("case", LEFT)
def test_what_no_kernel_can_go_through_is_left(reader, case, place):
    rows = [TAKEN["plain"](), LEFT[case]()]
    columns = [list(column) for column in zip(*rows[:: 1 if place else -1], strict=True)]
    assert reader(columns, []) is None
    if case not in ("None", "sparse"):  # for which torch has words of its own
        assert not Table().read(columns)
    assert not any(_all_read([list(column)[::-1] for column in columns], reader))


def _all_read(columns, reader):
    return [reader(columns, []) is not None, reader(columns[::-1], []) is not None]


@pytest.mark.parametrize("case", PLAIN)
def test_what_is_only_shaped_otherwise_is_for_python_to_judge(reader, case):
    columns = [[tensor] for tensor in PLAIN[case]()]
    assert reader(columns, []) is None


@pytest.mark.parametrize(
    "few",
    [
        [torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64)],
        [torch.tensor(1.0), torch.ones(2)],
        [torch.tensor(1.0), torch.empty((), device="meta")],
        [torch.tensor(1.0), torch.tensor(1)],
    ],
    ids=["dtypes", "sizes", "devices", "integers"],
)
@pytest.mark.parametrize("order", [1, -1])
def test_numbers_that_are_not_alike_are_left(reader, few, order):
    columns = [list(column) for column in zip(*[TAKEN["plain"]()] * 2, strict=True)]
    assert reader(columns, [few[::order]]) is None
    assert not Table().read(columns, [few[::order]])


# --- what changes between steps ------------------------------------------------------------------


def _replaced(model, optimizer):
    for w in model.parameters():
        w.data = w.data.clone() * 1.5


def _transposed_in_place(model, optimizer):
    for w in list(model.parameters())[::3]:
        w.data = w.data.T  # at the address where it was
        w.grad = None if w.grad is None else torch.full_like(w, 0.1)
        for name in ("exp_avg", "exp_avg_sq"):
            if w in optimizer.state and name in optimizer.state[w]:
                optimizer.state[w][name] = optimizer.state[w][name].T


def _transposed_back(model, optimizer):
    for w in list(model.parameters())[::3]:
        w.data = w.data.T.contiguous()
        w.grad = torch.full_like(w, 0.1)
        for name in ("exp_avg", "exp_avg_sq"):
            if w in optimizer.state and name in optimizer.state[w]:
                optimizer.state[w][name] = optimizer.state[w][name].T


def _of_another_dtype(model, optimizer):
    for w in list(model.parameters())[::4]:
        w.grad = None
        w.data = w.data.double()
        w.grad = torch.full_like(w, 0.1)
        for name in ("exp_avg", "exp_avg_sq"):
            if w in optimizer.state and name in optimizer.state[w]:
                optimizer.state[w][name] = optimizer.state[w][name].double()


def _missing_gradients(model, optimizer):
    for w in list(model.parameters())[1::2]:
        w.grad = None


def _new_gradients(model, optimizer):
    optimizer.zero_grad(set_to_none=True)
    for row, w in enumerate(model.parameters()):
        w.grad = torch.full_like(w, 0.01 * (row % 7 - 3))


def _frozen(model, optimizer):
    for w in list(model.parameters())[::5]:
        w.requires_grad_(False)


def _thawed(model, optimizer):
    for w in model.parameters():
        w.requires_grad_(True)


def _loaded(model, optimizer):
    state = copy.deepcopy(optimizer.state_dict())
    for own in state["state"].values():
        own.update({name: t * 3 for name, t in own.items() if name == "exp_avg_sq"})
    optimizer.load_state_dict(state)


def _state_replaced(model, optimizer):
    for own in list(optimizer.state.values())[::2]:
        if "exp_avg_sq" in own:
            own["exp_avg_sq"] = own["exp_avg_sq"] * 4
            own["step"] = own["step"] + 20


def _numbers_of_another_dtype(model, optimizer):
    for own in list(optimizer.state.values())[::2]:
        if "step" in own:
            own["step"] = own["step"].double()


def _states_swapped(model, optimizer):
    states = optimizer.state
    for first, second in [list(states)[:2]] if states else []:
        states[first], states[second] = states[second], states[first]


def _added(model, optimizer):
    more = nn.Parameter(torch.full((7, 5), 0.3))
    more.grad = torch.full_like(more, 0.02)
    model.append(more)
    optimizer.add_param_group({"params": [more], "lr": 0.03})


def _rate_as_tensor(model, optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.02)


def _lies_with_gaps(model, optimizer):
    for w in list(model.parameters())[::6]:
        wide = torch.zeros(w.shape[0], 2 * w.shape[1], dtype=w.dtype)
        wide[:, ::2] = w.data
        w.data = wide[:, ::2]


CHANGES = [
    _new_gradients,
    _replaced,
    _transposed_in_place,
    _new_gradients,
    _transposed_back,
    _missing_gradients,
    _new_gradients,
    _frozen,
    _thawed,
    _loaded,
    _state_replaced,
    _states_swapped,
    _numbers_of_another_dtype,
    _added,
    _rate_as_tensor,
    _new_gradients,
    _of_another_dtype,
    _lies_with_gaps,
]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize(
    "spec", ["l1(0.05, where='all')", "l1(0.05, where='all', delivery='proximal')"]
)
def test_whatever_changes_between_steps_the_next_one_knows_of_it(kind, spec, monkeypatch):
    monkeypatch.setattr("regplug.kernels.choice.TINY", 1)
    monkeypatch.setattr("regplug.kernels.choice.Asked.pays.__defaults__", (1,))
    monkeypatch.setattr("regplug.kernels.cpu.Numba.pays", lambda self, sizes: True)
    read = []
    reading = cpu_tables.CpuTable.read
    monkeypatch.setattr(
        cpu_tables.CpuTable,
        "read",
        lambda self, *columns: read.append(reading(self, *columns)) or read[-1],
    )
    pairs = []
    for kernels in ("numba", "foreach"):
        torch.manual_seed(0)
        model = nn.ParameterList(nn.Parameter(torch.randn(4, 5)) for _ in range(MANY))
        groups = [{"params": list(model)[:50]}, {"params": list(model)[50:], "lr": 0.05}]
        optimizer = kind(groups, lr=0.1)
        regplug.attach(model, optimizer, [spec], kernels=kernels, name=kernels)
        pairs.append((model, optimizer))
    for change in [_new_gradients, *CHANGES]:
        for model, optimizer in pairs:
            change(model, optimizer)
            optimizer.step()
        for own, theirs in zip(*(model.parameters() for model, _ in pairs), strict=True):
            torch.testing.assert_close(
                own, theirs, rtol=1e-5, atol=1e-6, msg=lambda m, c=change: f"{c.__name__}: {m}"
            )
    assert sum(read) >= len(CHANGES)


# --- where it is not to be had -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_IMPLEMENTATION", "_PREFIX"])
def test_without_the_names_python_reads(monkeypatch, name):
    monkeypatch.setattr(private_handles, name, "_no_such_name")
    assert private_handles.handles.__wrapped__() is None


def test_what_says_something_else_than_the_tensor_is_not_used(monkeypatch):
    functions = [*private_handles._FUNCTIONS]
    functions[4:6] = functions[5:3:-1]  # strides for sizes
    monkeypatch.setattr(private_handles, "_FUNCTIONS", tuple(functions))
    assert private_handles.handles.__wrapped__() is None
    monkeypatch.setattr(private_handles, "_IMPLEMENTATION", "_version")
    assert private_handles.handles.__wrapped__() is None


def test_a_loop_that_is_not_compiled_is_no_failure(monkeypatch):
    monkeypatch.setitem(sys.modules, "regplug.kernels.looked", None)
    cpu_tables._reader.cache_clear()
    try:
        table = cpu_tables.CpuTable()
        columns = [[tensor] for tensor in TAKEN["plain"]()]
        assert table.read(columns)
        assert table.packed.tolist() == [[t.data_ptr()] for (t,) in columns] + [[12]]
    finally:
        cpu_tables._reader.cache_clear()
