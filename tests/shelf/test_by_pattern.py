"""Strengths by pattern: one plugin does what a plugin for each pattern does, to the bit."""

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn, optim

import regplug
from regplug.errors import SelectionError, SpecError
from regplug.strengths import per_layer
from regplug_builtins import L1
from tests.helpers.compare import same

F64 = torch.float64


class Net(nn.Module):
    """A body of two blocks and a head; the head shares its weight with nothing."""

    def __init__(self, width=6, dtype=F64):
        super().__init__()
        torch.manual_seed(4)
        self.encoder = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width))
        self.head = nn.Linear(width, 3)
        self.to(dtype)

    def forward(self, x):
        return self.head(self.encoder(x))


OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.5),
    "Adam": lambda p: optim.Adam(p, lr=0.05),
}


def train(plugins, optimizer="SGD", *, loss=False, steps=4, width=6, dtype=F64, **options):
    model = Net(width, dtype)
    stepping = OPTIMIZERS[optimizer](model.parameters())
    session = regplug.attach(model, stepping, plugins, **options)
    go_on(model, stepping, session, range(steps), loss)
    return model, session


def go_on(model, stepping, session, steps, loss=False):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(7, 5, generator=generator, dtype=F64).to(model.head.weight.dtype)
        stepping.zero_grad()
        found = model(x).square().mean()
        (session.loss(found) if loss else found).backward()
        stepping.step()


RAMP = "linear(0.01, 0.09, steps=3)"

# Each plugin that takes strengths, with a placeholder for them.
SPECS = [
    *(f"l1(_, delivery='{how}')" for how in ("step", "loss", "proximal")),
    *(f"l2(_, delivery='{how}')" for how in ("step", "loss", "proximal")),
    *(f"l2_sp(_, delivery='{how}')" for how in ("step", "loss", "proximal")),
    *(f"group_lasso(_, delivery='{how}')" for how in ("step", "loss", "proximal")),
    *(f"elastic_net(_, 0.03, delivery='{how}')" for how in ("step", "loss", "proximal")),
    "orthogonal(_, delivery='step')",
    "spectral_norm(_, delivery='step')",
    "weight_decay(_)",
    "weight_decay(_, scale='schedule')",
    "weight_decay(_, cautious=True)",
    "decay_to_start(_)",
    "max_norm(_)",
    "l1_ball(_)",
    "hard_threshold(_)",
    "gradient_noise(_)",
]


def apart(spec, encoder, head):
    """Return two plugins, each of one pattern's weights."""
    name = spec.partition("(")[0]
    where = "all" if name == "gradient_noise" else "weights"
    return [
        spec.replace("_,", f"{strength},").replace("(_)", f"({strength})")[:-1]
        + f", where='{where} & {pattern}', name='{pattern[0]}')"
        for strength, pattern in ((encoder, "encoder.*"), (head, "head.*"))
    ]


def together(spec, encoder, head):
    """Return the plugin of both; what comes first counts."""
    mapping = f"{{'encoder.*': {encoder}, '*': {head}}}"
    return spec.replace("_,", f"{mapping},").replace("(_)", f"({mapping})")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("spec", SPECS)
def test_it_is_a_plugin_for_each_pattern(spec, optimizer):
    loss = "'loss'" in spec
    model, session = train([together(spec, 0.2, RAMP)], optimizer, loss=loss)
    written, sessions = train(apart(spec, 0.2, RAMP), optimizer, loss=loss)
    assert same(model, written)
    without, _ = train([], optimizer)
    assert not same(model.encoder, without.encoder)
    assert not same(model.head, without.head)
    found, wanted = session.metrics(), sessions.metrics()
    name = session.plugins[0].name
    if f"{name}/value" in found:
        assert found[f"{name}/value"] == pytest.approx(wanted["e/value"] + wanted["h/value"])
    attribute = next(iter(session.plugins[0].mappings))
    assert found[f"{name}/{attribute}"] == pytest.approx(0.2)  # the largest of them
    assert found[f"{name}/{attribute}/encoder.*"] == pytest.approx(wanted[f"e/{attribute}"])
    assert found[f"{name}/{attribute}/*"] == pytest.approx(wanted[f"h/{attribute}"])
    said = session.describe()
    assert f"{attribute}/encoder.* 0.2" in said
    assert f"{attribute}/* {wanted[f'h/{attribute}']:g}" in said


def test_two_mappings_of_one_plugin_meet():
    spec = "elastic_net({'encoder.0.*': 0.1, 'head.*': 0.2}, {'encoder.*': 0.3})"
    model, session = train([spec])
    written, _ = train(
        [
            "elastic_net(0.1, 0.3, where='encoder.0.weight', name='a')",
            "elastic_net(0.0, 0.3, where='encoder.2.weight', name='b')",
            "elastic_net(0.2, 0.0, where='head.weight', name='c')",
        ]
    )
    assert same(model, written)
    assert session.plugins[0].covers(session) == (3, 5 * 6 + 36 + 18)


def test_what_no_pattern_matches_is_not_covered():
    model, session = train(["l1({'encoder.*': 0.1})"])
    without, _ = train([])
    assert session.plugins[0].covers(session) == (2, 5 * 6 + 36)
    written, _ = train(["l1(0.1, where='weights & encoder.*')"])
    assert same(model, written)
    assert not same(model, without)


def test_a_strength_of_zero_leaves_its_weights_as_they_are():
    model, _ = train(["l1({'head.*': 0.0, '*': 0.1}, delivery='proximal')"], "Adam")
    written, _ = train(["l1(0.1, where='weights & encoder.*', delivery='proximal')"], "Adam")
    assert same(model, written)


def test_a_formula_of_anybody_has_its_strengths_by_pattern():
    class Cosh(regplug.Penalty):
        separable = True

        def value(self, w):
            return w.cosh().log().sum()

    model, _ = train([Cosh({"head.*": 0.1, "*": 0.3})])
    first, second = (
        Cosh(0.1, where="weights & head.*", name="a"),
        Cosh(0.3, where="encoder.*.weight"),
    )
    written, _ = train([first, second])
    assert same(model, written)


def test_tied_weights_match_by_any_name_and_once():
    class Tied(Net):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.decoder = nn.Linear(6, 6, bias=False, dtype=F64)
            self.decoder.weight = self.encoder[2].weight

    model = Tied()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["l1({'decoder.*': 0.5, '*': 0.1})"]) as session:
        value = session.metrics()["l1/value"]
    by_hand = 0.5 * model.encoder[2].weight.abs().sum()
    by_hand += 0.1 * (model.encoder[0].weight.abs().sum() + model.head.weight.abs().sum())
    assert value == pytest.approx(by_hand.item())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("l1({'encodr.*': 0.1, '*': 0.2})", "'encodr.*' matches no parameter; the nearest"),
        ("l1({'*': 0.1, 'head.*': 0.2})", "'head.*' is never reached"),
        ("l1({'*.bias': 0.1, '*': 0.2})", "where='weights' leaves out"),
        ("max_norm({'hed.*': 1.0})", "'hed.*' matches no parameter"),
        ("dropout({'hed.*': 0.5})", "the model has"),
    ],
)
def test_a_pattern_that_counts_for_nothing_is_refused(spec, says):
    model = nn.ModuleDict({"encoder": nn.Linear(3, 3), "head": nn.Linear(3, 2)})
    model["drop"] = nn.Dropout(0.1)
    with pytest.raises(SelectionError, match=re.escape(says)):
        regplug.attach(model, optim.SGD(model.parameters(), lr=0.1), [spec])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "must name a pattern"),
        ({3: 0.1}, "must be a string"),
        ({"*": {"a": 1.0}}, "got a mapping"),
        ({"*": -0.1}, r"strength\['\*'\] must be finite and not negative"),
        ({"*": float("nan")}, "must be finite"),
        ({"[": 0.1, "*": "much"}, "must be a number"),
    ],
)
def test_a_wrong_mapping_is_refused_when_it_is_made(given, says):
    with pytest.raises(SpecError, match=says):
        L1(given)


def test_what_takes_one_strength_says_what_to_do():
    with pytest.raises(SpecError, match=r"one for all.*where= and a name="):
        regplug.attach(Net(), plugins=["activity({'*': 0.1}, 0)"])


def test_a_run_goes_on_to_the_bit():
    spec = f"elastic_net({{'encoder.*': {RAMP}, '*': per_layer(0.1, decay=0.5)}}, 0.01)"
    whole, _ = train([spec], "Adam", steps=6)
    model, session = train([spec], "Adam", steps=3)
    optimizer = session.optimizer
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), session.state_dict()], buffer)
    buffer.seek(0)
    weights, state, own = torch.load(buffer, weights_only=True)
    again = Net()
    again.load_state_dict(weights)
    stepping = OPTIMIZERS["Adam"](again.parameters())
    stepping.load_state_dict(state)
    resumed = regplug.attach(again, stepping, [spec])
    resumed.load_state_dict(own)
    go_on(again, stepping, resumed, range(3, 6))
    assert same(whole, again)


def test_copies_and_pickles_of_an_attached_plugin_are_free():
    _, session = train(["l1({'encoder.*': 0.1, '*': 0.2})"])
    session.metrics()
    plugin = session.plugins[0]
    for twin in (copy.deepcopy(plugin), pickle.loads(pickle.dumps(plugin))):
        assert twin.strength == 0.2
        assert repr(twin.mappings["strength"]) == "{'encoder.*': 0.1, '*': 0.2}"
    session.detach()
    assert session.metrics()["l1/strength/encoder.*"] == 0.1


def test_ranks_compare_each_pattern():
    _, session = train(["l1({'encoder.*': 0.1, '*': 0.2})"])
    assert session.plugins[0].agreement(session)["strength"] == "{'encoder.*': 0.1, '*': 0.2}"
    _, another = train(["l1({'*': 0.2})"])
    assert another.plugins[0].agreement(another)["strength"] == "{'*': 0.2}"


def test_strengths_are_set_anew_while_attached():
    _, session = train(["l1(0.1)"], steps=2)
    session.plugins[0].strength = {"encoder.*": 0.4}
    assert session.plugins[0].covers(session) == (2, 66)
    assert session.metrics()["l1/strength/encoder.*"] == 0.4
    session.plugins[0].strength = 0.3
    assert session.plugins[0].covers(session) == (3, 84)
    assert "l1/strength/encoder.*" not in session.metrics()


def test_l2_leaves_groups_of_one_strength_to_the_optimizer():
    def trained(handover, groups):
        model = Net()
        parts = [list(model.encoder.parameters()), list(model.head.parameters())]
        optimizer = optim.SGD([{"params": p} for p in parts] if groups else model.parameters(), 0.1)
        spec = "l2({'encoder.*': 0.1, '*': 0.2}, where='all', delivery='step')"
        session = regplug.attach(model, optimizer, [spec], handover=handover)
        go_on(model, optimizer, session, range(3))
        return model, session.describe()

    handed, said = trained(True, True)
    added, _ = trained(False, True)
    assert "the update of SGD itself" in said
    torch.testing.assert_close(handed.state_dict(), added.state_dict(), rtol=1e-12, atol=0)
    mixed, said = trained(True, False)
    assert "the update of SGD itself" not in said
    torch.testing.assert_close(mixed.state_dict(), added.state_dict(), rtol=1e-12, atol=0)


def test_adamw_decays_groups_of_one_strength_itself():
    def trained(optimizer_of, existing="error"):
        model = Net()
        groups = [
            {"params": [p for n, p in model.encoder.named_parameters() if "weight" in n]},
            {"params": [model.head.weight]},
            {"params": [p for n, p in model.named_parameters() if "bias" in n], "weight_decay": 0},
        ]
        optimizer = optimizer_of(groups)
        spec = f"weight_decay({{'encoder.*': 0.1, '*': 0.4}}, existing='{existing}')"
        session = regplug.attach(model, optimizer, [spec])
        go_on(model, optimizer, session, range(3))
        return model, session.describe()

    by_adamw, said = trained(lambda g: optim.AdamW(g, lr=0.1), "replace")
    by_hand, _ = trained(lambda g: optim.Adam(g, lr=0.1))
    assert "the update of AdamW itself" in said
    assert same(by_adamw, by_hand)


def test_layers_have_strengths_of_their_own():
    spec = "l1(per_layer(0.4, decay=0.5))"
    model, session = train([spec])
    written, _ = train(
        [
            "l1(0.1, where='encoder.0.weight', name='a')",
            "l1(0.2, where='encoder.2.weight', name='b')",
            "l1(0.4, where='head.weight', name='c')",
        ]
    )
    assert same(model, written)
    figures = session.metrics()
    assert figures["l1/strength/encoder.0"] == 0.1
    assert figures["l1/strength/above"] == 0.4
    assert figures["l1/strength"] == 0.4
    both, _ = train([L1({"encoder.*": per_layer(0.4, decay=0.5), "*": 0.4})])
    assert same(both, model)


def test_a_strength_that_grows_downwards_stays_in_its_range():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [L1(per_layer(0.1, decay=2))]) as session:
        assert session.metrics()["l1/strength"] == pytest.approx(0.4)
    with pytest.raises(SpecError, match="within"):
        regplug.attach(model, optimizer, ["hard_threshold(per_layer(0.5, decay=2))"])
