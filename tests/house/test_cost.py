"""What a step and an import cost, by what can be counted alike on any machine.

Times are the business of ``make bench``. A call of a Python function costs some 0.1 µs here, and
the step of a tiny network 20: a change that needs more of them says so by raising its limit.
"""

import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import regplug
from regplug.backend.stack import Caller

SPECS = ["l1(1e-4)", "l2(1e-4)"]
PROXIMAL = "l1(1e-4, delivery='proximal')"


def calls_of(what: Callable[[], object]) -> list[str]:
    """Return the functions of regplug and its plugins that run, with repetitions."""
    found: list[str] = []

    def saw(frame: FrameType, event: str, argument: Any) -> None:
        module = frame.f_globals.get("__name__") or ""
        if event == "call" and module.partition(".")[0] in ("regplug", "regplug_builtins"):
            found.append(f"{module}.{frame.f_code.co_name}")

    before = sys.getprofile()
    sys.setprofile(saw)
    try:
        what()
    finally:
        sys.setprofile(before)
    return found


def trained(kind: Callable[..., torch.optim.Optimizer], plugins: list[str]) -> Any:
    """Return a session and its optimizer after the first steps, in which more is looked at."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 10))
    optimizer = kind(model.parameters(), lr=1e-3)
    session = regplug.attach(model, optimizer, plugins)
    model(torch.randn(20, 10)).square().mean().backward()
    for _ in range(37):
        optimizer.step()
    return session, optimizer


@pytest.mark.parametrize(
    ("kind", "plugins", "most"),
    [
        (torch.optim.SGD, [], 13),
        (torch.optim.SGD, SPECS[:1], 30),
        (torch.optim.SGD, SPECS, 43),
        (torch.optim.SGD, [PROXIMAL], 36),
        (torch.optim.Adam, [PROXIMAL], 53),
        (torch.optim.Adam, ["weight_decay(0.1)"], 32),
    ],
)
def test_a_step_is_so_many_calls(kind: Any, plugins: list[str], most: int) -> None:
    session, optimizer = trained(kind, plugins)
    calls = calls_of(optimizer.step)
    assert session.steps == 38
    assert len(calls) <= most, "\n".join(calls)


@pytest.mark.parametrize(
    ("kind", "plugin"),
    [
        (torch.optim.SGD, SPECS[0]),
        (torch.optim.SGD, PROXIMAL),
        (torch.optim.Adam, PROXIMAL),
    ],
)
def test_a_kernel_over_many_tensors_is_no_more_calls(kind: Any, plugin: str) -> None:
    """Where each lies is read by loops in C."""
    pytest.importorskip("numba")
    calls = []
    for count in (64, 640):
        model = nn.ParameterList(torch.ones(40, 40) for _ in range(count))
        optimizer = kind(model.parameters(), lr=1e-3)
        with regplug.attach(model, optimizer, [plugin], kernels="numba") as session:
            for _ in range(3):
                for w in model.parameters():
                    w.grad = torch.ones_like(w)
                optimizer.step()
            assert "in one kernel (numba)" in session.describe()
            calls.append(len(calls_of(optimizer.step)))
    assert calls[0] == calls[1]


def test_a_loss_event_is_so_many_calls() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    session = regplug.attach(model, optimizer, SPECS)
    for _ in range(37):
        session.loss(model(torch.randn(20, 10)).square().mean()).backward()
        optimizer.step()
    loss = model(torch.randn(20, 10)).square().mean()
    calls = calls_of(lambda: session.loss(loss))
    assert len(calls) <= 43, "\n".join(calls)


# --- the frame that tells a step within a step ---------------------------------------------------


def test_the_caller_is_found_anew_where_the_calls_in_between_are_others() -> None:
    caller, seen = Caller(), []

    # Functions of regplug's own, as far as their module tells.
    own = {"__name__": "regplug.backend.somewhere", "caller": caller, "seen": seen}
    exec("def near(): seen.append(caller.frame())\ndef far(): near()", own)
    near, far = own["near"], own["far"]

    def one() -> Any:
        near()
        return sys._getframe()

    def two() -> Any:
        far()
        return sys._getframe()

    def deep() -> Any:
        found = one()  # of other depth, but with the same two calls at its end
        assert seen[-1] is found
        return found

    for calls in (one, one, two, one, two, two, deep, one, deep):
        assert calls() is seen[-1]
    recursive = [one(), deep(), two()]
    assert len(set(map(id, recursive))) == 3


# --- importing -----------------------------------------------------------------------------------


def loaded(code: str) -> set[str]:
    """Return the modules that a new process has after ``code``."""
    program = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_regplug_imports_nothing_before_a_name_is_asked_for() -> None:
    found = loaded("import regplug")
    rooms = {name for name in found if name.startswith("regplug.")}
    assert not rooms
    assert not found & {"torch", "pluggy", "accelerate", "regplug_builtins"}


def test_attaching_imports_nothing_of_what_is_asked_or_told_later() -> None:
    found = loaded(
        "import torch, regplug\n"
        "model = torch.nn.Linear(2, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "session = regplug.attach(model, optimizer, ['l1(0.1)'])\n"
        "model(torch.ones(1, 2)).sum().backward(); optimizer.step()\n"
    )
    assert "regplug_builtins.l1" in found
    assert not found & {
        "accelerate",
        "regplug.backend.update_rules",
        "regplug.discovery.mistakes",
        "regplug.selection.in_use",
        "regplug.session.description",
        "regplug.session.figures",
        "regplug.session.own_weights",
        "regplug.session.snapshots",
        "regplug.table",
        "regplug.tune",
        "regplug.report",
    }


def test_public_names_are_all_there_and_no_others() -> None:
    names = {name: getattr(regplug, name) for name in regplug.__all__}
    assert set(names) <= set(dir(regplug))
    assert regplug.attach is names["attach"] is sys.modules["regplug.session"].attach
    assert regplug.in_use.in_use is sys.modules["regplug.selection.in_use"].in_use
    assert regplug.hookspecs is sys.modules["regplug.hookspecs"]  # a module that is not public
    for name in ("attatch", "_attach", "__wrapped__"):
        assert not hasattr(regplug, name)
    with pytest.raises(AttributeError, match="module 'regplug' has no attribute 'attatch'"):
        regplug.attatch  # noqa: B018
