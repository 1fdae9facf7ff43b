"""Decoupled decay to the starting point, w ← w − lr·λ·(w − w₀)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from regplug import HALVES, Elementwise, Scheduled, SessionView, hookimpl, local
from regplug.schedules import ScheduleLike
from regplug_builtins._anchored import Anchored
from regplug_builtins._existing import Existing
from regplug_builtins._scale import Scale, is_elsewhere, rounds_away

__all__ = ["DecayToStart"]


class DecayToStart(Anchored):
    r"""Decoupled decay to the starting point: w ← w − lr·λ·(w − w₀) before the optimizer's update.

    This is to ``l2_sp`` what AdamW's weight decay is to L2: the pull does not pass through momentum
    or second moments, and scales with the learning rate alone. With w₀ = 0 it is ``weight_decay``.
    w₀ are the weights at attach, the pre-trained ones in transfer learning, and of lazy parameters
    those of their first forward. They cost one copy of the covered weights, sharded as they are,
    and are part of the session's state, so that a resumed run keeps its starting point.

    Args:
        strength: λ, a finite number ≥ 0, a schedule of the step count, or a mapping of patterns to
            these.
        scale: ``"lr"``, ``"schedule"``, ``"none"`` or ``"lr_squared"``, as of ``weight_decay``.
        reference_lr: lr₀ or lr_max, likewise.
        where: the parameters, by default ``"weights"``.
        existing: what to do where the optimizer itself decays a covered parameter, which pulls it
            to 0 meanwhile: ``"error"``, ``"replace"`` or ``"add"``, as of ``weight_decay``.
        name: the key of its state and metrics.

    Raises:
        SpecError: ``strength`` is negative or not finite, ``existing`` or ``scale`` is none of
            these, or the optimizer decays already; at a step, if it has begun to since.
        SelectionError: ``where`` is no selection, or covers nothing.
        StateError: a saved state has anchors of other parameters or shapes.
        RegplugError: the learning rate of a hand-written update is not known.

    References:
        Xuhong Li, Yves Grandvalet, Franck Davoine, "Explicit Inductive Bias for Transfer Learning
        with Convolutional Networks", 2018, https://arxiv.org/abs/1802.01483.
        Ilya Loshchilov, Frank Hutter, "Decoupled Weight Decay Regularization", 2019,
        https://arxiv.org/abs/1711.05101.
        Jaejun Lee, Raphael Tang, Jimmy Lin, "What Would Elsa Do? Freezing Layers During
        Transformer Fine-Tuning", 2019, https://arxiv.org/abs/1911.03090.

    >>> import regplug, torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 1.0)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> session = regplug.attach(model, optimizer, [DecayToStart(0.1)])
    >>> _ = model.weight.data.fill_(2.0)
    >>> model(torch.zeros(1, 1)).sum().backward()
    >>> optimizer.step()
    >>> round(model.weight.item(), 6)                       # 2 − 0.5·0.1·(2 − 1)
    1.95
    """

    reads_gradients = False
    by_pattern = True
    order_matters = True  # another that changes the weights before the step moves w − w₀
    strength = Scheduled()

    def __init__(
        self,
        strength: ScheduleLike,
        *,
        scale: str = "lr",
        reference_lr: float | None = None,
        where: object = "weights",
        existing: str = "error",
        name: str | None = None,
    ) -> None:
        self._own = Existing(existing)
        self._scale = Scale(scale, reference_lr)
        self._references = self._scale.known
        self.scale, self.reference_lr, self.existing = scale, reference_lr, existing
        self.strength = strength
        self.where = where  # type: ignore[assignment]
        self.name = name
        self._run: Elementwise | None = None
        self._taken: object = None
        self._coarse = False
        self._forget()

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Remember the weights, and check what the optimizer decays by itself."""
        self._run = Elementwise(self.name, session.kernels)
        self._forget()
        self._bind(session)
        self._scale.begin(session)
        self._own.attach(session, self._take_over)
        self._take_over(session)

    def _take_over(self, session: SessionView) -> None:
        self._taken = coverage = session.coverage(self._selection)
        self._coarse = any(entry.parameter.dtype in HALVES for entry in coverage)
        self._own.begin(session.groups, coverage.by_group, self, session.optimizer)

    @hookimpl
    def before_step(self, session: SessionView) -> None:
        """Pull the weights that take part in this step."""
        self._bind(session)
        coverage = session.coverage(self._selection)
        if coverage is not self._taken:
            self._take_over(session)
        else:
            self._own.go_on(session.groups, coverage.by_group, self, session.optimizer)
        self._own.step(session)
        if self.strength == 0:
            return
        assert self._run is not None
        for index, weights, _ in self.by_part(session):
            if (strength := self.strength) == 0:
                continue
            decay = self._scale.of(session, index, strength)
            if self._coarse:
                self._coarse = not rounds_away(self.name, weights, decay)  # once is enough
            anchors = [self._anchors[self._names[id(w)]] for w in weights]
            columns = [list(map(local, weights)), list(map(local, anchors))]
            if is_elsewhere(decay):
                self._run(_pulled, *columns, scalars=[decay])
            else:
                self._run(partial(_pulled, decay=float(decay)), *columns)

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, Any]:
        """Return the strength."""
        return {"strength": self.strength, **self.figures_by_part(session)}

    @hookimpl
    def on_state(self, session: SessionView) -> Mapping[str, Any]:
        """Return the anchors, and the learning rates that λ is measured by."""
        references = {"reference_lr": dict(self._references)} if self._references else {}
        return {**super().on_state(session), **references}

    @hookimpl
    def on_load_state(self, session: SessionView, state: Mapping[str, Any]) -> None:
        """Take those of the run that goes on."""
        super().on_load_state(session, state)
        self._scale.load(state, self.name)

    @hookimpl
    def on_detach(self, session: SessionView) -> None:
        """Let go of the anchors, and give the optimizer its own weight_decay back."""
        super().on_detach(session)
        self._own.detach()
        self._taken = None

    def acts(self, session: SessionView) -> str:
        """Return when it acts, and on what terms."""
        return "before_step" + self._own.said()

    def notes(self, session: SessionView) -> Sequence[str]:
        """Return what is covered, what λ comes to in other conventions, and what executes it."""
        coverage = session.coverage(self._selection)
        lines = self._scale.said_of(self, session, coverage.by_group)
        parts = [local(entry.parameter) for entry in coverage.trainable]
        formula = partial(_pulled, decay=self.strength)
        by = "foreach" if self._run is None else self._run.describe(formula, 2, parts)
        kernel = [] if by.startswith("foreach") else [f"in one kernel ({by})"]
        return [*super().notes(session), *lines, *kernel]


def _pulled(w: torch.Tensor, start: torch.Tensor, decay: Any) -> torch.Tensor:
    moved: torch.Tensor = w - decay * (w - start)
    return moved
