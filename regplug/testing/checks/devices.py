"""Check of devices, and of torch's defaults: what is made is made where the weights are."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

import regplug
from regplug.backend.elsewhere import Elsewhere, elsewhere, is_available
from regplug.backend.private_modules import put_parameter
from regplug.backend.process import default_device
from regplug.errors import RegplugError
from regplug.penalty import Penalty
from regplug.testing.bench import Rig, Setup, Snapshot
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []

Place = Callable[[torch.Tensor], torch.Tensor]

_WAY_OUT = (
    "make tensors where the weights are: torch.zeros_like(w), w.new_tensor(…), "
    "torch.arange(n, device=w.device, dtype=w.dtype), torch.Generator(w.device)"
)


@check("device", after=("every-batch", "dtype", "surroundings", "state"))
def device(subject: Subject) -> Iterable[Case]:
    """It works where the weights are: on another device, and whatever torch's defaults are.

    On a device that is made up for this, which refuses tensors of the CPU as a GPU does (but for
    0-d ones); on CUDA, where there is one; and on the CPU where ``torch.set_default_device`` or
    ``torch.set_default_dtype`` say something else, it does what it does otherwise.
    """
    for setup in subject.setups():
        yield f"another device, {setup.regime}", partial(_elsewhere, subject, setup)
        yield f"CUDA, {setup.regime}", partial(_cuda, subject, setup)
        yield f"default device, {setup.regime}", partial(_default_device, subject, setup)
        yield f"default dtype, {setup.regime}", partial(_default_dtype, subject, setup)


def _run(subject: Subject, setup: Setup | None, place: Place, steps: int = 2) -> Rig:
    """Train with weights and data somewhere, and with what a loop asks beside."""
    rig = subject.rig(None)
    data = [rig.data(step) for step in range(steps)]
    _move(rig, place)
    if setup is not None:
        rig.plugin = setup.make()
        rig.session = regplug.attach(rig.model, rig.optimizer, [rig.plugin])
        if isinstance(rig.plugin, Penalty):
            keeps_place(rig.plugin, place)
    torch.manual_seed(1)
    for x in data:
        rig.optimizer.zero_grad()
        rig.loss(place(x)).backward()
        rig.optimizer.step()
    if rig.session is not None:
        rig.session.metrics()
        rig.session.describe()
        rig.session.load_state_dict(rig.session.state_dict())
    rig.detach()
    return rig


def _move(rig: Rig, place: Place) -> None:
    moved: dict[torch.Tensor, nn.Parameter] = {}
    for module in rig.model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if p not in moved:
                moved[p] = nn.Parameter(place(p.detach()), p.requires_grad)
            put_parameter(module, name, moved[p])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, place(buffer))
    rig.parameters = dict(rig.model.named_parameters())
    rig.optimizer = torch.optim.SGD(list(rig.parameters.values()), lr=0.02)


def keeps_place(penalty: Penalty, place: Place) -> None:
    """Raise a ``Failure`` unless what a formula returns lies where the weights do."""
    w = place(torch.tensor([[0.5, -1.5], [2.0, -0.25]], dtype=torch.float64))
    results = {"value(w)": penalty.value(w), "gradient(w)": penalty.gradient(w)}
    if type(penalty).proximal is not Penalty.proximal:
        results["proximal(w, 0.1)"] = penalty.proximal(w.clone(), 0.1)
    for what, found in results.items():
        if found.device != w.device:
            raise Failure(f"{what} is on {found.device} for weights on {w.device}: {_WAY_OUT}")


def _weights(rig: Rig, bring: Place) -> Snapshot:
    weights = {name: bring(p.detach()).clone() for name, p in rig.parameters.items()}
    return Snapshot(weights, rig.snapshot().numbers)


def _elsewhere(subject: Subject, setup: Setup) -> None:
    if not is_available():
        raise Skip(f"torch {torch.__version__} takes no device that is written in Python")
    expected = _run(subject, setup, torch.Tensor.cpu)

    with elsewhere():
        try:
            _run(subject, None, Elsewhere)
        except Exception as error:
            raise Skip(f"the model alone fails on a made-up device: {error}") from error
        try:
            found = _run(subject, setup, Elsewhere)
        except Failure:
            raise
        except Exception as error:
            _blame(error, "on another device")
            raise
    for name, p in found.parameters.items():
        if not isinstance(p.data, Elsewhere):
            raise Failure(f"on another device it moves {name} to {p.device}: {_WAY_OUT}")
    if not subject.plugin.stochastic:
        same(
            _weights(found, lambda p: p.held if isinstance(p, Elsewhere) else p),
            _weights(expected, torch.Tensor.cpu),
            "on another device it acts otherwise",
            rtol=1e-6,
            atol=1e-8,
        )


def _blame(error: Exception, where: str) -> None:
    """Raise what an error comes to: not the plugin's where the made-up device lacks something."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and isinstance(cause, Exception):
        causes.append(cause)
    text = str(causes[-1])
    if isinstance(causes[-1], NotImplementedError) and "lazy" in text.lower():
        raise Skip(f"the made-up device can't do it: {text.partition('.')[0]}") from error
    if isinstance(causes[-1], RegplugError):
        raise Skip(f"it refuses that: {text}") from error
    raise Failure(f"{where} it fails: {type(causes[-1]).__name__}: {text}; {_WAY_OUT}") from error


def _cuda(subject: Subject, setup: Setup) -> None:
    if not torch.cuda.is_available():
        raise Skip("there is no CUDA device")
    try:
        found = _run(subject, setup, torch.Tensor.cuda)
    except Failure:
        raise
    except Exception as error:
        _blame(error, "on CUDA")
        raise
    for name, p in found.parameters.items():
        if not p.is_cuda:
            raise Failure(f"on CUDA it moves {name} to {p.device}: {_WAY_OUT}")
    if not subject.plugin.stochastic:
        expected = _run(subject, setup, torch.Tensor.cpu)
        same(
            _weights(found, torch.Tensor.cpu),
            _weights(expected, torch.Tensor.cpu),
            "on CUDA it acts otherwise",
            rtol=1e-6,
            atol=1e-8,
        )


@contextmanager
def _default(put: Callable[[object], object], value: object, usual: object) -> Iterator[None]:
    put(value)
    try:
        yield
    finally:
        put(usual)


def _default_device(subject: Subject, setup: Setup) -> None:
    if default_device() != "cpu":
        raise Skip("there is another default device already")
    expected = _run(subject, setup, torch.Tensor.cpu)
    rig = subject.rig(None)
    data = [rig.data(step) for step in range(2)]
    try:
        with _default(torch.set_default_device, "meta", None):  # type: ignore[arg-type]
            _trained(rig, setup, data)
    except Exception as error:
        _blame(error, "where torch.set_default_device names another device than the weights'")
        raise
    if not subject.plugin.stochastic:
        same(
            rig.snapshot(),
            expected.snapshot(),
            f"where torch.set_default_device names another device, it acts otherwise; {_WAY_OUT}",
        )


def _default_dtype(subject: Subject, setup: Setup) -> None:
    runs = []
    usual = torch.get_default_dtype()
    for kind in (torch.float32, torch.float64):
        rig = subject.rig(None, dtype=torch.float32)
        data = [rig.data(step) for step in range(2)]
        try:
            with _default(torch.set_default_dtype, kind, usual):  # type: ignore[arg-type]
                _trained(rig, setup, data)
        except Exception as error:
            _blame(error, f"where torch's default dtype is {kind} and weights are float32")
            raise
        for name, p in rig.parameters.items():
            if p.dtype != torch.float32:
                raise Failure(f"where torch's default dtype is {kind}, {name} becomes {p.dtype}")
        runs.append(rig.snapshot())
    if not subject.plugin.stochastic:
        same(
            runs[1],
            runs[0],
            f"where torch's default dtype is float64 it acts otherwise; {_WAY_OUT}",
            rtol=1e-5,
            atol=1e-6,
        )


def _trained(rig: Rig, setup: Setup, data: list[torch.Tensor]) -> None:
    rig.plugin = setup.make()
    rig.session = regplug.attach(rig.model, rig.optimizer, [rig.plugin])
    for x in data:
        rig.optimizer.zero_grad()
        rig.loss(x).backward()
        rig.optimizer.step()
    rig.session.metrics()
    rig.detach()
