"""Formulas are recorded as what they are: each operation computes what torch computes."""

import math

import pytest
import torch
from torch.nn import functional as F

from regplug.kernels import cpu
from regplug.kernels.derivative import derivative
from regplug.kernels.expression import Expression, arguments
from regplug.kernels.operations import OPERATIONS
from regplug.kernels.symbols import Symbol, Tracing, UntraceableError

CPU = torch.device("cpu")
X = torch.tensor([-2.5, -1.0, -0.3, -0.0, 0.0, 1e-3, 0.4, 1.0, 2.0], dtype=torch.float64)
Y = torch.tensor([0.5, -1.0, 0.7, 0.0, 2.0, -0.1, 0.4, 1.5, -2.0], dtype=torch.float64)

_IN_FLOATS = {
    "neg": lambda a: -a,
    "not": lambda a: not a,
    "abs": abs,
    "sign": lambda a: (a > 0) - (a < 0),
    "sqrt": lambda a: math.sqrt(a) if a >= 0 else math.nan,
    "rsqrt": lambda a: (1 / math.sqrt(a) if a else math.inf) if a >= 0 else math.nan,
    "reciprocal": lambda a: 1 / a if a else math.copysign(math.inf, a),
    "square": lambda a: a * a,
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
    "isnan": math.isnan,
    "isfinite": math.isfinite,
    "number_of": float,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b if b else (math.copysign(math.inf, a) if a else math.nan),
    "at_least": max,
    "at_most": min,
    "maximum": max,
    "minimum": min,
    "where": lambda a, b, c: b if a else c,
}


def by_floats(expression: Expression, numbers: list[float], *values: float) -> float:
    """Compute an expression step by step in Python's floats."""
    found: list[float] = []
    for step in expression.steps:
        name = step[0]
        if name == "input":
            found.append(values[step[1]])
        elif name == "number":
            found.append(numbers[step[1]])
        elif name in _IN_FLOATS:
            found.append(_IN_FLOATS[name](*(found[place] for place in arguments(step))))
        elif name == "log":
            (place,) = arguments(step)
            found.append(math.log(found[place]) if found[place] > 0 else math.nan)
        elif name == "pow":
            base, exponent = (found[place] for place in arguments(step))
            try:
                power = base**exponent
                found.append(power if isinstance(power, float) else math.nan)
            except ZeroDivisionError:
                found.append(math.inf)
        else:
            found.append(getattr(math, name)(*(found[place] for place in arguments(step))))
    return float(found[expression.result])


def traced(formula, columns=1):
    tracing = Tracing(torch.float64, CPU, OPERATIONS)
    symbols = [tracing.column() for _ in range(columns)]
    result = formula(*symbols)
    assert type(result) is Symbol
    return tracing, symbols, result


def computed(formula, *columns: torch.Tensor) -> torch.Tensor:
    tracing, _, result = traced(formula, len(columns))
    place = result.place if result.kind == "total" else tracing.place(result)
    expression = tracing.recording.expression(place, 0)
    numbers = tracing.recording.numbers
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return torch.tensor([by_floats(expression, numbers, *row) for row in rows], dtype=torch.float64)


OF_ONE = {
    "operators": lambda w: -(2 * w + 1) / 3 - 0.5 * abs(w),
    "from the right": lambda w: 1 - w + 2 / (3 + w.square()) + 1 / (w.abs() + 1),
    "methods": lambda w: w.abs().add(1).mul(2).sub(0.5).div(3).neg(),
    "functions": lambda w: torch.sub(torch.mul(torch.add(w, 1, alpha=3), 2), w, alpha=0.5),
    "powers": lambda w: w**2 + w**3 + w.pow(4) + (w.abs() + 1) ** -1 + (w.abs() + 1) ** 0.5,
    "other powers": lambda w: (w.abs() + 0.1) ** 0.7 + 2**w + (w.abs() + 1).pow(-0.5),
    "roots": lambda w: torch.sqrt(w.abs()) + torch.rsqrt(w.abs() + 0.1),
    "in place": lambda w: w.abs().mul_(2).add_(1, alpha=2).sqrt_().neg_(),
    "augmented": lambda w: _augmented(w),  # noqa: PLW0108 - it is defined below
    "exp and log": lambda w: (
        torch.exp(w) + torch.log1p(w.abs()) + torch.expm1(w) + (w.abs() + 1).log()
    ),
    "hyperbolic": lambda w: torch.tanh(w) + w.cosh().log() + torch.sinh(w) + torch.sigmoid(w),
    "trigonometric": lambda w: torch.sin(w) * torch.cos(w),
    "sign": lambda w: torch.sign(w) + w.sgn(),
    "clamp": lambda w: w.clamp(-1, 0.5) + torch.clamp(w, min=0) + w.clamp(max=0.2) + w.clip(0, 1),
    "extrema": lambda w: torch.maximum(w, torch.zeros_like(w)) + torch.min(w, w.square()),
    "comparisons": lambda w: (w > 0) * w + (w <= -1) * 2.0,
    "where": lambda w: torch.where(w.abs() < 1, w.square(), 2 * w.abs() - 1),
    "where of numbers": lambda w: torch.where((w > 0) & ~(w >= 1), 1.0, 0.0),
    "masked": lambda w: w.masked_fill(w < 0, 0.25).masked_fill(w == 1, -3),
    "truths of truths": lambda w: torch.where(w > 0, w > 1, w < -1) * 2.0,
    "softshrink": lambda w: F.softshrink(w, 0.5),
    "relu": lambda w: F.relu(w) + w.relu(),
    "softplus": F.softplus,
    "lerp": lambda w: torch.lerp(w, w.square(), 0.3) + torch.lerp(w, 3 - w, 0.8),
    "constants": lambda w: w + torch.ones_like(w) + w.new_zeros(()) + torch.tensor(2.0),
    "casts": lambda w: w.double().detach().clone() * 2 + (w > 0).double(),
    "not a number": lambda w: torch.nan_to_num((w - w) / (w - w), nan=3.0) + w.isfinite() * 1.0,
    "reciprocal": lambda w: (w.abs() + 1).reciprocal(),
}


def _augmented(w):
    found = w * 2
    found += 1
    found /= 3
    found -= w
    found *= w
    return found


@pytest.mark.parametrize("name", OF_ONE)
def test_an_operation_is_what_torch_computes(name):
    formula = OF_ONE[name]
    torch.testing.assert_close(computed(formula, X), formula(X).double(), rtol=1e-12, atol=1e-14)


OF_TWO = {
    "operators": lambda w, c: (w - c) / (1 + c.square()) * w,
    "extrema": lambda w, c: torch.maximum(w, c) - torch.minimum(w, c) + w.max(c),
    "clamp": lambda w, c: w.clamp(-c.abs(), c.abs()),
    "addcmul": lambda w, c: torch.addcmul(w, w, c, value=0.5) + w.addcdiv(c, w.square() + 1),
    "where": lambda w, c: torch.where(w > c, w, c) + torch.where(w.eq(c) | (w > 1), c, 0.0),
    "lerp": lambda w, c: torch.lerp(w, 3 - w, c),
    "a power of the other": lambda w, c: (w.abs() + 0.5) ** c,
    "in place": lambda w, c: (w * 1).sub_(c, alpha=2).mul_(c),
}


@pytest.mark.parametrize("name", OF_TWO)
def test_an_operation_of_two_tensors_is_what_torch_computes(name):
    formula = OF_TWO[name]
    torch.testing.assert_close(computed(formula, X, Y), formula(X, Y), rtol=1e-12, atol=1e-14)


LARGE = {
    "addcmul": lambda w: torch.addcmul(w, w, w, value=1e-300),
    "addcdiv": lambda w: torch.addcdiv(w, w, 1 / w, value=1e-300),
    "lerp": lambda w: torch.lerp(w * 1e108, -w * 1e108, 0.75),
    "lerp to one that is far": lambda w: torch.lerp(w / w, w, 1.0),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_overflows_is_what_overflows_in_torch(name):
    formula, x = LARGE[name], torch.tensor([1e200, -1e200, 1.5], dtype=torch.float64)
    torch.testing.assert_close(computed(formula, x), formula(x), rtol=1e-14, atol=0)


TOTALS = {
    "l1": lambda w: w.abs().sum(),
    "norm": lambda w: w.norm(1) + torch.linalg.vector_norm(w, 1),
    "l2": lambda w: 0.5 * w.square().sum(),
    "elastic net": lambda w: 2 * w.abs().sum() + torch.sum(w * w) / 3,
    "log sum": lambda w: torch.log1p(w.abs() / 0.1).sum(),
    "log cosh": lambda w: w.cosh().log().sum(),
    "a difference": lambda w: w.pow(2).sum() - w.abs().sum(),
    "huber": lambda w: torch.where(w.abs() < 1, w.square() / 2, w.abs() - 0.5).sum(),
    "clamped": lambda w: w.abs().clamp(0.2, 1.5).sum(),
    "extrema": lambda w: torch.maximum(w, 0.5 * w).sum() + torch.minimum(w, w.square()).sum(),
    "roots": lambda w: (w.square() + 1).sqrt().sum() + (w.abs() + 1).rsqrt().sum(),
    "a power": lambda w: (w.abs() + 0.1).pow(0.7).sum(),
    "smooth functions": lambda w: (torch.sigmoid(w) + torch.tanh(w) + torch.sin(w).cos()).sum(),
    "a quotient": lambda w: (w.square() / (1 + w.square())).sum(),
    "exponentials": lambda w: (1 - torch.exp(-w.abs())).sum() + torch.expm1(w).sum(),
    "flat": lambda w: -w.flatten().abs().sum(),
    "builtin sum": lambda w: sum([w.abs().sum(), w.square().sum()]),
}


@pytest.mark.parametrize("name", TOTALS)
def test_a_value_and_its_derivative_are_those_of_torch(name):
    formula = TOTALS[name]
    x = torch.cat([X[X.abs() > 0], torch.tensor([0.2, -1.5, 0.0], dtype=torch.float64)])
    x.requires_grad_()
    expected = formula(x)
    (gradient,) = torch.autograd.grad(expected, x)
    found = computed(formula, x.detach())
    torch.testing.assert_close(found.sum(), expected.detach(), rtol=1e-12, atol=0)

    tracing, (w,), value = traced(formula)
    assert value.kind == "total"
    place = derivative(tracing.recording, value.place, w.place)
    expression = tracing.recording.expression(place, 0)
    numbers = tracing.recording.numbers
    own = torch.tensor([by_floats(expression, numbers, v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(own, gradient, rtol=1e-10, atol=1e-12)


OUTSIDE = {
    "a branch on elements": lambda w: w if w.sum() > 0 else -w,
    "a number of an element": lambda w: w * w.max().item(),
    "the shape": lambda w: w / w.numel(),
    "a mean": lambda w: w - w.mean(),
    "a sum over rows": lambda w: w / w.sum(0),
    "a total among elements": lambda w: w / w.abs().sum(),
    "an index": lambda w: w[0] + w,
    "an assignment": lambda w: w.__setitem__(0, 1.0) or w,
    "a change of w": lambda w: w.mul_(2),
    "a change of a view of w": lambda w: w.detach().add_(1),
    "an unknown operation": torch.erfinv,
    "a matrix product": lambda w: w @ w,
    "a tensor of its own": lambda w: w + torch.arange(9.0),
    "noise": lambda w: w + torch.rand_like(w),
    "another dtype": lambda w: w.half() * 2,
    "a number that was added to a total": lambda w: w.abs().sum() + 1.0,
    "memory of its own": lambda w: torch.add(w, 1, out=torch.empty(9, dtype=torch.float64)),
    "a root of a total": lambda w: w.square().sum().sqrt(),
    "a norm": lambda w: w.norm(),
    "a loop over elements": lambda w: sum(x for x in w),
    "a sum of truths": lambda w: ((w > -1) + (w < 1)) * w,
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_not_element_by_element_is_not_recorded(name):
    """Recorded, it would be computed of whatever pieces come, which is silently wrong."""
    with pytest.raises((UntraceableError, TypeError)):
        traced(OUTSIDE[name])


def test_numbers_are_no_part_of_an_expression():
    def expression(strength):
        tracing, _, result = traced(lambda w: torch.sign(w) * strength + w * (2 * strength))
        return tracing.recording.expression(result.place, 0), tracing.recording.numbers

    (one, numbers), (other, others) = expression(0.5), expression(torch.tensor(3.0))
    assert one == other
    assert hash(one) == hash(other)
    assert numbers == [0.5, 1.0]
    assert others == [3.0, 6.0]


def test_a_branch_on_a_number_is_another_expression():
    def expression(strength):
        tracing, _, result = traced(lambda w: torch.sign(w) if strength > 1 else 2 * w)
        return tracing.recording.expression(result.place, 0)

    assert expression(0.5) != expression(2.0)


def test_what_torch_has_vectors_for_is_told_from_what_is_read_once():
    tracing, _, result = traced(lambda w: torch.log1p(w.abs()))
    assert tracing.recording.expression(result.place, 0).is_slow()
    tracing = Tracing(torch.float32, CPU, OPERATIONS)
    w, step = tracing.column(), tracing.column("scalar")
    result = w * (1 - 0.9**step)
    assert not tracing.recording.expression(result.place, 0).is_slow()


def test_a_kernel_of_numba_is_source_that_a_person_can_read():
    tracing, _, result = traced(lambda w: torch.sign(w) * 0.5)
    source = cpu.source_of(tracing.recording.expression(result.place, 0), torch.float64)
    assert "p0[i] = v" in source
    assert "numbers[0]" in source
    assert "0.5" not in source
