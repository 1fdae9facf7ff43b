"""Private names of torch's modules: their tables of children and of parameters.

Each has what is done without it, or an error that names it, as those of ``private.py``.
"""

from collections.abc import Iterator

import torch
from torch import nn

from regplug.backend.private import missing

__all__ = ["children", "is_made", "put_parameter"]

# Where the names are; a test that renames one sees what is done without it.
_CHILDREN, _PARAMETERS = "_modules", "_parameters"


def is_made(module: nn.Module) -> bool:
    """Whether the ``__init__`` of ``nn.Module`` is through with ``module``."""
    if _CHILDREN in vars(module):
        return True
    try:
        next(nn.Module.named_children(module), None)
    except AttributeError:
        return False
    return True


def children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children under each of their names.

    Without the table: by the public method, which yields a child under its first name alone.
    """
    table = vars(module).get(_CHILDREN)
    if table is not None:
        yield from ((name, child) for name, child in table.items() if child is not None)
    else:
        yield from nn.Module.named_children(module)


def put_parameter(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Have ``tensor`` be a parameter of ``module``, though it may be no ``nn.Parameter``.

    Raises:
        UnsupportedError: it is none, and torch keeps parameters elsewhere by now.
    """
    table = vars(module).get(_PARAMETERS)
    if table is not None:
        table[name] = tensor
    elif isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        raise missing(
            f"Module.{_PARAMETERS}",
            "how to hold a plain tensor that an optimizer updates",
            "make it an nn.Parameter",
        )
