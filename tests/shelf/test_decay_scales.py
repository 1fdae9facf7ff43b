"""Each convention of decoupled decay against what its own source does, written out in float64."""

import io
import math

import pytest
import torch
from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

import regplug
from regplug.errors import SpecError, StateError
from regplug_builtins import DecayToStart, WeightDecay
from tests.helpers.compare import same

F64 = torch.float64
LR, LAMBDA = 0.2, 0.3


def composer(lr, first, peak):
    """composer.optim.DecoupledSGDW: decay_factor = lr / initial_lr; p·(1 − decay_factor·wd)."""
    return lr / first


def timm(lr, first, peak):
    """timm.optim.AdamW(corrected_weight_decay=True): wd_scale = lr ** 2 / max_lr, as AdamC."""
    return lr**2 / peak


REFERENCES = {
    "lr": lambda lr, first, peak: lr,
    "schedule": composer,
    "none": lambda lr, first, peak: 1.0,
    "lr_squared": timm,
}


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3, dtype=F64), nn.Tanh(), nn.Linear(3, 2, dtype=F64))


def gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for w in model.parameters():
        w.grad = torch.randn(w.shape, generator=generator, dtype=F64)


def written(scale, rates, start=False, strength=LAMBDA):
    """Return the weights after SGD with a decay in each step: by hand, in float64."""
    model = net()
    first, peak = rates[0], max(rates)
    anchors = [w.detach().clone() for w in model.parameters()]
    for step, lr in enumerate(rates):
        gradients(model, step)
        with torch.no_grad():
            for w, anchor in zip(model.parameters(), anchors, strict=True):
                share = REFERENCES[scale](lr, first, peak) * strength
                w.sub_(share * (w - anchor if start else w)).sub_(lr * w.grad)
    return model


def trained(plugin, steps, scheduler_of=None, lr=LR, model=None):
    model = model or net()
    optimizer = optim.SGD(model.parameters(), lr=lr)
    scheduler = scheduler_of and scheduler_of(optimizer)
    session = regplug.attach(model, optimizer, [plugin])
    rates = []
    for step in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        gradients(model, step)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return model, rates, session


def falling(optimizer):
    return CosineAnnealingLR(optimizer, T_max=8)


@pytest.mark.parametrize("scale", REFERENCES)
@pytest.mark.parametrize("plugin", ["weight_decay", "decay_to_start"])
@pytest.mark.parametrize("lr", [LR, torch.tensor(LR, dtype=F64)], ids=["number", "tensor"])
def test_it_is_what_its_source_does(plugin, scale, lr):
    spec = f"{plugin}({LAMBDA}, scale='{scale}', where='all')"
    model, rates, _ = trained(spec, 6, falling, lr=lr if isinstance(lr, float) else lr.clone())
    assert rates[0] != rates[-1]
    wanted = written(scale, rates, start=plugin == "decay_to_start")
    torch.testing.assert_close(model.state_dict(), wanted.state_dict(), rtol=1e-13, atol=1e-15)
    other = next(each for each in REFERENCES if each != scale)
    assert not same(model, written(other, rates, start=plugin == "decay_to_start"))


def test_pulled_to_zero_it_is_weight_decay():
    def zeroed():
        model = net()
        for w in model.parameters():
            w.data.zero_()
        return model

    one, _, _ = trained(DecayToStart(LAMBDA), 5, falling, model=zeroed())
    other, _, _ = trained(WeightDecay(LAMBDA), 5, falling, model=zeroed())
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-12, atol=1e-15)


def test_the_initial_lr_of_a_scheduler_is_the_one_that_counts():
    """In the warm-up the lr is not the one that λ is meant for."""

    def warming(optimizer):
        return LambdaLR(optimizer, lambda step: min((step + 1) / 4, 1.0))

    for scale in ("schedule", "lr_squared"):
        model, rates, _ = trained(WeightDecay(LAMBDA, scale=scale, where="all"), 6, warming)
        assert rates == pytest.approx([LR / 4, LR / 2, LR * 3 / 4, LR, LR, LR])
        wanted = written(scale, [*rates], strength=LAMBDA * (0.25 if scale == "schedule" else 1))
        torch.testing.assert_close(model.state_dict(), wanted.state_dict(), rtol=1e-12, atol=1e-15)


def test_the_peak_of_one_cycle_is_lr_max():
    def cycle(optimizer):
        return OneCycleLR(optimizer, max_lr=0.5, total_steps=9, cycle_momentum=False)

    plugin = WeightDecay(LAMBDA, scale="lr_squared", where="all")
    model, rates, _ = trained(plugin, 6, cycle, lr=0.5)
    assert max(rates) == pytest.approx(0.5, rel=0.3)
    share = [LAMBDA * lr**2 / 0.5 for lr in rates]
    by_hand = net()
    for step, lr in enumerate(rates):
        gradients(by_hand, step)
        with torch.no_grad():
            for w in by_hand.parameters():
                w.mul_(1 - share[step]).sub_(lr * w.grad)
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict(), rtol=1e-12, atol=1e-15)


def test_a_reference_that_is_said_is_taken():
    model, _, _ = trained(WeightDecay(0.3, scale="schedule", reference_lr=2 * LR), 4)
    other, _, _ = trained(WeightDecay(0.15, scale="schedule"), 4)
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=1e-13, atol=0)


def test_an_lr_above_its_reference_is_told_once():
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    regplug.attach(model, optimizer, [WeightDecay(0.1, scale="lr_squared")])
    gradients(model, 0)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.warns(UserWarning, match=r"above the lr_max = 0.01 .* say reference_lr="):
        optimizer.step()
    optimizer.step()


def test_each_group_has_its_own_reference():
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
    optimizer = optim.SGD(groups, lr=0.4)
    session = regplug.attach(model, optimizer, [WeightDecay(0.5, scale="schedule", where="all")])
    for group in optimizer.param_groups:
        group["lr"] /= 2
    before = [w.detach().clone() for w in model.parameters()]
    for w in model.parameters():
        w.grad = torch.zeros_like(w)
    optimizer.step()
    for w, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(w.detach(), old * 0.75)
    assert session.state_dict()["plugins"]["weight_decay"] == {"reference_lr": {0: 0.1, 1: 0.4}}


@pytest.mark.parametrize("plugin", ["weight_decay", "decay_to_start"])
@pytest.mark.parametrize("scale", REFERENCES)
def test_a_resumed_run_keeps_its_reference(plugin, scale):
    """The lr that it begins with is another by then."""
    spec = f"{plugin}({LAMBDA}, scale='{scale}', where='all')"
    whole, rates, _ = trained(spec, 6, lambda o: None)
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, [spec])
    halves = [LR, LR / 2, LR / 4, LR / 8]

    def go_on(model, optimizer, steps):
        for step in steps:
            optimizer.param_groups[0]["lr"] = halves[step]
            gradients(model, step)
            optimizer.step()

    go_on(model, optimizer, range(2))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), session.state_dict()], file)
    go_on(model, optimizer, range(2, 4))
    file.seek(0)
    weights, state, own = torch.load(file, weights_only=True)
    again = net()
    again.load_state_dict(weights)
    stepping = optim.SGD(again.parameters(), lr=halves[2])
    stepping.load_state_dict(state)
    resumed = regplug.attach(again, stepping, [spec])
    resumed.load_state_dict(own)
    go_on(again, stepping, range(2, 4))
    assert same(model, again)
    assert len(rates) == 6
    assert not same(whole, again)


def test_a_state_that_is_none_changes_nothing():
    _, _, session = trained(WeightDecay(0.1, scale="schedule"), 2)
    state = session.state_dict()
    broken = {**state, "plugins": {"weight_decay": {"reference_lr": {0: "much"}}}}
    with pytest.raises(StateError, match="reference_lr"):
        session.load_state_dict(broken)
    assert session.state_dict() == state


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scale": "lr²"}, "scale must be one of lr, schedule, none, lr_squared"),
        ({"reference_lr": 0.1}, "leave it out"),
        ({"scale": "schedule", "reference_lr": 0}, "above 0"),
        ({"scale": "schedule", "reference_lr": True}, "above 0"),
    ],
)
@pytest.mark.parametrize("plugin", [WeightDecay, DecayToStart])
def test_what_is_no_convention_is_refused(plugin, arguments, says):
    with pytest.raises(SpecError, match=says):
        plugin(0.1, **arguments)


def test_an_lr_of_zero_is_no_reference():
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(SpecError, match="say reference_lr="):
        regplug.attach(model, optimizer, [WeightDecay(0.1, scale="schedule")])


def test_a_loop_by_hand_needs_no_lr_for_what_is_not_scaled():
    model = net()
    before = model[0].weight.detach().clone()
    with regplug.attach(model, plugins=[WeightDecay(0.1, scale="none")]) as session:
        for w in model.parameters():
            w.grad = torch.zeros_like(w)
        with session.step():
            pass
    torch.testing.assert_close(model[0].weight.detach(), before * 0.9)


def test_it_tells_what_the_strength_comes_to_in_the_other_conventions():
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.2)
    session = regplug.attach(model, optimizer, [WeightDecay(0.1)])
    said = session.describe()
    assert "0.02 by 'schedule', 0.02 by 'none', 0.1 by 'lr_squared'" in said
    session.detach()
    scheduled = [("schedule", 0.02), ("none", 0.02), ("lr_squared", 0.1)]
    for scale, strength in scheduled:
        there, here = net(), net()
        for each, plugin in ((here, WeightDecay(0.1)), (there, WeightDecay(strength, scale=scale))):
            stepping = optim.SGD(each.parameters(), lr=0.2)
            regplug.attach(each, stepping, [plugin])
            gradients(each, 0)
            stepping.step()
        torch.testing.assert_close(here.state_dict(), there.state_dict(), rtol=1e-13, atol=0)


def test_dino_s_schedule_is_one_line():
    """From 0.04 to 0.4 by a cosine over the whole run, as its cosine_scheduler makes it."""
    steps = 10
    model = net()
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    plugin = f"weight_decay(cosine(0.04, 0.4, steps={steps}), existing='replace')"
    session = regplug.attach(model, optimizer, [plugin])
    theirs = [0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
    written_out = net()
    decayed = [p for n, p in written_out.named_parameters() if "weight" in n]
    groups = [{"params": decayed}, {"params": [written_out[0].bias, written_out[2].bias]}]
    their_optimizer = optim.AdamW(groups, lr=0.1, weight_decay=0.0)
    for step, weight_decay in enumerate(theirs):
        assert session.metrics()["weight_decay/strength"] == pytest.approx(weight_decay)
        their_optimizer.param_groups[0]["weight_decay"] = weight_decay
        for each, stepping in ((model, optimizer), (written_out, their_optimizer)):
            gradients(each, step)
            stepping.step()
    torch.testing.assert_close(model.state_dict(), written_out.state_dict(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("plugin", ["weight_decay", "decay_to_start"])
def test_each_pattern_says_what_it_comes_to_in_its_own_groups(plugin):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.01}]
    optimizer = optim.SGD(groups, lr=0.1)
    spec = f"{plugin}({{'0.*': 0.1, '*': 0.4}})"
    with regplug.attach(model, optimizer, [spec]) as session:
        said = [line for line in session.describe().splitlines() if "λ =" in line]
    assert [line.partition(", 0.")[0].partition(": ")[2] for line in said] == [
        "λ = 0.1 by scale='lr' is now what would be 0.01 by 'schedule'",
        "λ = 0.4 by scale='lr' is now what would be 0.004 by 'schedule'",
    ]


@pytest.mark.parametrize("scale", ["none", "schedule"])
def test_a_share_above_one_is_told_once(scale):
    model = nn.Linear(3, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [f"weight_decay(1.5, scale='{scale}')"]):
        model(torch.ones(1, 3)).sum().backward()
        with pytest.warns(UserWarning, match=r"takes 1\.5 times each weight .* turns its sign"):
            optimizer.step()
        optimizer.step()
