"""Attaching plugins to a loop: :func:`attach`."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from regplug.discovery.catalog import load_all
from regplug.errors import SpecError
from regplug.kernels.choice import chosen
from regplug.plugin import Plugin
from regplug.session import accelerate, engines
from regplug.session.agreement import Ranks
from regplug.session.session import Session

__all__ = ["attach"]


def attach(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    plugins: Iterable[str | Plugin] | str | Plugin = (),
    *,
    accelerator: Any = None,
    name: str | None = None,
    kernels: str | None = None,
    handover: bool = True,
) -> Session:
    r"""Attach regularizer plugins to a training loop, which stays as it is.

    From here on each real ``optimizer.step()`` fires the step events by itself. For penalties in
    the textbook form, inside the loss, add ``loss = session.loss(loss)`` before ``backward()``.

    Args:
        model: the module that is trained: bare, compiled, wrapped in DDP, sharded by FSDP2,
            prepared by Accelerate, or an engine of DeepSpeed's.
        optimizer: the torch optimizer, or a wrapper of it (Accelerate's, DeepSpeed's ZeRO, SAM,
            Lookahead), whose inner one is attached to then; None for a loop that updates its
            weights by hand, which then says ``with session.step(lr=…):``.
        plugins: specs such as ``"l1(1e-5)"``, ``"l1=1e-5"`` or
            ``"dropout(linear(0.5, 0.1, steps=1000))"``, and instances of :class:`regplug.Plugin`.
            They act in this order. ``regplug plugins`` lists what is installed. A spec such as
            ``"./file.py:Class(1e-3)"`` is of a class in a file, which is executed.
        accelerator: an ``accelerate.Accelerator``, whose checkpoints then hold the session's
            state. Not needed for the rest.
        name: tells several sessions of one program apart in checkpoints and metrics. Of one that
            does the same under the same name on the same optimizer, attach warns, as where a
            notebook's cell is run again; :func:`regplug.sessions.on` finds the old one.
        kernels: what executes formulas: ``"auto"``, compiled kernels where there are any, Triton's
            on a GPU and numba's on a CPU (``pip install "regplug[fast]"``); ``"foreach"``, torch's
            own operations alone; ``"numba"`` or ``"triton"``, these alone. By default what
            the environment variable ``REGPLUG_KERNELS`` says, else ``"auto"``.
        handover: whether ``weight_decay`` and ``l2`` at the step may be left to the optimizer's own
            ``weight_decay`` for the time of its update, where that comes to the same. ``.grad``
            does not show ``l2`` then. With ``kernels="foreach"`` ``l2`` is not left to it either.

    Returns:
        The session, a handle that reports (``metrics()``, ``describe()``), saves (``state_dict()``)
        and restores everything (``detach()``, or leaving its ``with`` block).

    Raises:
        SpecError: a spec or an argument is wrong, or two plugins have one name (a ValueError).
        PluginNotFoundError: no installed distribution offers such a plugin (a LookupError).
        PluginError: a plugin does not load, or its hooks break the contract.
        SelectionError: a selection matches nothing that this optimizer updates (a ValueError).
        UnsupportedError: regplug knows that it can't be right with this model or optimizer.

    >>> import torch, regplug
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with regplug.attach(model, optimizer, ["l2(0.5)"]) as session:
    ...     model(torch.zeros(1, 4)).sum().backward()
    ...     optimizer.step()          # w ← w − 0.1·(0 + 2·0.5·w)
    ...     session.steps
    1
    """
    if not isinstance(model, nn.Module):
        raise SpecError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if name is not None and not (isinstance(name, str) and name):
        raise SpecError(f"name must be a non-empty string, got {name!r}")
    prepared = accelerator is not None or accelerate.is_wrapper(optimizer)
    prepared = prepared or engines.is_engines(model, optimizer)
    ranks = Ranks(model, prepared=prepared, name=name or "regplug")
    with ranks.telling():
        return Session(
            model,
            optimizer,
            load_all(plugins),
            ranks,
            accelerator=accelerator,
            name=name,
            kernels=chosen(kernels),
            handover=handover,
        )
