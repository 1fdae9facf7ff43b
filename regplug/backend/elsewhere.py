"""A device that no machine has, made of the CPU: it refuses what lies elsewhere, as a GPU does.

Its tensors say that they are on ``lazy:0``: a kind of device that torch has a word for, whose
backward pass runs where that of the CPU does, and which nothing is installed for.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["Elsewhere", "elsewhere", "is_available"]

_WRAPPER = "_make_wrapper_subclass"
_NAME = "lazy"
# These bring values from one device to another; indices may lie on the CPU.
_CROSSES = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put", "aten::index_put_")
_ITEM = "aten::_local_scalar_dense"
_ADDRESS = "_cdata"
_generators: set[int] = set()
_MADE = (torch.tensor, torch.as_tensor, torch.asarray)

_SET_DATA: Any = torch.Tensor.data.__set__  # type: ignore[attr-defined]

Function: TypeAlias = Any


def is_available() -> bool:
    """Whether this torch takes a device that is written in Python."""
    return hasattr(torch.Tensor, _WRAPPER)


class Elsewhere(torch.Tensor):
    """A tensor that says that it is on another device, and lies on the CPU.

    Args:
        held: what it holds.
    """

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Elsewhere":
        make: Any = getattr(torch.Tensor, _WRAPPER)
        self: Elsewhere = make(
            cls,
            held.shape,
            strides=held.stride(),
            dtype=held.dtype,
            device=torch.device(_NAME, 0),
        )
        self.held = held.detach()
        return self

    def __init__(self, held: torch.Tensor) -> None:
        """See the class."""

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
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
    if drawn is not None and goes != (getattr(drawn, _ADDRESS, None) in _generators):
        where = _NAME if goes else "cpu"
        raise RuntimeError(f"Expected a '{where}' device type for generator but found another")
    plain = {k: ("cpu" if k == "device" and goes else v) for k, v in kwargs.items()}

    def unwrap(x: Any) -> Any:
        return x.held if isinstance(x, Elsewhere) else x

    out = function(*_map(args, unwrap), **_map(plain, unwrap))
    if name == _ITEM:
        return out
    owners = {id(x.held): x for x in here}

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in owners:  # in place
            return owners[id(x)]
        return Elsewhere(x) if goes else x

    return _map(out, wrap)


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
            return Elsewhere(args[0].held.new_tensor(*args[1:], **kwargs))
        if args and isinstance(args[0], Elsewhere):
            if function is torch.Tensor.tolist:
                return args[0].held.tolist()
            if function == _SET_DATA and isinstance(args[1], Elsewhere):
                args[0].held = args[1].held
                return None
        return function(*args, **kwargs)


def _factories() -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Factories(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Function, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return _run(function, args, kwargs or {})

    return Factories()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Have what is made on the device be of :class:`Elsewhere`, for as long as this lasts."""
    plain, kept = torch.Generator, []

    class Generator(plain):  # type: ignore[misc, valid-type]
        """Whatever is made of it is of the device that it was asked for."""

        def __new__(cls, device: Any = "cpu") -> Any:
            if not _is_there(device):
                return plain(device)
            made = plain()
            kept.append(made)  # its address is not to be another's
            _generators.add(getattr(made, _ADDRESS))
            return made

    torch.Generator = Generator  # type: ignore[misc]
    try:
        with _factories(), _Functions():
            yield torch.device(_NAME, 0)
    finally:
        torch.Generator = plain  # type: ignore[misc]
        _generators.clear()
