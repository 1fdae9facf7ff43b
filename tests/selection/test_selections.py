"""Selections that narrow, layers that are judged by what they are, and what is told of both."""

import pytest
import torch
from torch import nn

import regplug
from regplug import Selection
from regplug.errors import SelectionError
from tests.selection.named import names


def net():
    model = nn.ModuleDict()
    model["encoder"] = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    model["head"] = nn.Linear(4, 2)
    return model


# Intersections


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("weights & encoder.*", ["encoder.0.weight", "encoder.2.weight"]),
        ("weights&encoder.*", ["encoder.0.weight", "encoder.2.weight"]),
        ("encoder.* & weights", ["encoder.0.weight", "encoder.2.weight"]),
        ("encoder.* & !*.bias", ["encoder.0.weight", "encoder.1.weight", "encoder.2.weight"]),
        ("!*.bias & encoder.*", ["encoder.0.weight", "encoder.1.weight", "encoder.2.weight"]),
        ("all & *.bias & !encoder.1*", ["encoder.0.bias", "encoder.2.bias", "head.bias"]),
        ("all & !weights & !encoder.*", ["head.bias"]),
        ("!encoder.0.* & !head.*", ["encoder.2.weight"]),
        (
            ["weights & encoder.*", "head.bias"],
            ["encoder.0.weight", "encoder.2.weight", "head.bias"],
        ),
        (["weights & encoder.*", "!*.2.*"], ["encoder.0.weight"]),
        ("*.[&0]*.weight & encoder.*", ["encoder.0.weight"]),
    ],
)
def test_what_is_joined_by_and_narrows(where, expected):
    assert names(where, net()) == expected


def test_a_list_is_a_union():
    assert names(["weights", "encoder.0.*"], net()) == [
        "encoder.0.weight",
        "encoder.0.bias",
        "encoder.2.weight",
        "head.weight",
    ]


@pytest.mark.parametrize("where", ["weights &", "& weights", "&", "a && b", "weights & !", "a & "])
def test_what_is_no_intersection_is_refused_when_it_is_made(where):
    with pytest.raises(SelectionError, match="where must"):
        Selection(where)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("weights & encodr.*", r"'encodr.\*' matches no parameter; the nearest names are encoder"),
        ("head.* & encoder.*", r"though each of its parts does: 'encoder.\*' alone is encoder.0"),
        (["weights", "head.* & encoder.*"], "though each of its parts does"),
        ("weights & *.bias", "though each of its parts does.*encoder.0.bias"),
        ("head.* & !head.*", "though each of its parts does"),
    ],
)
def test_an_intersection_that_is_empty_says_which_part_it_is(where, message):
    with pytest.raises(SelectionError, match=message):
        regplug.attach(net(), plugins=[f"l1(0.1, where={where!r})"])


def test_a_spec_narrows_too():
    model = net()
    session = regplug.attach(model, plugins=["l2(1.0, where='weights & encoder.2*')"])
    expected = model["encoder"][2].weight.square().sum().item()
    assert session.metrics()["l2/value"] == pytest.approx(expected)


# What a layer is


class LinearNorm(nn.Linear):
    """As in Tacotron 2: a linear layer with an initialization of its own."""


class ConvNorm(nn.Conv1d):
    pass


class BatchNormEmbedding(nn.Embedding):
    pass


class OfItsOwn(LinearNorm):
    pass


class LayerNormLinear(nn.Module):
    """As in fused kernels: a norm and a linear layer in one, known by what it maps."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 3, 2
        self.weight = nn.Parameter(torch.ones(2, 3))
        self.layer_norm_weight = nn.Parameter(torch.ones(3))


class PixelNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))


class FusedNorm(nn.LayerNorm):
    pass


class Plain(nn.LayerNorm):
    pass


class NormSequential(nn.Sequential):
    """A container that has an affine weight of its own."""

    def __init__(self):
        super().__init__(nn.Linear(2, 2))
        self.scale = nn.Parameter(torch.ones(2, 2))


class BlockNorm(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 2))
        self.scale = nn.Parameter(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (LinearNorm(3, 2), ["weight"]),
        (OfItsOwn(3, 2), ["weight"]),
        (ConvNorm(3, 2, 1), ["weight"]),
        (BatchNormEmbedding(3, 2), ["weight"]),
        (nn.utils.parametrizations.weight_norm(LinearNorm(3, 2)), ["weight", "weight"]),
        (LayerNormLinear(), ["weight"]),
        (NormSequential(), ["scale", "0.weight"]),
        (BlockNorm(), ["0.weight"]),
        (PixelNorm(), []),
        (FusedNorm((2, 3)), []),
        (Plain((2, 3)), []),
    ],
)
def test_a_layer_is_judged_by_what_it_is(layer, expected):
    model = nn.ModuleList([layer, nn.Linear(1, 1)])
    assert names("weights", model) == [f"0.{name}" for name in expected] + ["1.weight"]


# What describe() tells


def test_describe_names_what_is_covered_where_it_is_little():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = [
        "l1(0.1, where='weights & encoder.*')",
        "l2(0.1, where='weights & encoder.*')",
        "weight_decay(0.1, where='head.*')",
        "max_norm(3, where='head.weight')",
        "gradient_noise(0.1)",
    ]
    lines = regplug.attach(model, optimizer, plugins).describe().splitlines()
    assert "l1, l2: covers encoder.0.weight, encoder.2.weight" in lines
    assert "weight_decay: covers head.weight, head.bias" in lines
    assert "max_norm: covers head.weight" in lines
    assert not any(line.startswith("gradient_noise: ") for line in lines)


def test_describe_tells_of_a_union_that_reads_like_a_narrowing():
    told = regplug.attach(net(), plugins=["l1(0.1, where=['weights', 'head.*'])"]).describe()
    assert "covers encoder.0.weight, encoder.2.weight, head.weight, head.bias" in told
    assert "where=['weights', 'head.*'] is a union; what is in both is 'weights & head.*'" in told
    for where in ("weights", ["weights", "!head.*"], ["head.*", "encoder.0*"]):
        assert (
            "union" not in regplug.attach(net(), plugins=[f"l1(0.1, where={where!r})"]).describe()
        )
