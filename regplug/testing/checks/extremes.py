"""Check of a formula at weights where formulas go wrong: zeros, ties, tiny and huge ones."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from regplug.penalty import Penalty
from regplug.testing.bench import Rig, Setup
from regplug.testing.checks.refusing import refusals
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__: list[str] = []

# A quarter of the largest float32: what is larger may as well overflow.
_LARGEST = torch.finfo(torch.float32).max / 4

# 1e15 is as large as weights of float32 may be for their squares to be finite, in which torch's own
# norms are summed.
_SCALES = (1e-40, 1e-30, 1e-10, 1e-4, 1.0, 20.0, 100.0, 1e4, 1e15)

# Here a sum over elements may be infinite, but there is no reason for it to be nan.
_BEYOND = 1e25


@check("extremes", after=("differentiable", "pure", "gradient", "finite-difference", "dtype"))
def extremes(subject: Subject) -> Iterable[Case]:
    """Value, gradient and proximal point are finite at every finite weight, and agree there.

    At zeros, at a row of zeros, where all weights or two rows are equal, in one row, one column and
    a single element; from 1e-40 to 1e15 in float32, and a separable one is nan at no size. A value
    that overflows in float64 too, or that float32 can't hold, is no fault. Away from kinks, a
    gradient that is stated is also autograd's. What is no ``Penalty`` makes a step from such
    weights, after which all is finite that is so without it.
    """
    if not isinstance(subject.plugin, Penalty):
        for setup in subject.setups():
            for words, fill in _LOOPS.items():
                yield f"{words}, {setup.regime}", partial(_trains, subject, setup, words, fill)
        return
    penalty = subject.penalty
    for words, make in _PLACES.items():
        yield words, torch.no_grad()(partial(_finite, penalty, words, make))
    for scale in _SCALES:
        words = f"weights of about {scale:g}"
        run = partial(_finite, penalty, words, partial(_random, scale))
        yield words, torch.no_grad()(run)
    if penalty.separable:
        words = f"weights of about {_BEYOND:g}"
        yield words, torch.no_grad()(partial(_no_nan, penalty, words))
    yield "float32 as float64", torch.no_grad()(partial(_as_wide, penalty))
    if type(penalty).gradient is not Penalty.gradient:
        yield "stated gradient", torch.no_grad()(partial(_agrees, penalty))


def _random(scale: float, shape: tuple[int, ...] = (4, 3)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    w = torch.randn(shape, dtype=torch.float64, generator=generator)
    return (w + 0.2 * w.sign()) * scale


def _zero_row() -> torch.Tensor:
    w = _random(1.0)
    w[1] = 0
    return w


def _zero_column() -> torch.Tensor:
    w = _random(1.0)
    w[:, 1] = 0
    return w


def _equal_rows() -> torch.Tensor:
    w = _random(1.0)
    w[2] = w[0]
    w[:, 2] = w[:, 1]
    return w


def _opposite_rows() -> torch.Tensor:
    w = _random(1.0)
    w[2] = -w[0]
    return w


def _mixed() -> torch.Tensor:
    w = _random(1.0)
    w[0] *= 1e-12
    w[1] *= 1e6
    return w


_PLACES = {
    "zeros": lambda: torch.zeros(4, 3, dtype=torch.float64),
    "a row of zeros": _zero_row,
    "a column of zeros": _zero_column,
    "all weights equal": lambda: torch.full((4, 3), 0.7, dtype=torch.float64),
    "all weights −1": lambda: torch.full((4, 3), -1.0, dtype=torch.float64),
    "ones": lambda: torch.ones(4, 4, dtype=torch.float64),
    "two rows equal": _equal_rows,
    "two rows opposite": _opposite_rows,
    "an identity": lambda: torch.eye(4, dtype=torch.float64),
    "one row": lambda: _random(1.0, (1, 4)),
    "one column": lambda: _random(1.0, (4, 1)),
    "one element": lambda: _random(1.0, (1, 1)),
    "one element, zero": lambda: torch.zeros(1, 1, dtype=torch.float64),
    "rows of different sizes": _mixed,
}


def _outcomes(penalty: Penalty, w: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield "value(w)", penalty.value(w)
    yield "gradient(w)", penalty.gradient(w)
    if type(penalty).proximal is not Penalty.proximal:
        yield "proximal(w, 0.1)", penalty.proximal(w.clone(), 0.1)


def _finite(penalty: Penalty, words: str, make: Callable[[], torch.Tensor]) -> None:
    wide = make()
    found = dict(_outcomes(penalty, wide.float()))
    exact = dict(_outcomes(penalty, wide))
    has_value = bool(found["value(w)"].isfinite().all())
    for what, result in found.items():
        if bool(result.isfinite().all()):
            continue
        largest = max(_size(exact[what]), _size(exact["value(w)"]))
        if math.isfinite(largest):
            if largest > _LARGEST:
                continue  # float32 can't hold it
        elif _size(wide) > 10 and not (has_value and what == "gradient(w)"):
            continue  # nor could float64, so that nobody can tell
        bad = float(result[~result.isfinite()].reshape(-1)[0])
        size = f", though nothing there is above {largest:.4g}" if math.isfinite(largest) else ""
        raise Failure(
            f"with {words} {what} is {bad}{size}: divide by nothing that may be 0, take neither "
            "root nor logarithm of it (add a small ε, or state the gradient), and let nothing grow "
            "on the way that cancels in the end"
        )


def _no_nan(penalty: Penalty, words: str) -> None:
    wide = _random(_BEYOND)
    largest = 0.0  # the gradient of a value that float32 can't hold is nobody's to ask for
    for what in ("value", "gradient"):
        found, exact = (getattr(penalty, what)(w) for w in (wide.float(), wide))
        largest = max(largest, _size(exact))
        if bool(found.isnan().any()) and largest < _LARGEST:
            raise Failure(
                f"with {words} {what}(w) is nan, though nothing there is above {largest:.4g}: "
                "it is ∞/∞, ∞ − ∞ or 0·∞ on the way; write it so that nothing overflows"
            )


def _as_wide(penalty: Penalty) -> None:
    for scale in (0.1, 1.0, 10.0):
        w = _random(scale).float()
        found, exact = dict(_outcomes(penalty, w)), dict(_outcomes(penalty, w.double()))
        for what, result in found.items():
            other = exact[what]
            if not bool(other.isfinite().all()):
                continue
            if not torch.allclose(result.double(), other, rtol=1e-3, atol=1e-3 * _size(other)):
                gap = float((result.double() - other).abs().max())
                raise Failure(
                    f"of the same weights {what} differs by {gap:.3g} between float32 and float64: "
                    "one formula serves all dtypes, and differences of like numbers are avoided"
                )


def _size(t: torch.Tensor) -> float:
    if not bool(t.isfinite().all()):
        return math.inf
    return float(t.abs().max()) if t.numel() else 0.0


def _agrees(penalty: Penalty) -> None:
    """Compare with autograd at other weights than those near 1 that the check gradient takes."""
    one_sign = _random(1.0, (5, 3)).abs()
    samples = {
        "positive weights": one_sign,
        "negative weights": -one_sign,
        "square weights": _random(1.0, (3, 3)),
        "one row": _random(1.0, (1, 6)),
        "one column": _random(1.0, (6, 1)),
        "a wide weight": _random(1.0, (2, 40)),
        "a tall weight": _random(1.0, (40, 2)),
        "a large weight": _random(1.0, (60, 90)),
    }
    samples |= {f"weights near {s:g}": _random(s, (5, 3)) for s in (1e-3, 0.1, 5.0, 50.0, 1e3)}
    samples["weights of float32"] = _random(1.0, (5, 3)).float()
    for words, w in samples.items():
        stated, found = penalty.gradient(w), Penalty.gradient(penalty, w)
        if not bool(found.isfinite().all()):
            continue
        scale, rtol = float(found.abs().max()), 1e-3 if w.dtype == torch.float32 else 1e-5
        if stated.shape != w.shape or not torch.allclose(
            stated, found, rtol=rtol, atol=rtol * scale
        ):
            gap = float((stated - found).abs().max()) if stated.shape == w.shape else math.nan
            raise Failure(
                f"at {words} gradient(w) differs by up to {gap:.3g} from autograd of value(w), "
                f"which is up to {scale:.3g}"
            )


def _rows_of_zeros(w: torch.Tensor) -> None:
    if w.ndim and len(w) > 1:
        w[:1] = 0


_LOOPS: dict[str, Callable[[torch.Tensor], object]] = {
    "a step from zeros": lambda w: w.zero_(),
    "a step from a row of zeros": _rows_of_zeros,
    "a step from weights that are all equal": lambda w: w.fill_(0.7),
    "a step from weights of about 1e-30": lambda w: w.mul_(1e-30),
}


def _stepped(
    subject: Subject, setup: Setup | None, fill: Callable[[torch.Tensor], object], rate: float
) -> Rig:
    rig = subject.rig(setup, dtype=torch.float32, lr=rate)
    with torch.no_grad():
        for p in rig.parameters.values():
            fill(p)
    rig.step(0)
    return rig


def _trains(
    subject: Subject, setup: Setup, words: str, fill: Callable[[torch.Tensor], object]
) -> None:
    for rate in (0.02, 0.0):  # at 0 the weights that it sees after the step are these, too
        without = _stepped(subject, None, fill, rate).snapshot().weights
        try:
            with refusals():
                rig = _stepped(subject, setup, fill, rate)
        except Skip:
            if rate:
                raise
            return  # it goes by a share of the rate, of which there is none
        for name, w in rig.snapshot().weights.items():
            if bool(without[name].isfinite().all()) and not bool(w.isfinite().all()):
                raise Failure(
                    f"after {words} {name} is not finite: divide by nothing that may be 0, and "
                    "take neither root nor logarithm of it"
                )
        assert rig.session is not None
        for key, value in rig.session.metrics().items():
            if not math.isfinite(value):
                raise Failure(f"after {words} the metric {key} is {value}")
