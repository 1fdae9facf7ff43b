"""What engines have in common: kernels of one formula, each proven before it is used."""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from regplug.kernels import backends
from regplug.kernels.backends import Backend
from regplug.kernels.expression import Expression
from regplug.kernels.traced import why_untraceable

__all__ = ["Prover"]

T = TypeVar("T")


class Prover:
    """The kernels of one formula.

    Args:
        name: the plugin's, for messages.
        kernels: one of :data:`regplug.kernels.choice.KERNELS`.

    Attributes:
        why_not: why no kernel can be made of the formula, None as long as one may be.
        runs: each kernel that was made, None for one that is not used.
        unused: why not, by the compiler's name and the dtypes.
    """

    def __init__(self, name: str, kernels: str) -> None:
        self._name = name
        self._kernels = kernels
        self.why_not: str | None = None
        self.runs: dict[Any, Any] = {}
        self.unused: dict[tuple[str, tuple[torch.dtype, ...]], str] = {}

    def backend(self, like: torch.Tensor) -> Backend | None:
        """Return the compiler for tensors like this one, if there is one."""
        return backends.serving(like, (like.dtype,), self._kernels)

    def serves(self, like: torch.Tensor) -> bool:
        """Whether there is a compiler for tensors like this one."""
        return self.backend(like) is not None

    def recorded(self, trace: Callable[..., T], *arguments: Any) -> T | None:
        """Return what a trace of the formula gives, or None, and remember why."""
        try:
            return trace(*arguments)
        except Exception as error:  # the formula's own faults come again, from torch's operations
            self.why_not = why_untraceable(error)
            return None

    def proven(
        self,
        backend: Backend,
        expression: Expression,
        dtypes: tuple[torch.dtype, ...],
        made: Callable[[], tuple[T, str | None]],
    ) -> T | None:
        """Return a new kernel, if it does the same as torch's operations.

        Args:
            backend: whose it is.
            expression: what it computes.
            dtypes: of its columns.
            made: makes it, and says in what it differs.
        """
        why = backend.refuses(expression)
        if why is not None:
            self.unused[backend.name, dtypes] = why
            return None
        short = "its kernel came to something else"
        try:
            run, why = made()
        except Exception as error:  # of a compiler, or of torch's operations on a sample
            why, short = f"{type(error).__name__}: {error}", "its kernel could not be made"
        if why is None:
            return run
        self.unused[backend.name, dtypes] = short
        warnings.warn(
            f"{self._name}: its kernel for {backend.name} is not used ({why}); it goes on with "
            "torch's own operations, which are slower. Please report this, with the formula",
            stacklevel=2,
        )
        return None

    def executed_by(self, like: torch.Tensor) -> str:
        """Return the name of what executes the formula for tensors like this one, as far as known.

        It is ``foreach`` where that is torch, and says why if a compiler would serve.
        """
        backend = self.backend(like)
        if backend is None:
            return "foreach"
        if self.why_not is not None:
            return f"foreach ({self.why_not})"
        for (name, dtypes), why in self.unused.items():
            if name == backend.name and like.dtype in dtypes:
                return f"foreach ({why})"
        return backend.name
