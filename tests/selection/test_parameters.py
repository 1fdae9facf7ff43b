"""Which parameters a selection covers, by their names and kinds, in models of many kinds."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, parametrize

import regplug
from regplug import Selection
from regplug.errors import PluginError, RegplugError, SelectionError
from regplug.selection.where import named_parameters
from regplug_builtins import L1, L2
from tests.selection.named import names


class LlamaStyleRMSNorm(nn.Module):
    """A norm of a model's own, with a weight of two dimensions that only its type gives away."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias_proj = nn.Linear(3, 3)
        self.ln_1 = nn.LayerNorm((2, 3))
        self.rms = LlamaStyleRMSNorm()
        self.conv = nn.Conv1d(3, 3, 1)
        self.norms = nn.ModuleList(
            [
                nn.BatchNorm1d(3),
                nn.GroupNorm(1, 3),
                nn.InstanceNorm1d(3, affine=True),
                nn.RMSNorm(3),
            ]
        )
        self.scale = nn.Parameter(torch.ones(()))
        self.positions = nn.Parameter(torch.zeros(1, 5, 3))


WEIGHTS = ["positions", "bias_proj.weight", "conv.weight"]


def test_weights_are_judged_by_type_and_shape_and_not_by_name():
    """`"bias" in name` would exempt bias_proj.weight, and norms hide under ln_1 and rms."""
    assert names("weights", Block()) == WEIGHTS


def test_all_are_all():
    model = Block()
    assert set(names("all", model)) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("*.weight", ["bias_proj.weight", "ln_1.weight", "rms.weight", "conv.weight"]),
        ("conv.*", ["conv.weight", "conv.bias"]),
        (["conv.*", "ln_?.bias"], ["ln_1.bias", "conv.weight", "conv.bias"]),
        (("conv.*",), ["conv.weight", "conv.bias"]),
        ("!conv.*", ["positions", "bias_proj.weight"]),
        (["weights", "!bias*"], ["positions", "conv.weight"]),
        (["!bias*", "weights"], ["positions", "conv.weight"]),
        (["weights", "scale"], ["scale", *WEIGHTS]),
        ("[bp]*[!s]", ["bias_proj.weight"]),
        ("scale", ["scale"]),
        (lambda name, w, module: isinstance(module, nn.Conv1d), ["conv.weight", "conv.bias"]),
        (lambda name, w, module: w.ndim == 3, ["positions", "conv.weight"]),
        (["scale", lambda name, w, module: name == "conv.bias"], ["scale", "conv.bias"]),
        (["!*.bias", lambda name, w, module: name[0] == "c"], ["conv.weight"]),
    ],
)
def test_patterns_lists_and_callables(where, expected):
    found = names(where, Block())
    if where == "*.weight":
        assert set(found) > set(expected)
        assert all(name.endswith(".weight") for name in found)
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("cnov.*", r"where='cnov.\*': 'cnov.\*' matches no parameter; the nearest names are conv"),
        (["conv.*", "nothing.at.all"], "'nothing.at.all' matches no parameter; the nearest"),
        ("Conv.*", "matches no parameter"),
        (["weights", "!*"], r"selects no trainable parameter; the model has scale, .* and 10 more"),
        (lambda *_: False, "selects no trainable parameter"),
    ],
)
def test_selection_that_matches_nothing_shows_the_nearest_names(where, message):
    with pytest.raises(SelectionError, match=message):
        regplug.attach(Block(), plugins=[L1(0.1, where=where)])


@pytest.mark.parametrize(
    "where", ["", " ", "!", "!!", [], (), [""], None, 5, {"conv.*"}, [None], [["conv.*"]], b"x"]
)
def test_what_is_no_selection_is_refused_when_it_is_made(where):
    with pytest.raises(SelectionError, match="where must"):
        L1(0.1, where=where)


def test_model_without_weights_says_what_it_has():
    with pytest.raises(SelectionError, match=r"no parameter has two or more dimensions.*bias"):
        regplug.attach(nn.BatchNorm1d(3), plugins=["l1(0.1)"])
    with pytest.raises(SelectionError, match="the model has no parameters"):
        regplug.attach(nn.ReLU(), plugins=["l1(0.1)"])


def test_callable_that_raises_is_blamed_on_its_plugin():
    with pytest.raises(PluginError, match=r"l1 \(regplug .*on_attach.*ZeroDivisionError"):
        regplug.attach(Block(), plugins=[L1(0.1, where=lambda *_: 1 / 0)])


# Names that wrappers change


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ],
)
def test_wrapped_models_go_by_their_own_names(wrap):
    model = Block()
    session = regplug.attach(wrap(model), plugins=["l1(0.1)"])
    assert session.model is model
    assert [entry.name for entry in session.coverage(Selection())] == WEIGHTS


def test_wrapped_layers_go_by_their_own_names():
    model = nn.ModuleDict(
        {
            "a": torch.compile(nn.Linear(2, 2), backend="eager"),
            "b": checkpoint_wrapper(nn.Linear(2, 2)),
        }
    )
    assert names("all", model) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert names("b.weight", model) == ["b.weight"]


def test_parametrized_weights_match_by_their_plain_name():
    """Parametrizations rename: parametrizations.weight.original1."""
    model = nn.ModuleDict({"conv": parametrizations.weight_norm(nn.Conv1d(3, 3, 1))})
    plain, renamed = (
        names("conv.weight", model),
        names("conv.parametrizations.weight.original?", model),
    )
    assert plain == renamed
    assert len(plain) == 2  # magnitude and direction
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(2, 2)), nn.LayerNorm((2, 2)))
    assert names("weights", model) == ["0.weight"]

    class Doubled(nn.Module):
        def forward(self, w):
            return 2 * w

    norm = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm((2, 2)))
    parametrize.register_parametrization(norm[1], "weight", Doubled())
    assert names("weights", norm) == ["0.weight"]  # its owner is a norm all the same


# Tied, frozen and absent


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.lm_head = nn.Linear(3, 5, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens):
        return self.lm_head(self.embed(tokens))


@pytest.mark.parametrize("where", ["lm_head.*", "embed.*", ["embed.*", "lm_head.*"], "weights"])
def test_tied_weight_matches_by_any_name_and_counts_once(where):
    """lm_head.* matches nothing where the tied weight's first name is the embedding's."""
    model = Tied().double()
    before = model.embed.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, [L2(0.5, where=where)])
    assert session.metrics()["l2/value"] == pytest.approx(0.5 * before.square().sum().item())
    (0 * model(torch.tensor([1])).sum()).backward()
    optimizer.step()
    torch.testing.assert_close(model.lm_head.weight.detach(), before * 0.9)


def test_excluding_any_name_of_a_tied_weight_excludes_it():
    with pytest.raises(SelectionError):
        Selection(["weights", "!lm_head.*"]).of(Tied())


def test_every_name_of_a_tied_weight_is_asked_of_a_callable():
    seen = []
    Selection(lambda name, w, module: bool(seen.append((name, type(module)))) or True).of(Tied())
    assert seen == [("embed.weight", nn.Embedding)]
    seen.clear()
    with pytest.raises(SelectionError):
        Selection(lambda name, w, module: bool(seen.append((name, type(module))))).of(Tied())
    assert seen == [("embed.weight", nn.Embedding), ("lm_head.weight", nn.Linear)]


def test_shared_module_is_listed_once_with_both_names():
    layer = nn.Linear(2, 2)
    (weight, bias) = named_parameters(nn.ModuleDict({"a": layer, "b": layer}))
    assert weight.names == ("a.weight", "b.weight")
    assert bias.names == ("a.bias", "b.bias")


# Any selector at all


@given(
    st.recursive(
        st.text(max_size=8)
        | st.text(alphabet="*?[]!-.wabei0\\{}()", max_size=8)
        | st.none()
        | st.integers()
        | st.sampled_from(["weights", "all", "!all", "!weights", "*.weight", "0.*"]),
        lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner),
        max_leaves=6,
    )
)
@example("[!]")
@example("[z-a]*")
@example("[" * 500)
@example("*" * 2000 + "a")
@settings(max_examples=300, deadline=None)
def test_any_selector_selects_or_raises_our_error(where):
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    try:
        found = Selection(where).of(model)
    except RegplugError:
        return
    assert found
    assert {named.name for named in found} <= {name for name, _ in model.named_parameters()}
