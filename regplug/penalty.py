"""A regularizer that is a formula: :class:`Penalty`."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import torch

from regplug.bases.delivered import DELIVERIES, Delivered
from regplug.errors import PluginError, SpecError
from regplug.kernels import foreach, formulas
from regplug.kernels.formulas import by_autograd, is_written
from regplug.kernels.kernel import Gradient, Kernel, kernel_of
from regplug.plugin import failure_now
from regplug.schedules import ScheduleLike
from regplug.selection.coverage import Coverage
from regplug.selection.where import Where

__all__ = ["DELIVERIES", "Penalty"]


class Penalty(Delivered):
    r"""A term ``strength · Σ value(w)`` of the objective, over the selected parameters.

    Subclasses write :meth:`value`, and :meth:`gradient` and :meth:`proximal` if they like.

    Args:
        strength: λ, a finite number ≥ 0 or a schedule of the step count.
        where: the parameters, see :class:`regplug.selection.where.Selection`.
        delivery: how the penalty reaches the weights:

            - ``"step"``: its gradient is added to ``.grad`` when the gradients are final. Once per
              real step, at full strength, whatever accumulation, clipping and scaling did before.
            - ``"loss"``: ``session.loss`` adds it to the loss, the textbook form: it is
              accumulated, clipped and scaled with the loss.
            - ``"proximal"``: its proximal operator is applied after the update, with the step
              that the optimizer effectively takes: exact zeros.
            - ``"auto"``: settled at the first real step, ``"loss"`` if the gradients came through
              ``session.loss``, else ``"step"``. Never both.
        name: the key of its state and metrics, where one session has two of a kind.

    Raises:
        SpecError: ``strength`` is negative or not finite, ``delivery`` is not one of these, or it
            is ``"proximal"`` and there is no :meth:`proximal`.
        SelectionError: ``where`` is no selection.

    A whole plugin:

    >>> import regplug, torch
    >>> class Smooth(regplug.Penalty):
    ...     "λ·Σ log(2·cosh w), in the form that does not overflow"
    ...     separable = True
    ...     def value(self, w):
    ...         return torch.logaddexp(w, -w).sum()
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> session = regplug.attach(model, optimizer, [Smooth(1e-3)])
    >>> session.plugins[0].name
    'smooth'
    """

    separable: bool = False
    """Whether the value is a sum over elements. Then :meth:`value`, :meth:`gradient` and
    :meth:`proximal` may be given flat float32 pieces: shards and blocks of a parameter, or small
    parameters together."""

    elementwise_steps: bool = False
    """Whether :meth:`proximal` of a non-separable penalty solves its problem for a tensor of
    steps, as Adam and its like have. A separable one always does."""

    orientation: str | None = None
    """``"rows"`` or ``"columns"`` for a formula of outputs, or inputs. A weight of any layer is
    then given with outputs first and inputs second, ``(out, in, …)``. By type of layer: transposed
    convolutions keep inputs first. With groups a row has the inputs of its group,
    ``(out, in/groups, …)``, and a column the outputs of its group, ``(out/groups, in, …)``. None
    for weights as they are kept. It is no matter for a separable penalty."""

    composition: str | None = None
    """What :meth:`proximal` does, where it is known. Proximal operators of several penalties, one
    after another, are that of their sum in one order at most, in which a session calls them.
    ``"threshold"``: magnitudes are reduced by step·c (l1). ``"groups"``: norms of groups are.
    ``"scale"``: weights are divided by 1 + step·c (l2). ``"threshold and scale"``: both (elastic
    net). ``"pull"``: weights are drawn to a point of their own. None: nothing is known."""

    def __init__(
        self,
        strength: ScheduleLike,
        *,
        where: Where = "weights",
        delivery: str = "auto",
        name: str | None = None,
    ) -> None:
        self.strength = strength
        self.where = where
        self.delivery = delivery
        self.name = name

    # --- the formula ----------------------------------------------------------------------

    def value(self, w: torch.Tensor) -> torch.Tensor:
        """Return the penalty of one parameter, a 0-d tensor, differentiable, without λ."""
        raise NotImplementedError(f"{type(self).__name__} must define value(w)")

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        """Return the gradient of :meth:`value` at ``w``, shaped like it, without λ.

        Written here by autograd; a formula of your own saves time. It must not change ``w``, and
        must itself be differentiable for a loss that is differentiated twice.
        """
        return by_autograd(self.value, w)

    def proximal(self, w: torch.Tensor, step: "float | torch.Tensor") -> torch.Tensor:
        """Return argmin over u of ``½‖u − w‖²/step + λ·value(u)``, shaped like ``w``.

        λ is ``self.strength``. ``step`` is a number, or a tensor like ``w`` with a step for each
        element, 0 where the element is to stay as it is. Such a tensor is good for this call only:
        its memory will hold the next one.
        """
        raise NotImplementedError(f"{type(self).__name__} has no proximal operator")

    def companions(self, w: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return tensors that belong to a parameter, element by element: none, unless overridden.

        They reach the formulas as further arguments, cut and gathered as ``w`` is: a penalty that
        has one writes ``value(w, c=None)``, ``gradient(w, c=None)``, ``proximal(w, step, c=None)``,
        and for lists, if at all, ``add_gradients(gradients, weights, factor, cs=())`` and
        ``proximal_(weights, step, cs=())``. Here ``w`` is the parameter itself, and each of its
        companions is shaped like it, and a ``DTensor`` if it is one.
        """
        return ()

    # --- the same on lists, for speed -----------------------------------------------------
    #
    # A separable penalty is mostly called through these. A list is a batch of pieces, a few
    # mebibytes together, so temporaries like them are cheap; override one where ``torch._foreach``
    # or a fused operation does better than a call of the formula for each piece.

    def gradients(self, weights: list[torch.Tensor], factor: float) -> list[torch.Tensor]:
        """Return ``factor · gradient(w)`` for each of ``weights``: new tensors, one for each."""
        return foreach.each_gradient(Gradient(self.name, self.gradient), weights, factor)

    def add_gradients(
        self, gradients: list[torch.Tensor], weights: list[torch.Tensor], factor: float
    ) -> None:
        """Add ``factor · gradient(w)`` to each of ``gradients``, in place."""
        gradient = Gradient(self.name, self.gradient)
        foreach.add_each_gradient(gradient, gradients, weights, factor)

    def proximal_(self, weights: list[torch.Tensor], step: "float | torch.Tensor") -> None:
        """Replace each weight by its proximal point, in place.

        ``step`` is a number for all of them, or a tensor like the only one, which may be used up.
        """
        foreach.each_proximal_(self.proximal, weights, step)

    # --- what deliveries are given of it --------------------------------------------------

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        formulas.settle(cls, Penalty)

    def _settle_formula(self, coverage: Coverage) -> None:
        formulas.settle_instance(self, Penalty)
        if not self.separable or is_written(self, Penalty, "companions"):
            return
        if formulas.is_unproven(self, Penalty):
            self.separable = not coverage or formulas.adds_up(self.value, coverage[0].parameter)

    def _make_formula_kernel(self) -> Kernel:
        blame = partial(failure_now, self)
        return kernel_of(
            self, Penalty, blame=blame, refuse_value=self._refuse_value, kernels=self._kernels
        )

    def _refuse_value(self, found: object) -> NoReturn:
        # A method, for a session knows the plugin by whose ``self`` is on the traceback.
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else found
        raise PluginError(f"{self.name}: value(w) must return a 0-d tensor, got {shape!r}")

    def _check_has_operator(self) -> None:
        if is_written(self, Penalty, "proximal"):
            return
        kind, why = type(self).__name__, ""
        if (author := formulas.author_of_stale_proximal(self, Penalty)) is not None:
            why = f" (that of {author} is of another value: write proximal(w, step) too)"
        raise SpecError(
            f"delivery='proximal': {kind} has no proximal operator{why}; use 'step' or 'loss'"
        )
