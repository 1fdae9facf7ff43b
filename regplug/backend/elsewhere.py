"""A device that no machine has, made of the CPU: it refuses what lies elsewhere, as a GPU does.

Whoever calls :func:`elsewhere` gives the device to the whole process, for good: do it in a process
that ends.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration

__all__ = ["Elsewhere", "elsewhere", "is_available"]

_SETUP = "_setup_privateuseone_for_python_backend"
_WRAPPER = "_make_wrapper_subclass"
_NAME = "elsewhere"
# These bring values from one device to another; indices may lie on the CPU.
_CROSSES = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put", "aten::index_put_")
_ITEM = "aten::_local_scalar_dense"
_MADE = (torch.tensor, torch.as_tensor, torch.asarray)

Function: TypeAlias = Any


def is_available() -> bool:
    """Whether this torch takes a device that is written in Python."""
    return hasattr(backend_registration, _SETUP) and hasattr(torch.Tensor, _WRAPPER)


class Elsewhere(torch.Tensor):
    """A tensor that says that it is on the device ``elsewhere``, and lies on the CPU.

    Args:
        inner: what it holds.
    """

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":
        make: Any = getattr(torch.Tensor, _WRAPPER)
        self: Elsewhere = make(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=torch.device(_NAME)
        )
        self.inner = inner.detach()
        return self

    def __init__(self, inner: torch.Tensor) -> None:
        """See the class."""

    def __repr__(self, **options: Any) -> str:
        return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(
        cls, function: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == _NAME


def _leaves(value: Any, listed: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yield what is in arguments, and whether it is in a list of them."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each, True)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _leaves(each, listed)
    else:
        yield value, listed


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, list | tuple):
        mapped = [_map(each, change) for each in value]
        return mapped if isinstance(value, list) else tuple(mapped)
    if isinstance(value, dict):
        return {key: _map(each, change) for key, each in value.items()}
    return change(value)


def _refuse(function: Function) -> None:
    raise RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"{_NAME}:0 and cpu! (in {function})"
    )


def _run(function: Function, args: Any, kwargs: Any) -> Any:
    name = function.name().partition(".")[0]
    tensors = [
        (x, listed and not name.startswith("aten::_foreach"))
        for part in args
        for x, listed in _leaves(part)
        if isinstance(x, torch.Tensor)
    ]
    tensors += [(x, listed) for x, listed in _leaves(kwargs) if isinstance(x, torch.Tensor)]
    here = [x for x, _ in tensors if isinstance(x, Elsewhere)]
    others = [(x, listed) for x, listed in tensors if not isinstance(x, Elsewhere)]
    if here and others and name not in _CROSSES:
        first = tensors[0][0]
        written = function._schema.is_mutable and not isinstance(first, Elsewhere)
        if written or any(x.ndim > 0 or listed for x, listed in others):
            _refuse(function)
    target = kwargs.get("device")
    goes = bool(here) if target is None else _is_there(target)
    if name == "aten::copy_":
        goes = isinstance(args[0], Elsewhere)
    drawn = kwargs.get("generator")
    if drawn is not None and goes != isinstance(drawn, _Generator):
        where = _NAME if goes else "cpu"
        raise RuntimeError(f"Expected a '{where}' device type for generator but found another")
    plain = {k: ("cpu" if k == "device" and goes else v) for k, v in kwargs.items()}

    def unwrap(x: Any) -> Any:
        return x.inner if isinstance(x, Elsewhere) else x

    out = function(*_map(args, unwrap), **_map(plain, unwrap))
    if name == _ITEM:
        return out
    owners = {id(x.inner): x for x in here}

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in owners:  # in place
            return owners[id(x)]
        return Elsewhere(x) if goes else x

    return _map(out, wrap)


class _Generator(torch.Generator):
    """A generator that says that it is of the device ``elsewhere``."""

    @property
    def device(self) -> torch.device:
        return torch.device(_NAME)


class _Functions(TorchFunctionMode):
    """Makes tensors of numbers there, which torch does without asking the mode below."""

    def __torch_function__(
        self, function: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in _MADE and _is_there(kwargs.get("device")):
            del kwargs["device"]
            made = function(*args, **kwargs)
            return made if isinstance(made, Elsewhere) else Elsewhere(made.cpu())
        if function is torch.Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return Elsewhere(args[0].inner.new_tensor(*args[1:], **kwargs))
        return function(*args, **kwargs)


def _factories() -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Factories(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Function, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return _run(function, args, kwargs or {})

    return Factories()


@contextlib.contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Give this process the device, and have what is made on it be of :class:`Elsewhere`."""
    getattr(backend_registration, _SETUP)(_NAME)
    plain = torch.Generator

    class Generator(plain):  # type: ignore[misc, valid-type]
        """Whatever is made of it is of the device that it was asked for."""

        def __new__(cls, device: Any = "cpu") -> Any:
            return _Generator() if _is_there(device) else plain(device)

    torch.Generator = Generator  # type: ignore[misc]
    try:
        with _factories(), _Functions():
            yield torch.device(_NAME)
    finally:
        torch.Generator = plain  # type: ignore[misc]
