"""What a command line asks to be attached, and the models that it is for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.optim import Optimizer

from regplug.backend import wrappers
from regplug.backend.marks import is_hook
from regplug.bases.delivered import Delivered
from regplug.discovery.catalog import load
from regplug.errors import RegplugError, SelectionError, SpecError, UnsupportedError
from regplug.plugin import Plugin
from regplug.session import attach

__all__ = ["Order", "checked", "fitting"]

_SCOPED = re.compile(r"(?P<spec>.*\S)\s*@\s*(?P<scope>[^@()'\"]+)", re.DOTALL)


@dataclass(frozen=True)
class Order:
    """One plugin and the models that it is for.

    Attributes:
        spec: the plugin's spec.
        scope: a glob pattern on the names of model and optimizer, None for all.
    """

    spec: str
    scope: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Order":
        """Return what ``spec`` or ``spec@pattern`` says.

        >>> Order.parse("l1(1e-4) @ generator")
        Order(spec='l1(1e-4)', scope='generator')
        >>> Order.parse("l1(1e-4, where='*@*')").scope is None
        True
        """
        scoped = _SCOPED.fullmatch(text)
        return cls(scoped["spec"], scoped["scope"].strip()) if scoped else cls(text)

    def fits(self, names: Sequence[str]) -> bool:
        """Tell whether one of ``names`` matches, in whatever case."""
        if self.scope is None:
            return True
        return any(fnmatchcase(name.lower(), self.scope.lower()) for name in names)


def checked(texts: Sequence[str]) -> list[Order]:
    """Return the orders in ``texts``; every plugin is made once, to see that it can be.

    Raises:
        SpecError: a spec is wrong, or two plugins for the same models have one name.
        PluginNotFoundError: no installed distribution offers such a plugin.
        PluginError: it does not load.
        UnsupportedError: it needs the loss event, which only the program itself could fire.
    """
    orders = [Order.parse(text) for text in texts]
    first_specs: dict[tuple[str, str | None], str] = {}
    for order in orders:
        plugin = load(order.spec)
        _refuse_loss(plugin, order.spec)
        first = first_specs.setdefault((plugin.name, order.scope), order.spec)
        if first is not order.spec:
            raise SpecError(
                f"{first} and {order.spec} are both named {plugin.name!r}: give one of them "
                f"another name, as in {plugin.name}(…, name='{plugin.name}_2')"
            )
    return orders


def _refuse_loss(plugin: Plugin, spec: str) -> None:
    if isinstance(plugin, Delivered):
        if plugin.delivery != "loss":
            return
        way = "use delivery='step', or attach"
    elif is_hook(getattr(type(plugin), "on_loss", None)):
        way = "attach"
    else:
        return
    raise UnsupportedError(
        f"{spec} acts in the loss event, which a script that is not edited never fires: {way} it "
        "by hand with regplug.attach, and write loss = session.loss(loss) before loss.backward()"
    )


def fitting(
    orders: Sequence[Order], model: nn.Module, optimizer: Optimizer
) -> tuple[list[Order], list[Order]]:
    """Return the orders whose plugins select something here, and those that select nothing.

    Each is attached for a moment, by itself. What can't be for another reason selects something.
    """
    fit, unfit = [], []
    for order in orders:
        try:
            attach(wrappers.unwrap_model(model), optimizer, [order.spec]).detach()
        except SelectionError:
            unfit.append(order)
            continue
        except RegplugError:
            pass
        fit.append(order)
    return fit, unfit
