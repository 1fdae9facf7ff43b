"""λ as it acts: what loss scales, accumulation, clipping and steps in between make of it."""

import pytest
import torch

from regplug import doctor
from tests.doctor.diagnosing import diagnosed

L1 = "sum(p.abs().sum() for p in weights(model))"

REGIMES = {
    "plain": ("loss.backward()", 1, ""),
    "a loss scale": (
        """scaler.scale(loss).backward()
            scaler.step(optimizer); scaler.update()""",
        1,
        "scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)",
    ),
    "a loss scale, unscaled and clipped to a half": (
        """scaler.scale(loss).backward(); scaler.unscale_(optimizer); halve(model)
            scaler.step(optimizer); scaler.update()""",
        0.5,
        "scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)",
    ),
    "clipped to a half": ("loss.backward(); halve(model)", 0.5, ""),
    "accumulated": ("(loss / 2).backward(retain_graph=True); (loss / 2).backward()", 1, ""),
    "accumulated in full": ("loss.backward(retain_graph=True); loss.backward()", 2, ""),
    "by grad": (
        """for p, g in zip(model.parameters(), torch.autograd.grad(loss, model.parameters())):
                p.grad = g""",
        1,
        "",
    ),
    "a vector of losses": ("torch.stack([loss, loss]).backward(torch.tensor([1.0, 2.0]))", 3, ""),
    "zeroed in place": ("optimizer.zero_grad(set_to_none=False); loss.backward()", 1, ""),
}


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "SGD, fused"])
@pytest.mark.parametrize("regime", REGIMES)
def test_strength_as_it_acts(regime, optimizer):
    body, times, before = REGIMES[regime]
    kind, _, fused = optimizer.partition(", ")
    step = "" if "scaler.step" in body else "optimizer.step()"
    (report,) = diagnosed(f"""
        def halve(model):
            for p in model.parameters():
                p.grad.mul_(0.5)
        model = Net()
        optimizer = torch.optim.{kind}(model.parameters(), lr=1e-3, fused={bool(fused)})
        {before}
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) + 0.01 * {L1}
            {body}
            {step}
    """)
    if "clipped" in regime and "scale" in regime and fused:
        pass  # the same: gradients are unscaled before the step
    found = {name: g.penalties for g in report.groups for name in g.parameters}
    for name in ("inner.weight", "outer.weight"):
        (penalty,) = found[name]
        assert penalty.kind == "l1"
        assert penalty.strength == pytest.approx(0.01 * times, rel=1e-5)
    assert found["inner.bias"] == found["norm.weight"] == ()


@pytest.mark.parametrize(("reduced", "times"), [("mean", 1), ("sum", 64)])
def test_a_penalty_in_the_loss_of_each_sample(reduced, times):
    (report,) = diagnosed(f"""
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y, reduction="none") + 0.01 * {L1}
            loss.{reduced}().backward()
            optimizer.step()
    """)
    found = {name: g.penalties for g in report.groups for name in g.parameters}
    assert found["inner.weight"][0].strength == pytest.approx(0.01 * times, rel=1e-5)


def test_distances_to_weights_are_no_penalty():
    (report,) = diagnosed("""
        class Distances(nn.Module):
            def __init__(self):
                super().__init__()
                self.centres = nn.Parameter(torch.randn(3, 6))
            def forward(self, x):
                w = self.centres
                return -((x**2).sum(1, keepdim=True) - 2 * x @ w.T + (w**2).sum(1))
        model = Distances()
        train(model, torch.optim.SGD(model.parameters(), lr=0.01))
    """)
    assert [group.penalties for group in report.groups] == [()]


def test_where_the_objective_is_maximized_what_is_subtracted_penalizes():
    (report,) = diagnosed(f"""
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
        for _ in range(4):
            optimizer.zero_grad()
            (-F.cross_entropy(model(x), y) - 0.01 * {L1}).backward()
            optimizer.step()
    """)
    found = {name: g.penalties for g in report.groups for name in g.parameters}
    assert found["inner.weight"][0].strength == pytest.approx(0.01, rel=1e-5)


def test_hooks_of_parameters_are_said():
    model = torch.nn.Linear(4, 2)
    model.weight.register_hook(lambda g: 0.1 * g)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with doctor.examine(model, optimizer) as report:
        for _ in range(3):
            optimizer.zero_grad()
            (model(torch.ones(3, 4)).sum() + 0.01 * model.weight.abs().sum()).backward()
            optimizer.step()
    (said,) = report.report.unseen
    assert "register_hook" in said


def test_a_penalty_with_a_backward_of_its_own():
    (report,) = diagnosed(f"""
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            (0.01 * {L1}).backward()
            optimizer.step()
    """)
    found = {name: g.penalties for g in report.groups for name in g.parameters}
    assert found["inner.weight"][0].strength == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_penalty_under_autocast(precision):
    (report,) = diagnosed(f"""
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.{precision}):
                loss = F.cross_entropy(model(x).float(), y)
                loss = loss + 0.01 * sum((p**2).sum() for p in weights(model))
            loss.backward()
            optimizer.step()
    """)
    found = {name: g.penalties for g in report.groups for name in g.parameters}
    assert found["inner.weight"][0].kind == "l2"
    assert found["inner.weight"][0].strength == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_computed_anew_once(reentrant):
    (report,) = diagnosed(f"""
        from torch.utils.checkpoint import checkpoint
        calls = []
        class Counted(nn.Linear):
            def forward(self, x):
                calls.append(1)
                return super().forward(x)
        model = nn.Sequential(nn.Linear(6, 8), Counted(8, 8), nn.Linear(8, 3))
        def forward(x):
            return model[2](checkpoint(model[1], model[0](x), use_reentrant={reentrant}))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            (F.cross_entropy(forward(x), y) + 0.01 * {L1}).backward()
            optimizer.step()
        assert len(calls) == 8
    """)
    found = {name: g.penalties for g in report.groups for name in g.parameters}
    for name in ("0.weight", "1.weight", "2.weight"):
        assert found[name][0].strength == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("detached", [False, True])
def test_plugins_that_are_attached_are_told_and_count_as_decay(detached):
    (report,) = diagnosed(f"""
        import regplug
        model = Net()
        optimizer = torch.optim.SGD(split(model, 1e-2), lr=0.1)
        session = regplug.attach(
            model, optimizer, ["l1(1e-4)", "weight_decay(0.1, existing='add')"])
        train(model, optimizer)
        if {detached}:
            session.detach()
    """)
    found = {name: g.plugins for g in report.groups for name in g.parameters}
    assert found["inner.weight"] == ("l1(strength 0.0001)", "weight_decay(strength 0.1)")
    assert found["inner.bias"] == ()
    assert [finding.code for finding in report.findings] == ["decayed-twice"]


def test_a_plugin_in_the_place_of_the_optimizers_decay_is_sound():
    (report,) = diagnosed("""
        import regplug
        model = Net()
        optimizer = torch.optim.AdamW(split(model, 1e-2))
        regplug.attach(model, optimizer, ["weight_decay(0.1, existing='replace')"])
        train(model, optimizer)
    """)
    assert report.findings == []
