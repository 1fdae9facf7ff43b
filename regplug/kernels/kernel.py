"""A penalty's formula as deliveries execute it: :class:`Kernel`.

It is made when a penalty is attached. What its author wrote is looked up once, here, so that a
step asks no object what it has, and so that deliveries know nothing of penalties.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from regplug.backend import shards
from regplug.backend.blocks import PLAIN
from regplug.backend.layouts import Layout
from regplug.errors import PluginError
from regplug.kernels import foreach
from regplug.kernels.choice import Choice
from regplug.kernels.foreach import Formula
from regplug.kernels.formulas import by_autograd, is_written
from regplug.kernels.rows import RowKernel

if TYPE_CHECKING:
    from regplug.kernels.symbols import Symbol

__all__ = ["Gradient", "Kernel", "kernel_of"]


@dataclass(frozen=True, eq=False)
class Gradient:
    """A gradient whose shape is checked.

    Attributes:
        name: the plugin's, for the message.
        formula: what is checked.
    """

    name: str
    formula: Formula

    def __call__(self, w: torch.Tensor, *companions: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the value at ``w``, shaped like it.

        Raises:
            PluginError: it is not.
        """
        gradient = self.formula(w, *companions)
        if gradient.shape != w.shape:
            raise PluginError(
                f"{self.name}: gradient(w) must be shaped like w, {tuple(w.shape)}, "
                f"got {tuple(gradient.shape)}"
            )
        return gradient


@dataclass(frozen=True, eq=False)
class Kernel:
    """One formula, ready to be executed. Two kernels are alike only if they are the same.

    Attributes:
        name: the plugin's.
        separable: whether it acts element by element.
        has_companions: whether it may ask for tensors that belong to a weight.
        has_gradient: whether the author wrote a gradient.
        plain: whether it acts element by element, and on nothing but the weight.
        orientation: ``"rows"`` or ``"columns"`` if it wants whole weights so, else None.
        value: ``(w, *companions)``, as the author wrote it.
        gradient: ``(w, *companions)``, checked; by autograd if there is none.
        proximal: ``(w, step, *companions)``.
        companions: ``(w)``, the tensors that belong to a parameter.
        gradients: ``(weights, factor)``, new tensors; only for what is plain.
        add_gradients: ``(gradients, weights, factor, *companions)``, in place.
        proximal_: ``(weights, step, *companions)``, in place. Lists of companions are as of
            :meth:`companion_parts`.
        blame: ``(error, event)``, what to raise instead of an error where no session stands by.
        refuse_value: ``(found)``, says that it is no 0-d tensor.
        choice: of what executes it, element by element.
        rows: the kernels of whole rows or columns, for a formula of these.
    """

    name: str
    separable: bool
    has_companions: bool
    has_gradient: bool
    plain: bool
    orientation: str | None
    value: Formula
    gradient: Gradient
    proximal: Formula
    companions: Callable[[torch.Tensor], Sequence[torch.Tensor]]
    gradients: Callable[..., list[torch.Tensor]]
    add_gradients: Callable[..., None]
    proximal_: Callable[..., None]
    blame: Callable[[Exception, str], Exception]
    refuse_value: Callable[[object], NoReturn]
    choice: Choice
    rows: RowKernel | None

    def pays(self, weights: Sequence[torch.Tensor]) -> bool:
        """Whether a compiled kernel serves these weights, and is worth a launch."""
        if self.rows is not None:
            return self.rows.serves(*weights)
        return self.separable and self.choice.pays(weights)

    def symbolic_gradient(self, w: "Symbol", *companions: "Symbol") -> "Symbol":
        """Return the gradient of the value at a symbol, by its derivative if none is stated."""
        if self.has_gradient:  # no import is needed for most
            return self.gradient.formula(w, *companions)  # type: ignore[return-value]
        from regplug.kernels.derivative import derivative
        from regplug.kernels.symbols import Symbol, UntraceableError

        value = self.value(w, *companions)
        if type(value) is not Symbol or value.kind != "total":
            raise UntraceableError("its value is no sum over elements")
        return w.tracing.symbol(derivative(w.tracing.recording, value.place, w.place))

    def arranged(self, w: torch.Tensor, layout: Layout | None) -> torch.Tensor:
        """Return a whole weight, or what is shaped like it, as the formulas want it."""
        if layout is None or self.orientation is None:
            return w
        return layout.arranged(w, self.orientation)

    def restored(self, found: torch.Tensor, layout: Layout | None) -> torch.Tensor:
        """Return what formulas made of it as the weight is kept."""
        if layout is None or self.orientation is None:
            return found
        return layout.restored(found, self.orientation)

    def companion_parts(self, weights: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
        """Return, for each companion that a weight has, the list of this rank's parts of it."""
        if not self.has_companions or not weights or not self.companions(weights[0]):
            return []
        of_weights = [self.companions(w) for w in weights]
        for w, own in zip(weights, of_weights, strict=True):
            for companion in own:
                if companion.shape != w.shape:
                    self._check_companion(w, companion)
        parts = [list(map(shards.local, own)) for own in of_weights]
        return list(zip(*parts, strict=True))

    def _check_companion(self, w: torch.Tensor, companion: torch.Tensor) -> None:
        """Refuse what a kernel would go through in the order of memory, and torch would not."""
        if {type(w), type(companion)} <= set(PLAIN) and companion.numel() == w.numel():
            try:
                companion.expand(w.shape)
            except RuntimeError as error:
                raise PluginError(
                    f"{self.name}: companions(w) must be shaped like w, {tuple(w.shape)}, "
                    f"got {tuple(companion.shape)}"
                ) from error

    def whole_companions(self, w: torch.Tensor) -> list[torch.Tensor]:
        """Return each companion of a weight, whole: a collective if it is sharded."""
        return [shards.full(companion) for companion in self.companions(w)]


def kernel_of(
    author: Any,
    base: Any,
    *,
    blame: Callable[[Exception, str], Exception],
    refuse_value: Callable[[object], NoReturn],
    kernels: str,
) -> Kernel:
    """Return the kernel of what ``author`` has written.

    Args:
        author: a penalty, settled (:func:`regplug.kernels.formulas.settle_instance`).
        base: the class whose methods are nobody's own.
        blame: see :class:`Kernel`.
        refuse_value: see :class:`Kernel`.
        kernels: one of :data:`regplug.kernels.choice.KERNELS`.
    """
    has_companions = is_written(author, base, "companions")
    has_gradient = is_written(author, base, "gradient")
    gradient = Gradient(
        author.name, author.gradient if has_gradient else partial(by_autograd, author.value)
    )

    def on_lists(name: str, otherwise: Callable[..., Any], formula: Formula) -> Any:
        stated = is_written(author, base, name)
        return getattr(author, name) if stated else partial(otherwise, formula)

    orientation = None if author.separable else author.orientation
    return Kernel(
        name=author.name,
        separable=author.separable,
        has_companions=has_companions,
        has_gradient=has_gradient,
        plain=author.separable and not has_companions,
        orientation=orientation,
        value=author.value,
        gradient=gradient,
        proximal=author.proximal,
        companions=author.companions,
        gradients=on_lists("gradients", foreach.each_gradient, gradient),
        add_gradients=on_lists("add_gradients", foreach.add_each_gradient, gradient),
        proximal_=on_lists("proximal_", foreach.each_proximal_, author.proximal),
        blame=blame,
        refuse_value=refuse_value,
        choice=Choice(author.name, kernels),
        rows=None if orientation is None else RowKernel(author.name, orientation, kernels),
    )
