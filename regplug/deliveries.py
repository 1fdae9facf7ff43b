"""How a penalty's formula reaches gradients, weights and the loss, whatever their layout.

A separable penalty is worked on in batches of flat pieces, shard by shard; any other on whole
tensors, which sharded parameters are gathered for. Halves are computed with in float32.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from regplug import distributed
from regplug.blocks import BLOCK, batches
from regplug.errors import PluginError, RegplugError
from regplug.optimizers import Group, UpdateRule
from regplug.parameters import Coverage

if TYPE_CHECKING:
    from regplug.penalty import Penalty

__all__ = [
    "Term",
    "add_gradients",
    "elementwise_proximal",
    "penalized",
    "proximal",
    "tell_rounding",
    "total",
    "value",
    "widened",
    "zeros",
]

_HALVES = (torch.float16, torch.bfloat16)


def widened(w: torch.Tensor) -> torch.Tensor:
    """Return halves in float32, in which sums and small strengths survive; others as they are."""
    w = w.detach()
    return w.float() if w.dtype in _HALVES else w


# --- gradients ---------------------------------------------------------------------------------


def add_gradients(
    penalty: "Penalty",
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
) -> None:
    """Add ``factor · gradient(w)`` to each of ``gradients``, in place."""
    if penalty.separable:
        parts = [distributed.local(g) for g in gradients], [distributed.local(w) for w in weights]
        for gs, ws, *cs in batches([*parts, *_companions(penalty, weights)]):
            penalty.add_gradients(gs, [widened(w) for w in ws], factor, *cs)
        return
    for g, w in zip(gradients, weights, strict=True):
        whole = penalty.gradient(widened(distributed.full(w)), *_whole_companions(penalty, w))
        distributed.local(g).add_(distributed.part(whole, w), alpha=factor)


def _companions(
    penalty: "Penalty", weights: Sequence[torch.Tensor]
) -> list[tuple[torch.Tensor, ...]]:
    """Return a column of this rank's parts for each companion that the weights have."""
    if not weights or not penalty.companions(weights[0]):  # most penalties have none
        return []
    rows = [[distributed.local(c) for c in penalty.companions(w)] for w in weights]
    return list(zip(*rows, strict=True))


def _whole_companions(penalty: "Penalty", w: torch.Tensor) -> list[torch.Tensor]:
    return [distributed.full(companion) for companion in penalty.companions(w)]


def tell_rounding(
    penalty: "Penalty",
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
) -> None:
    """Warn if half-precision gradients are too coarse for most of what is about to be added."""
    for pair in zip(gradients, weights, strict=True):
        g, w = map(distributed.local, pair)
        if g.dtype not in _HALVES or not penalty.separable or g.layout != torch.strided:
            continue
        if w.numel() == 0:
            continue
        companions = [distributed.local(c) for c in penalty.companions(pair[1])]
        added = penalty.gradient(widened(w), *companions) * factor
        lost = ((g + added).to(g.dtype) == g) & (added != 0)
        if lost.sum() * 2 > (added != 0).sum():
            warnings.warn(
                f"{penalty.name}: most of what it adds rounds away in {g.dtype} gradients; keep "
                "the weights in float32 (autocast does), or use a larger strength",
                stacklevel=2,
            )
            return


# --- proximal operators ------------------------------------------------------------------------


def proximal(penalty: "Penalty", weights: Sequence[torch.Tensor], step: Any) -> None:
    """Replace ``weights`` by their proximal points for one step that they all have."""
    if penalty.separable:
        parts = [distributed.local(w) for w in weights]
        for pieces, *cs in batches([parts, *_companions(penalty, weights)]):
            penalty.proximal_(pieces, step, *cs)
        return
    for w in weights:
        _whole_proximal(penalty, w, step)


def elementwise_proximal(
    penalty: "Penalty",
    rule: UpdateRule,
    group: Group,
    state: Mapping[str, Any],
    w: torch.Tensor,
    g: torch.Tensor,
) -> None:
    """Replace ``w`` by its proximal point for the step that each of its elements has."""
    names = rule.tensors(group)
    # A gradient may be sparse, and most rules need none.
    used = g if rule.uses_gradient else w
    columns = [distributed.local(t) for t in (w, used, *(state[name] for name in names))]
    if not penalty.separable:
        moments = dict(zip(names, columns[2:], strict=True))
        step = rule.step(group, {**state, **moments}, columns[1])
        _whole_proximal(penalty, w, distributed.full(distributed.like(step, w)))
        return
    beside = _companions(penalty, [w])
    for batch in batches([*([column] for column in columns), *beside]):
        (weight,), (gradient,), *others = batch
        pieces, cs = others[: len(names)], others[len(names) :]
        moments = {name: widened(piece) for name, (piece,) in zip(names, pieces, strict=True)}
        penalty.proximal_([weight], rule.step(group, {**state, **moments}, gradient), *cs)


def _whole_proximal(penalty: "Penalty", w: torch.Tensor, step: Any) -> None:
    whole = penalty.proximal(widened(distributed.full(w)), step, *_whole_companions(penalty, w))
    distributed.local(w).copy_(distributed.part(whole, w))


# --- values ------------------------------------------------------------------------------------


def _pieces(penalty: "Penalty", w: torch.Tensor) -> list[torch.Tensor]:
    """Return values that add up to value(w), over the shards if it is separable."""
    if not penalty.separable:
        whole = widened(distributed.full(w))
        return [penalty.scalar_value(whole, *_whole_companions(penalty, w))]
    part, beside = distributed.local(w), _companions(penalty, [w])
    if 0 < part.numel() <= BLOCK:
        return [penalty.scalar_value(widened(part), *(column[0] for column in beside))]
    return [
        penalty.scalar_value(widened(piece), *(column[0] for column in cs))
        for (piece,), *cs in batches([[part], *beside])
    ]


def _sum(values: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor | float:
    # A number where it costs nothing to read one: arithmetic on 0-d tensors is ten times slower.
    if like.device.type == "cpu":
        return math.fsum(value.item() for value in values)
    return torch.stack([value.to(like.device) for value in values]).sum() if values else 0.0


def total(
    penalty: "Penalty", by_factor: Sequence[tuple[float, Sequence[torch.Tensor]]]
) -> torch.Tensor | float:
    """Return Σ factor·value(w), a number or 0-d tensor; a collective if weights are sharded."""
    if penalty.separable and any(distributed.is_sharded(w) for _, ws in by_factor for w in ws):
        terms = [(w, p * f) for f, ws in by_factor for w in ws for p in _pieces(penalty, w)]
        return distributed.resolve([distributed.Sum(terms)])[0]
    result: torch.Tensor | float = 0.0
    for factor, ws in by_factor:
        for device in dict.fromkeys(w.device for w in ws):
            mine = [w for w in ws if w.device == device]
            values = [piece for w in mine for piece in _pieces(penalty, w)]
            result = result + _sum(values, mine[0]) * factor
    return result


def value(penalty: "Penalty", weights: Sequence[torch.Tensor], factor: float) -> Any:
    """Return what metrics show, factor·Σ: a sum over shards, or a number alike on all ranks."""
    if penalty.separable:
        terms = [(w, piece) for w in weights for piece in _pieces(penalty, w)]
        return distributed.Sum(terms, factor=factor)
    return total(penalty, [(factor, weights)])


def zeros(coverage: Coverage) -> distributed.Sum:
    """Return the share of the covered weights that are exactly 0."""
    terms = []
    for entry in coverage.trainable:
        w = distributed.local(entry.parameter).detach()
        terms.append((entry.parameter, w.numel() - torch.count_nonzero(w)))
    return distributed.Sum(terms, factor=1 / max(coverage.weights, 1))


# One penalty's part in a weight's gradient: its formula, and the factor before it.
Share: TypeAlias = tuple["Penalty", float]


@dataclass(frozen=True)
class Term:
    """What a penalty adds to a loss: Σ factor·value(w), for each factor over its own weights."""

    penalty: "Penalty"
    by_factor: Sequence[tuple[float, Sequence[torch.Tensor]]]


def penalized(loss: torch.Tensor, terms: Sequence[Term]) -> torch.Tensor:
    """Return ``loss`` with ``terms`` added, whose gradients are those that the penalties state.

    Nodes of this kind save no intermediate results, and keep ``DTensor`` gradients as such, so
    that penalties of sharded weights may be added to a plain loss. A node stands for about a
    mebibyte of weights: their gradients are made together, and have been accumulated before those
    of the next are made, so that no model-sized temporary arises.
    """
    with torch.no_grad():
        added: Any = sum(total(term.penalty, term.by_factor) for term in terms)
    shares: dict[int, tuple[torch.Tensor, list[Share]]] = {}
    for term in terms:
        for factor, ws in term.by_factor:
            for w in ws:
                shares.setdefault(id(w), (w, []))[1].append((term.penalty, factor))
    node: list[tuple[torch.Tensor, list[Share]]] = []
    filled = 0
    for w, own in shares.values():
        if node and filled + w.numel() > BLOCK:
            loss, added, node, filled = _Penalized.of(loss, added, node), 0.0, [], 0
        node.append((w, own))
        filled += w.numel()
    return _Penalized.of(loss, added, node) if node else loss


class _Penalized(torch.autograd.Function):
    @classmethod
    def of(
        cls,
        loss: torch.Tensor,
        added: torch.Tensor | float,
        node: Sequence[tuple[torch.Tensor, list[Share]]],
    ) -> torch.Tensor:
        weights, shares = zip(*node, strict=True)
        result: torch.Tensor = cls.apply(shares, added, loss, *weights)  # type: ignore[no-untyped-call]
        return result

    @staticmethod
    def forward(
        ctx: Any,
        shares: Sequence[list[Share]],
        added: torch.Tensor | float,
        loss: torch.Tensor,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        ctx.shares = shares
        ctx.save_for_backward(*weights)
        return loss + (added.to(loss) if isinstance(added, torch.Tensor) else added)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        (upstream,) = outputs
        # create_graph: the gradient will be differentiated in turn
        gradient = _differentiable if torch.is_grad_enabled() else _plain
        scale = _number_if_free(upstream)
        gradients = (
            gradient(w, own, scale) for w, own in zip(ctx.saved_tensors, ctx.shares, strict=True)
        )
        return None, None, upstream, *gradients


def _number_if_free(upstream: torch.Tensor) -> torch.Tensor | float:
    # Elsewhere than on a CPU, reading a value waits for the device.
    free = upstream.device.type == "cpu" and not torch.is_grad_enabled()
    return upstream.item() if free else upstream


def _differentiable(
    w: torch.Tensor, shares: Sequence[Share], scale: torch.Tensor | float
) -> torch.Tensor:
    gradients: list[torch.Tensor] = [
        _blamed(p, p.gradient, w, *p.companions(w)) * (factor * scale) for p, factor in shares
    ]
    return sum(gradients[1:], start=gradients[0])


def _plain(w: torch.Tensor, shares: Sequence[Share], scale: torch.Tensor | float) -> torch.Tensor:
    (penalty, factor), *others = shares
    if penalty.separable:
        beside = [distributed.local(companion) for companion in penalty.companions(w)]
        part: torch.Tensor = _blamed(
            penalty, penalty.gradient, widened(distributed.local(w)), *beside
        )
    else:
        beside = _whole_companions(penalty, w)
        whole: torch.Tensor = _blamed(
            penalty, penalty.gradient, widened(distributed.full(w)), *beside
        )
        part = distributed.part(whole, w)
    gradient = distributed.like((part * (factor * scale)).to(w.dtype), w)
    for penalty, factor in others:
        if isinstance(scale, torch.Tensor):
            distributed.local(gradient).add_(
                distributed.local(_plain(w, [(penalty, factor)], scale))
            )
        else:
            _blamed(penalty, add_gradients, penalty, [gradient], [w], factor * scale)
    return gradient


def _blamed(plugin: "Penalty", function: Any, *arguments: Any) -> Any:
    """Call a formula from inside a backward pass, where no session stands by to name the plugin."""
    try:
        return function(*arguments)
    except RegplugError:
        raise
    except Exception as error:
        raise PluginError(
            f"{plugin.name} ({plugin.source}) failed in the backward pass of on_loss at step "
            f"{plugin._step}: {type(error).__name__}: {error}"
        ) from error
