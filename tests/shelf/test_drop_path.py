"""Stochastic depth: which rates are found, and what each becomes."""

import re

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import SelectionError, SpecError
from regplug_builtins import DropPath
from tests.helpers.layers import StochasticDepth


class TimmDropPath(nn.Module):
    """Its code is timm's: DropPath.drop_prob, the rest of a batch scaled up."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        if keep > 0.0 and self.scale_by_keep:
            mask.div_(keep)
        return x * mask


class Block(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_path1, self.drop_path2 = TimmDropPath(rate), TimmDropPath(rate)
        self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop_path1(self.linear(x)) + self.drop_path2(x)


def blocks() -> nn.Sequential:
    return nn.Sequential(*(Block(rate) for rate in (0.0, 0.1, 0.2, 0.4)))


def rates(model: nn.Module) -> list[float]:
    return [float(m.drop_prob) for m in model.modules() if isinstance(m, TimmDropPath)]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        ("linear", [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8]),
        ("uniform", [0.8] * 8),
        ("own", [0.0, 0.0, 0.2, 0.2, 0.4, 0.4, 0.8, 0.8]),
    ],
)
def test_rates_grow_with_depth_as_asked(depth: str, expected: list[float]) -> None:
    model = blocks()
    with regplug.attach(model, plugins=[DropPath(0.8, depth=depth)]) as session:
        assert rates(model) == pytest.approx(expected)
        assert model[0].dropout.p == 0.1
        assert session.metrics()["drop_path/rate"] == 0.8
        assert "8 stochastic-depth rates" in session.describe()
    assert rates(model) == [0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.4, 0.4]


def test_a_schedule_moves_them_and_samples_are_dropped_at_that_rate() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), TimmDropPath(0.3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with regplug.attach(model, optimizer, ["drop_path(linear(0.0, 1.0, steps=4))"]):
        seen = []
        for _ in range(5):
            y = model(torch.ones(20_000, 2))
            seen.append((y == 0).all(1).double().mean().item())
            y.sum().backward()
            optimizer.step()
    assert seen == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.02)
    assert model[1].drop_prob == 0.3
    assert type(model[1].drop_prob) is float


def test_torchvisions_attribute_is_found_and_where_selects() -> None:
    model = nn.Sequential(nn.Linear(2, 2), StochasticDepth(0.1), StochasticDepth(0.2))
    with regplug.attach(model, plugins=[DropPath(0.6, where="2")]):
        assert (model[1].p, model[2].p) == (0.1, 0.6)
    assert (model[1].p, model[2].p) == (0.1, 0.2)


def test_misuse_is_told() -> None:
    with pytest.raises(SpecError, match="depth must be one of"):
        DropPath(0.1, depth="deep")
    with pytest.raises(SpecError, match="rate"):
        DropPath(1.5)
    with pytest.raises(SelectionError, match="matches no stochastic-depth rate"):
        regplug.attach(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), plugins=[DropPath(0.1)])
    model = nn.Sequential(nn.Linear(2, 2), TimmDropPath(0.0))
    with pytest.raises(SpecError, match="every own rate of the model is 0"):
        regplug.attach(model, plugins=[DropPath(0.1, depth="own")])


@pytest.mark.parametrize("rate", ["0.1", "linear(0.1, 0.2, steps=2)"])
def test_a_rate_has_one_master(rate: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3), TimmDropPath(0.3))
    for specs in (
        [f"dropout({rate})", "dropout(0.1, where='2', name='b')"],
        [f"dropout({rate}, where='2')", "dropout(0.1, name='b')"],
        [f"drop_path({rate})", "drop_path(0.1, name='b')"],
    ):
        with pytest.raises(SpecError, match=r"2\.drop_prob is set by another plugin already"):
            regplug.attach(model, plugins=specs)
        assert (model[1].p, model[2].drop_prob) == (0.3, 0.3)
    specs = [f"dropout({rate}, where='!2.*')", "drop_path(0.2)"]
    with regplug.attach(model, plugins=specs):
        assert (float(model[1].p), model[2].drop_prob) == (0.1, 0.2)


class Vit(nn.Module):
    """Its names are those of timm's."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.pos_drop = nn.Linear(4, 4), nn.Dropout(0.1)
        self.blocks = blocks()
        self.depths = nn.ModuleList([StochasticDepth(0.3), StochasticDepth(0.3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.pos_drop(self.patch(x)))


def dropouts(model: nn.Module) -> list[float]:
    return [float(m.p) for m in model.modules() if isinstance(m, nn.Dropout)]


def depths(model: nn.Module) -> list[float]:
    return rates(model) + [float(m.p) for m in model.modules() if isinstance(m, StochasticDepth)]


@pytest.mark.parametrize("rate", ["0.6", "linear(0.6, 0.7, steps=4)"])
@pytest.mark.parametrize("first", ["dropout", "drop_path"])
def test_dropout_and_drop_path_take_their_own_kind_each(rate: str, first: str) -> None:
    model = Vit()
    own = (dropouts(model), depths(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    specs = [f"dropout({rate})", f"drop_path({rate}, depth='uniform', name='path')"]
    with regplug.attach(model, optimizer, specs if first == "dropout" else specs[::-1]) as session:
        for step in range(3):
            expected = 0.6 if rate == "0.6" else 0.6 + 0.025 * step
            assert dropouts(model) == pytest.approx([expected] * 5)
            assert depths(model) == pytest.approx([expected] * 10)
            assert session.metrics() == pytest.approx(
                {"dropout/rate": expected, "path/rate": expected}
            )
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        described = session.describe()
        assert "5 dropout rates," in described
        assert "10 stochastic-depth rates," in described
    assert (dropouts(model), depths(model)) == own


def test_what_drop_path_leaves_is_still_its_kind() -> None:
    model = Vit()
    specs = ["drop_path(0.5, where='blocks.3.*', depth='uniform')", "dropout(0.6)"]
    with regplug.attach(model, plugins=specs):
        assert depths(model) == [0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.5, 0.5, 0.3, 0.3]
        assert dropouts(model) == [0.6] * 5
    with pytest.raises(
        SelectionError, match=r"no dropout rate but blocks\.0\.drop_path1\.drop_prob"
    ):
        regplug.attach(model, plugins=["drop_path(0.5)", "dropout(0.6, where='*drop_path*')"])


@pytest.mark.parametrize("second", ["dropout", "drop_path"])
def test_the_hint_of_two_masters_works_as_it_stands_for_all_rates(second: str) -> None:
    """Two sessions over one model know of each other, and of the rates that move."""
    first = {"dropout": "drop_path", "drop_path": "dropout"}[second]
    moving = "(linear(0.1, 0.2, steps=2))"
    model = Vit()
    with (
        regplug.attach(model, plugins=[first + moving]),
        pytest.raises(
            SpecError, match="and 7 more are moved by session 'regplug' already"
        ) as refused,
    ):
        regplug.attach(model, plugins=[second + moving])
    hint = re.search(r"where=\[.*\]", str(refused.value)).group()
    assert "exclude them from one of the two" in str(refused.value)
    with (
        regplug.attach(model, plugins=[f"dropout(0.7, {hint})"]),
        regplug.attach(model, plugins=["drop_path(0.5, depth='uniform')"]),
    ):
        assert dropouts(model) == [0.7] * 5
        assert depths(model) == [0.5] * 10


def test_a_hint_names_each_rate_where_no_pattern_tells_them_apart() -> None:
    model = nn.Sequential(*(nn.Dropout(0.1) for _ in range(4)))
    with pytest.raises(SpecError, match=r"0\.p and 1 more are .* from one of the two") as refused:
        regplug.attach(model, plugins=["dropout(0.1, where=['0', '2'])", "dropout(0.2, name='b')"])
    hint = re.search(r"where=\[.*\]", str(refused.value)).group()
    with pytest.raises(SpecError, match=r"0\.p and 1 more are .* from the other"):
        regplug.attach(model, plugins=["dropout(0.2)", "dropout(0.1, where=['0', '2'], name='b')"])
    specs = ["dropout(0.3, where=['0', '2'])", f"dropout(0.2, {hint}, name='b')"]
    with regplug.attach(model, plugins=specs):
        assert dropouts(model) == [0.3, 0.2, 0.3, 0.2]
