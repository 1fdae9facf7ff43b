"""How communication grows with ranks and weights: a model, and the tables of docs/scale.md.

``python -m tests.distributed.scale`` counts at 1, 2 and 4 ranks, compares with the model and
prints the tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import ceil
from typing import NamedTuple

from tests.distributed.traffic import SIZES, Engine, Event, Made, counted
from tests.helpers.pair import Pair

ENGINES = [
    Engine("DDP", 2),
    Engine("DDP", 4),
    Engine("FSDP2", 2),
    Engine("FSDP2", 4),
    Engine("TP", 1, 2),
    Engine("HSDP", 2, 2),
    Engine("FSDP2 × TP", 2, 2),
]


class Cost(NamedTuple):
    """The model's coefficients.

    Attributes:
        gathers: how many times each covered weight is gathered.
        numbers: how many numbers of 8 bytes are summed over the ranks, in one collective for each
            dimension of a mesh along which weights differ; 0 for no sum.
        sums: how many such collectives there are, one after another.
    """

    gathers: int = 0
    numbers: int = 0
    sums: int = 1


SEPARABLE = "l1(0.1, delivery='loss')", "l2(0.1, delivery='loss')"
WHOLE = "group_lasso(0.1, delivery={!r})"

EVENTS: dict[str, tuple[Event, Cost]] = {
    "separable, at the step": (Event(("l1(0.1, delivery='step')",)), Cost()),
    "separable, proximal": (Event(("l1(0.1, delivery='proximal')",)), Cost()),
    "separable, in the loss": (Event(SEPARABLE[:1]), Cost(numbers=1)),
    "two of them in the loss": (Event(SEPARABLE), Cost(numbers=1)),
    "whole weights, at the step": (Event((WHOLE.format("step"),)), Cost(gathers=1)),
    "whole weights, in the loss": (Event((WHOLE.format("loss"),)), Cost(gathers=2)),
    "whole weights, proximal, SGD": (Event((WHOLE.format("proximal"),)), Cost(gathers=1)),
    "whole weights, proximal, Adam": (Event((WHOLE.format("proximal"),), "Adam"), Cost(gathers=2)),
    "a constraint of whole weights": (Event(("max_norm(0.4)",)), Cost(gathers=1)),
    "metrics: separable": (Event(SEPARABLE[:1], metrics=True), Cost(numbers=2)),
    "metrics: two of them": (Event(SEPARABLE, metrics=True), Cost(numbers=4)),
    "metrics: whole weights": (Event((WHOLE.format("step"),), metrics=True), Cost(1, 1)),
}

NO_COLLECTIVE = (
    "l2(0.1, delivery='step')",
    "elastic_net(0.1, 0.1, delivery='proximal')",
    "l2_sp(0.1, delivery='step')",
    "weight_decay(0.1)",
    "decay_to_start(0.1)",
    "dropout(0.1)",
    "gradient_noise(0.1)",
    "non_negative()",
)
ONE_GATHER = (
    "orthogonal(0.1, delivery='step')",
    "spectral_norm(0.1, delivery='step')",
    "unit_norm()",
    "l1_ball(0.8)",
    "hard_threshold(0.5)",
)
ADAPTIVE = {
    # Of three weights, as they are before the first step and after it.
    "cpr()": Cost(numbers=len(SIZES) - 1, sums=2),
    # Counts of the first sixteen bits of each number, and of the last sixteen.
    "target_sparsity(0.5)": Cost(numbers=2**16 + 1, sums=2),
}
ALSO = {
    **{spec: (Event((spec,)), Cost(gathers=0)) for spec in NO_COLLECTIVE},
    **{spec: (Event((spec,)), Cost(gathers=1)) for spec in ONE_GATHER},
    **{spec: (Event((spec,)), cost) for spec, cost in ADAPTIVE.items()},
}
"""Whose costs the page states as those of their kind."""


class Weight(NamedTuple):
    """One weight of ``rows`` × ``columns``, float32 unless said otherwise, and its place.

    Attributes:
        across: whether tensor parallelism shards its columns rather than its rows.
    """

    rows: int
    columns: int
    across: bool = False
    itemsize: int = 4

    def gathered(self, engine: Engine) -> list[Made]:
        """Return the collectives that make it whole: one for each dimension that shards it.

        Ranks whose parts are smaller than those of others pad them.
        """
        name, data, tensor = engine
        r, c, size = self.rows, self.columns, self.itemsize
        if name == "FSDP2" or name == "HSDP":
            n = data if name == "FSDP2" else tensor
            steps = [(n, n * ceil(r / n) * c)]
        elif name == "TP":
            padded = tensor * ceil(c / tensor) * r if self.across else tensor * ceil(r / tensor) * c
            steps = [(tensor, padded)]
        elif name == "FSDP2 × TP" and self.across:
            own = ceil(r / data)
            steps = [(tensor, own * tensor * ceil(c / tensor)), (data, data * own * c)]
        elif name == "FSDP2 × TP":
            own = ceil(r / tensor)
            steps = [(data, data * ceil(own / data) * c), (tensor, tensor * own * c)]
        else:
            steps = []
        return [Made("gather", n, elements * size) for n, elements in steps]

    def spread(self, engine: Engine) -> tuple[int, ...]:
        """Return the sizes of the dimensions along which ranks have different parts of it."""
        name, data, tensor = engine
        return {
            "FSDP2": (data,),
            "HSDP": (tensor,),
            "TP": (tensor,),
            "FSDP2 × TP": (data, tensor),
        }.get(name, ())


def weights_of(sizes: Sequence[int]) -> list[Weight]:
    """Return those of the net that is counted: columns, rows, columns."""
    pairs = pairwise(sizes)
    return [Weight(r, c, across=i == 1) for i, (c, r) in enumerate(pairs)]


def predicted(cost: Cost, weights: Iterable[Weight], engine: Engine) -> Counter[Made]:
    """Return what an event adds on one rank: the model."""
    weights = list(weights)
    made: Counter[Made] = Counter()
    for weight in weights:
        for gather in weight.gathered(engine):
            made[gather] += cost.gathers
    if cost.numbers:
        for dimensions in {weight.spread(engine) for weight in weights}:
            for n in dimensions:
                made[Made("sum", n, 8 * cost.numbers)] += cost.sums
    return +made


# --- the tables --------------------------------------------------------------------------------

Found = dict[str, Counter[Made]]


def measured(two: Pair, four: Pair) -> dict[Engine, list[Found]]:
    """Return, for each engine, what each of its ranks counted."""
    events = {label: event for label, (event, _) in EVENTS.items()}
    found = {}
    for engine in ENGINES:
        ranks = two if engine.data * engine.model == 2 else four
        found[engine] = ranks.run(counted, engine, SIZES, events, timeout=240)
    return found


def told(made: Counter[Made]) -> str:
    """Return a cell: how many of each kind, and the bytes that a rank has of them in the end."""
    parts = []
    for kind in ("gather", "scatter", "sum"):
        own = {m: n for m, n in made.items() if m.kind == kind}
        count, size = sum(own.values()), sum(m.bytes * n for m, n in own.items())
        if own:
            parts.append(f"{count} {kind}{'s' * (count > 1)}, {amount(size)}")
    return "; ".join(parts) or "–"


def amount(number: float) -> str:
    """Return bytes for people.

    >>> amount(8), amount(1152), amount(26.9e9)
    ('8 B', '1,152 B', '26.9 GB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:,.0f} B"


def title(engine: Engine) -> str:
    name, data, tensor = engine
    if name in ("DDP", "FSDP2"):
        return f"{name}, {data}"
    return f"TP, {tensor}" if name == "TP" else f"{name}, {data}×{tensor}"


def table(engines: Sequence[Engine], cells: dict[str, list[str]]) -> str:
    lines = ["| | " + " | ".join(map(title, engines)) + " |", "| --- " * (len(engines) + 1) + "|"]
    lines += [f"| {label} | " + " | ".join(row) + " |" for label, row in cells.items()]
    return "\n".join(lines)


def counted_table(found: dict[Engine, list[Found]]) -> str:
    """Return the table of what was counted, on rank 0."""
    of_first = {engine: ranks[0] for engine, ranks in found.items()}
    rows = {"the engine itself, a step": [told(of_first[engine][""]) for engine in ENGINES]}
    for label in EVENTS:
        rows[label] = [told(of_first[engine][label]) for engine in ENGINES]
    return table(ENGINES, rows)


BIG = [
    Engine("FSDP2", 8),
    Engine("FSDP2", 1000),
    Engine("HSDP", 125, 8),
    Engine("FSDP2 × TP", 125, 8),
]
LAYER = [(4096, 4096)] * 3 + [(11008, 4096)] * 2
ACROSS = [(4096, 4096), (4096, 11008)]
LARGE = [
    *(Weight(*shape) for _ in range(32) for shape in LAYER),
    *(Weight(*shape, across=True) for _ in range(32) for shape in ACROSS),
    *(Weight(32000, 4096) for _ in range(2)),
]
"""A language model of 6.7·10⁹ weights in 226 matrices."""


def growth_table() -> str:
    """Return the table of what the model says of a large net on many ranks."""
    rows = {
        label: [told(predicted(cost, LARGE, engine)) for engine in BIG]
        for label, (_, cost) in EVENTS.items()
    }
    return table(BIG, rows)


def main() -> None:
    two, four = Pair(2), Pair(4)
    try:
        found = measured(two, four)
    finally:
        two.stop()
        four.stop()
    print(counted_table(found), growth_table(), sep="\n\n")


if __name__ == "__main__":
    main()
