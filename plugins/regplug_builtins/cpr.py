"""Constrained parameter regularization: each matrix has its own bound, and finds its own λ."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from regplug import Adaptive, Selective, SessionView, hookimpl, local, summed, widened
from regplug.errors import SpecError, StateError

__all__ = ["CPR"]

_INITS = ("inflection", "warm_start", "dependent", "uniform")


class CPR(Adaptive, Selective):
    r"""Constrained parameter regularization: mean(θ²) ≤ κ for each parameter θ, by its own λ.

    The augmented Lagrangian of the authors' method: after each step, for each parameter by itself,

        λ ← max(λ + rate·(R(θ) − κ), 0),  θ ← θ − λ·2θ,  with R(θ) = mean(θ²)

    beginning with λ = 0. It stands in the place of weight decay, which is to be 0 then
    (``describe()`` says so if it is not), and does not depend on the learning rate. Where the bound
    κ comes from is ``init``, as in the paper:

    - ``"inflection"`` (Kappa-IP): R(θ) at its first inflection, where it begins to grow more
      slowly, R_t − 2R_{t−1} + R_{t−2} < 0. Until then nothing is done. There is nothing to set.
    - ``"warm_start"`` (Kappa-WS): R(θ) after ``kappa`` steps, twice those of the learning rate's
      warm-up, say.
    - ``"dependent"`` (Kappa-kI₀): ``kappa`` times R(θ) before the first step.
    - ``"uniform"`` (Kappa-K): ``kappa``, for all.

    A parameter that takes no part in a step keeps its λ. The sums run over the whole parameter,
    also of shards (one collective a step); nothing is read on the host.

    Args:
        init: where the bound comes from.
        kappa: its number: whole steps for ``"warm_start"``, a factor or a bound above 0 for
            ``"dependent"`` and ``"uniform"``; there is none for ``"inflection"``.
        rate: μ, what λ grows by for each unit that R(θ) is above its bound; 1 in the paper.
        where: the parameters, by default ``"weights"``.
        name: the key of its state and metrics.

    Raises:
        SpecError: an argument is none of these.
        SelectionError: ``where`` is no selection, or covers nothing.
        StateError: a saved state is of other parameters.
        UnsupportedError: the optimizer is LBFGS, whose line search it would break.

    References:
        Jörg K. H. Franke, Michael Hefenbrock, Gregor Koehler, Frank Hutter, "Improving Deep
        Learning Optimization through Constrained Parameter Regularization", 2024,
        https://arxiv.org/abs/2311.09058; the authors' code, https://github.com/automl/cpr, whose
        ``reg_function="l2"`` this is.

    >>> import regplug
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0]]))                # mean(θ²) = 2.5
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> session = regplug.attach(model, optimizer, [CPR(init="uniform", kappa=2.25)])
    >>> model(torch.zeros(1, 2)).sum().backward(); optimizer.step()
    >>> model.weight.tolist()                                                  # λ = 0.25
    [[0.5, 1.0]]
    """

    adapts = ("_known",)
    reads_gradients = False
    order_matters = True

    def __init__(
        self,
        *,
        init: str = "inflection",
        kappa: float | None = None,
        rate: float = 1.0,
        where: object = "weights",
        name: str | None = None,
    ) -> None:
        if init not in _INITS:
            raise SpecError(f"init must be one of {', '.join(_INITS)}, got {init!r}")
        if init == "inflection" and kappa is not None:
            raise SpecError("kappa has no meaning for init='inflection', which finds it by itself")
        if init != "inflection":
            if kappa is None:
                raise SpecError(f"init={init!r} needs a kappa, as in cpr(init={init!r}, kappa=…)")
            if not (_is_positive(kappa) and (init != "warm_start" or kappa == int(kappa))):
                what = "a whole number of steps" if init == "warm_start" else "a number above 0"
                raise SpecError(f"kappa must be {what} for init={init!r}, got {kappa!r}")
        if not _is_positive(rate):
            raise SpecError(f"rate must be a number above 0, got {rate!r}")
        self.init, self.kappa, self.rate = init, kappa, rate
        self.where = where  # type: ignore[assignment]
        self.name = name
        self._known: dict[str, Any] = {}
        self._bound: object = None
        self._masks: dict[tuple[int, ...], torch.Tensor] = {}

    # --- what is known: a row for each parameter -------------------------------------------

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Check the selection; the weights are measured before the first step."""
        super().on_attach(session)
        self._known, self._bound = {}, None
        session.coverage(self._selection)

    @hookimpl
    def before_step(self, session: SessionView) -> None:
        """Measure parameters that are new, before they are changed for the first time."""
        coverage = session.coverage(self._selection)
        known = self._known
        kept = set(known.get("names", ()))
        # What is frozen for a while keeps its bound, and what is trained later gets one.
        entries = [
            entry
            for entry in coverage
            if entry.parameter.numel() and (entry.parameter.requires_grad or entry.name in kept)
        ]
        names = [entry.name for entry in entries]
        if coverage is self._bound and names == known.get("names", []):
            return
        self._bound, self._masks = coverage, {}
        device = entries[0].parameter.device if entries else None
        if known.get("names") == names:
            self._known = {k: _on(v, device) for k, v in known.items()}
            return
        if not entries:
            return
        at_start = _measured([entry.parameter for entry in entries])
        kappa = {
            "uniform": torch.full_like(at_start, self.kappa or 0.0),
            "dependent": at_start * (self.kappa or 0.0),
        }.get(self.init, torch.full_like(at_start, torch.inf))
        fresh: dict[str, Any] = {
            "multipliers": torch.zeros_like(at_start),
            "bounds": kappa,
            "last": at_start.clone(),
            "slope": torch.full_like(at_start, -torch.inf),  # so that one alone never bends
            "taken": torch.zeros_like(at_start),
        }
        rows = {name: row for row, name in enumerate(known.get("names", []))}
        for what, values in fresh.items():
            for row, name in enumerate(names):
                if name in rows:
                    values[row] = known[what][rows[name]]
        self._known = {"names": names, **fresh}

    @hookimpl
    def after_step(self, session: SessionView) -> None:
        """Move each λ by how far its parameter is above its bound, and shrink the parameter."""
        names = {name: row for row, name in enumerate(self._known.get("names", []))}
        rows, weights = [], []
        by_parameter = {id(e.parameter): e.name for e in session.coverage(self._selection)}
        for _, taking, _ in session.updates(self._selection):
            for w in taking:
                row = names.get(by_parameter[id(w)])
                if row is not None:
                    rows.append(row)
                    weights.append(w)
        if not rows:
            return
        sizes = _measured(weights)
        known = self._known
        picked = self._picked(tuple(rows), sizes.device)
        own = {k: known[k] if picked is None else known[k][picked] for k in _VECTORS}
        own["multipliers"] = (own["multipliers"] + self.rate * (sizes - own["bounds"])).clamp(min=0)
        shrink = 1 - 2 * own["multipliers"]
        for row, w in enumerate(weights):
            part = local(w)
            factor = shrink[row].to(part.device, non_blocking=True)
            part.copy_(widened(part) * factor)
        own["taken"] = own["taken"] + 1
        self._find_bounds(own, sizes, weights)
        for k in _VECTORS:
            known[k] = own[k] if picked is None else known[k].index_copy(0, picked, own[k])

    def _find_bounds(
        self,
        own: dict[str, torch.Tensor],
        sizes: torch.Tensor,
        weights: Sequence[torch.Tensor],
    ) -> None:
        if self.init == "warm_start":
            # λ is 0 until then, so the parameter is what was measured.
            own["bounds"] = torch.where(own["taken"].eq(self.kappa or 0), sizes, own["bounds"])
        elif self.init == "inflection":
            slope = sizes - own["last"]
            bends = (slope < own["slope"]) & own["bounds"].isinf()
            own["bounds"] = torch.where(bends, sizes, own["bounds"])
            own["last"], own["slope"] = sizes, slope

    def _picked(self, rows: tuple[int, ...], device: torch.device) -> torch.Tensor | None:
        """Return which rows take part, None for all in order; made once, for it waits."""
        if rows == tuple(range(len(self._known["names"]))):
            return None
        if rows not in self._masks:
            if len(self._masks) > _MOST:  # as where a router draws its experts
                self._masks.clear()
            self._masks[rows] = torch.tensor(rows, device=device)
        return self._masks[rows]

    # --- what is told ----------------------------------------------------------------------

    @hookimpl
    def on_load_state(self, session: SessionView, state: Mapping[str, Any]) -> None:
        """Go on with the bounds and multipliers, of the same parameters."""
        super().on_load_state(session, state)
        self._bound = None
        names = self._known.get("names", [])
        here = {entry.name for entry in session.coverage(self._selection)}
        if not isinstance(names, list) or (others := [n for n in names if n not in here]):
            raise StateError(
                f"{self.name}: the saved bounds are of {', '.join(map(str, others))} too, which "
                "this session does not cover: select the same parameters"
            )

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, Any]:
        """Return the mean and the largest λ, and how many parameters have a bound."""
        if "names" not in self._known:
            return {"multiplier": 0.0, "largest": 0.0, "bounded": 0.0}
        multipliers, bounds = self._known["multipliers"], self._known["bounds"]
        return {
            "multiplier": multipliers.mean(),
            "largest": multipliers.max(),
            "bounded": bounds.isfinite().sum() * 1.0,
        }

    def notes(self, session: SessionView) -> Sequence[str]:
        """Say where weight decay acts beside it."""
        found = list(super().notes(session))
        covered = session.coverage(self._selection).by_group
        if any(session.groups[index].get("weight_decay") for index in covered):
            found.append("the optimizer's own weight_decay acts too: CPR is made to replace it")
        return found


_MOST = 256
_VECTORS = ("multipliers", "bounds", "last", "slope", "taken")


def _measured(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return mean(θ²) of each whole parameter."""
    sums = summed(parameters, [widened(local(p.detach())).square().sum() for p in parameters])
    return torch.stack([sums[i] / p.numel() for i, p in enumerate(parameters)])


def _is_positive(value: object) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and 0 < value < math.inf  # type: ignore[operator]


def _on(value: Any, device: torch.device | None) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
