"""A device without float64, as MPS is, made of the CPU: whoever asks it for float64 is refused."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only

torch.utils.backend_registration._setup_privateuseone_for_python_backend("nodouble")
DEVICE = torch.device("nodouble")

watcher = None  # told of each operation: (function, args, kwargs, those that are on the device)


class Narrow(torch.Tensor):
    """A tensor that says that it is on the narrow device, and lies on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner):
        self = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )
        self.inner = inner
        return self

    def __repr__(self):
        return f"Narrow({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def run(function, args, kwargs):
    target = kwargs.get("device")
    here = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Narrow)]
    if watcher is not None:
        watcher(function, args, kwargs, here)
    goes = bool(here) if target is None else torch.device(target).type == DEVICE.type
    plain_kwargs = {k: ("cpu" if k == "device" and goes else v) for k, v in kwargs.items()}
    inner = tree_map_only(Narrow, lambda x: x.inner, (args, plain_kwargs))
    out = function(*inner[0], **inner[1])
    if function is torch.ops.aten._local_scalar_dense.default:
        return out
    owners = {id(x.inner): x for x in here}

    def wrapped(x):
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in owners:  # in place
            return owners[id(x)]
        if not goes:
            return x
        if x.dtype == torch.float64:
            raise TypeError("Cannot convert a tensor to float64: this device does not support it")
        return Narrow(x)

    return tree_map(wrapped, out)


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


@contextmanager
def narrow():
    """Have tensors made on the narrow device be of it."""
    with _Factories():
        yield DEVICE
