"""Which parameters a selection covers, in models of many kinds."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, parametrize

import regplug
from regplug import Selection
from regplug.errors import PluginError, RegplugError, SelectionError, UnsupportedError
from regplug.selection.where import named_parameters
from regplug_builtins import L1, L2


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


def names(where, model):
    return [named.name for named in Selection(where).of(model)]


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


def train_once(model, optimizer, session=None):
    optimizer.zero_grad()
    loss = model(torch.ones(1, 2)).sum() * 0
    if session is not None:
        loss = session.loss(loss)
    loss.backward()
    optimizer.step()


def test_frozen_parameters_are_left_alone_until_they_thaw():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second = (layer.weight.detach().clone() for layer in model)
    session = regplug.attach(model, optimizer, ["l2(0.5)", "weight_decay(0.5)"])
    assert session.metrics()["l2/value"] == pytest.approx(0.5 * second.square().sum().item())
    assert session.plugins[0].covers(session) == (1, 4)
    train_once(model, optimizer)
    assert torch.equal(model[0].weight, first)
    torch.testing.assert_close(model[1].weight.detach(), second * (0.95 - 0.1))
    model[0].weight.requires_grad_(True)
    assert session.plugins[0].covers(session) == (2, 8)
    train_once(model, optimizer)
    torch.testing.assert_close(model[0].weight.detach(), first * (0.95 - 0.1))


@pytest.mark.parametrize("where", ["weights", "all", "*", "0.weight"])
def test_model_that_is_all_frozen_is_refused(where):
    model = nn.Sequential(nn.Linear(2, 2)).requires_grad_(False)
    with pytest.raises(SelectionError, match=r"no trainable parameter; . frozen ones match"):
        regplug.attach(model, plugins=[L1(0.1, where=where)])


@pytest.mark.parametrize("delivery", ["step", "proximal"])
def test_parameter_without_a_gradient_took_no_part_and_is_left_alone(delivery):
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    unused = model[1].weight.detach().clone()
    regplug.attach(model, optimizer, [L2(0.5, delivery=delivery), "weight_decay(0.5)"])
    for _ in range(2):
        optimizer.zero_grad()
        model[0](torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert torch.equal(model[1].weight, unused)
    assert model[1].weight.grad is None


def test_first_layer_acts_though_its_input_needs_no_gradient():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    session = regplug.attach(model, optimizer, ["l2(0.5)"])
    for _ in range(2):  # and not in the first batch alone
        train_once(model, optimizer, session)
    torch.testing.assert_close(model[0].weight.detach(), before * 0.9**2)


def test_gradient_is_added_to_and_not_replaced():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    regplug.attach(model, optimizer, ["l1(0.5)"])
    model(torch.tensor([[3.0, 7.0]])).sum().backward()
    kept = model.weight.grad
    optimizer.step()
    assert model.weight.grad is kept
    moved = before - torch.tensor([[3.0, 7.0]]) - 0.5 * before.sign()
    torch.testing.assert_close(model.weight.detach(), moved)


# This optimizer's own


def test_only_what_the_optimizer_updates_is_covered():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    optimizer = torch.optim.SGD(model["a"].parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["l1(0.1)"])
    assert [entry.name for entry in session.coverage(Selection())] == ["a.weight"]
    message = "selects b.weight, b.bias, none of which this optimizer updates: it has a.weight"
    with pytest.raises(SelectionError, match=message):
        regplug.attach(model, optimizer, [L1(0.1, where="b.*")])


def test_optimizer_of_another_model_is_refused():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(SelectionError, match="this optimizer has no parameter of this model"):
        regplug.attach(nn.Linear(2, 2), optimizer, ["l1(0.1)"])


def test_groups_keep_their_own_learning_rates():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    before = [layer.weight.detach().clone() for layer in model]
    session = regplug.attach(model, optimizer, ["weight_decay(0.5)"])
    assert [entry.group_index for entry in session.coverage(Selection())] == [0, 1]
    train_once(model, optimizer)
    torch.testing.assert_close(model[0].weight.detach(), before[0] * 0.95)
    torch.testing.assert_close(model[1].weight.detach(), before[1] * 0.9)


# Kinds of parameters


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.spectrum = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x) + self.spectrum.real.sum()


@pytest.mark.parametrize("where", ["all", "spectrum", lambda *_: True])
def test_complex_parameters_are_refused_by_name(where):
    with pytest.raises(UnsupportedError, match=r"spectrum is torch.complex64.*'!spectrum'"):
        regplug.attach(Complex(), plugins=[L1(0.1, where=where)])


def test_complex_parameters_do_not_disturb_the_others():
    model = Complex()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, ["l1(0.1)", L2(0.1, where=["all", "!spectrum"])])
    assert names("weights", model) == ["linear.weight"]
    train_once(model, optimizer)
    assert torch.equal(model.spectrum, torch.ones(2, 2, dtype=torch.complex64))


@pytest.mark.parametrize("delivery", ["auto", "step", "loss"])
def test_sparse_gradients_are_refused_at_attach(delivery):
    model = nn.ModuleDict({"words": nn.Embedding(5, 3, sparse=True), "head": nn.Linear(3, 1)})
    message = r"words.weight has sparse gradients.*sparse=False.*proximal.*'!words.weight'"
    with pytest.raises(UnsupportedError, match=message):
        regplug.attach(model, plugins=[L1(0.1, delivery=delivery)])
    regplug.attach(model, plugins=[L1(0.1, delivery=delivery, where=["weights", "!words.*"])])


def test_sparse_gradients_that_only_show_in_the_step_are_named():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(5, 3))

        def forward(self, tokens):
            return nn.functional.embedding(tokens, self.table, sparse=True)

    model = Functional()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, ["l1(0.1)"])
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(RegplugError, match=r"l1.*a gradient is sparse"):
        optimizer.step()


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adagrad], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("rows", [5, 100_000])
def test_sparse_gradients_work_with_the_proximal_operator(kind, rows):
    model = nn.Embedding(rows, 3, sparse=True)
    optimizer = kind(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    regplug.attach(model, optimizer, [L1(0.5, delivery="proximal")])
    with torch.sparse.check_sparse_tensor_invariants():
        model(torch.tensor([1])).sum().backward()
        optimizer.step()
    # A gradient of 1 and an effective step of 0.1, under Adagrad as well in its first step.
    moved = before[1] - 0.1
    expected = moved.sign() * (moved.abs() - 0.05).clamp(min=0)
    torch.testing.assert_close(model.weight[1].detach(), expected)
    if kind is torch.optim.Adagrad:  # rows that never had a gradient
        assert torch.equal(model.weight[2:], before[2:])


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
        self.layers = nn.ModuleList([nn.Linear(2, 2, bias=False).to(dtype) for dtype in dtypes])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x.to(layer.weight.dtype))
        return x


@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
@pytest.mark.parametrize("name", ["l1", "l2", "elastic_net"])
def test_mixed_dtypes_in_one_model(delivery, name):
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    strengths = "0.5, 0.25" if name == "elastic_net" else "0.5"
    session = regplug.attach(model, optimizer, [f"{name}({strengths}, delivery='{delivery}')"])
    before = [layer.weight.detach().clone().double() for layer in model.layers]
    absolute = sum(w.abs().sum() for w in before).item()
    squares = sum(w.square().sum() for w in before).item()
    value = {"l1": absolute / 2, "l2": squares / 2, "elastic_net": absolute / 2 + squares / 4}[name]
    assert session.metrics()[f"{name}/value"] == pytest.approx(value, rel=1e-5)
    train_once(model, optimizer, session)
    for layer, w in zip(model.layers, before, strict=True):
        l1, l2 = {"l1": (0.5, 0), "l2": (0, 0.5), "elastic_net": (0.5, 0.25)}[name]
        if delivery == "proximal":
            expected = w.sign() * (w.abs() - 0.5 * l1).clamp(min=0) / (1 + 2 * 0.5 * l2)
        else:
            expected = w - 0.5 * (l1 * w.sign() + 2 * l2 * w)
        atol = 4 * torch.finfo(layer.weight.dtype).eps
        torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=0, atol=atol)


def test_empty_parameters_are_no_matter():
    model = nn.Linear(2, 2)
    model.empty = nn.Parameter(torch.zeros(0, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    specs = ["l1(0.1)", "l2(0.1, delivery='loss')", "elastic_net(0.1, 0.1, delivery='proximal')"]
    session = regplug.attach(model, optimizer, [*specs, "weight_decay(0.1)"])
    session.loss(model(torch.ones(1, 2)).sum() + model.empty.sum()).backward()
    optimizer.step()
    assert session.steps == 1
    assert session.metrics()["l1/zeros"] == 0


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
