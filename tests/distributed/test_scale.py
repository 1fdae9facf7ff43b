"""What docs/scale.md says of communication is what is counted, and what its model says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import scale, traffic
from tests.distributed.traffic import SIZES, THOUSAND, UNEVEN, Engine, Made
from tests.helpers.pair import Pair

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
EVENTS = {label: event for label, (event, _) in scale.EVENTS.items()}
Told = dict[str, Counter[Made]]


@pytest.fixture(scope="module")
def found(pair: Pair, four: Pair) -> dict[Engine, list[Told]]:
    return scale.measured(pair, four)


def agrees(engine: Engine, sizes: tuple[int, ...], told: Told, events: Any = None) -> None:
    """Whatever is counted is what the model says, to the byte."""
    weights = scale.weights_of(sizes)
    for label, (_, cost) in (events or scale.EVENTS).items():
        assert told[label] == scale.predicted(cost, weights, engine), (engine, label)


def test_each_event_adds_the_collectives_of_the_model(found: dict[Engine, list[Told]]) -> None:
    for engine, ranks in found.items():
        assert sum(ranks[0][""].values()) > 0  # those of the engine itself are seen
        for told in ranks:
            agrees(engine, SIZES, told)


def test_plugins_cost_what_their_kind_does(pair: Pair) -> None:
    engine, events = Engine("FSDP2", 2), {label: event for label, (event, _) in scale.ALSO.items()}
    told, _ = pair.run(traffic.counted, engine, SIZES, events)
    agrees(engine, SIZES, told, scale.ALSO)
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert {label.partition("(")[0] for label in scale.ALSO} <= named


def test_uneven_shards_are_padded(four: Pair) -> None:
    engine = Engine("FSDP2", 4)
    agrees(engine, UNEVEN, four.run(traffic.counted, engine, UNEVEN, EVENTS)[0])


def test_one_process_makes_none() -> None:
    alone = traffic.counted(0, Engine("one"), SIZES, EVENTS)
    assert set(map(len, alone.values())) == {0}


@pytest.fixture(scope="module")
def loner() -> Iterator[Pair]:
    process = Pair(1, group=False)
    yield process
    process.stop()


def test_a_thousand_ranks_add_the_collectives_of_the_model(loner: Pair) -> None:
    """Also where most of the ranks have nothing of some weights."""
    engines = [Engine("FSDP2", THOUSAND), Engine("HSDP", 125, 8), Engine("FSDP2 × TP", 25, 40)]
    sizes = (8, 2040, 80, 160)
    (every,) = loner.run(traffic.counted_of_a_thousand, engines, sizes, EVENTS, timeout=120)
    for engine, told in zip(engines, every, strict=True):
        assert sum(told[""].values()) > 0
        agrees(engine, sizes, told)


def test_the_page_shows_what_is_counted_and_what_the_model_says(
    found: dict[Engine, list[Told]],
) -> None:
    assert scale.counted_table(found) in PAGE
    assert scale.growth_table() in PAGE
