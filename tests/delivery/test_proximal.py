"""Proximal delivery rests where the objective does: scikit-learn's coefficients, zeros included."""

import pytest
import torch
from sklearn.linear_model import ElasticNet as ReferenceElasticNet
from sklearn.linear_model import Lasso
from torch import nn, optim

import regplug
from regplug.backend.update_rules import update_rule
from regplug.errors import UnsupportedError
from regplug_builtins import L1, ElasticNet

# Learning rates at which each converges within a few hundred steps. Centered RMSprop divides by a
# variance that vanishes at rest, which its eps must make up for.
KNOWN = {
    "sgd": (optim.SGD, {"lr": 0.5}),
    "sgd, momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "sgd, dampening": (optim.SGD, {"lr": 0.2, "momentum": 0.8, "dampening": 0.5}),
    "sgd, nesterov": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "sgd, maximize": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "maximize": True}),
    "adam": (optim.Adam, {"lr": 0.02, "betas": (0.9, 0.99)}),
    "adam, amsgrad": (optim.Adam, {"lr": 0.04, "amsgrad": True}),
    "adam, maximize": (optim.Adam, {"lr": 0.02, "betas": (0.9, 0.99), "maximize": True}),
    "adam, tensor lr": (optim.Adam, {"lr": torch.tensor(0.02), "betas": (0.9, 0.99)}),
    "adam, foreach": (optim.Adam, {"lr": 0.02, "betas": (0.9, 0.99), "foreach": True}),
    "adam, fused": (optim.Adam, {"lr": 0.02, "betas": (0.9, 0.99), "fused": True}),
    "adamw": (optim.AdamW, {"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": 0}),
    "adamw, amsgrad": (optim.AdamW, {"lr": 0.04, "weight_decay": 0, "amsgrad": True}),
    "rmsprop": (optim.RMSprop, {"lr": 0.02, "alpha": 0.9}),
    "rmsprop, momentum": (optim.RMSprop, {"lr": 0.01, "alpha": 0.9, "momentum": 0.5}),
    "rmsprop, centered": (optim.RMSprop, {"lr": 0.02, "eps": 0.1, "centered": True}),
    "rmsprop, centered, momentum": (
        optim.RMSprop,
        {"lr": 0.02, "eps": 0.1, "centered": True, "momentum": 0.5},
    ),
    "adagrad": (optim.Adagrad, {"lr": 0.5}),
    "adagrad, decay": (optim.Adagrad, {"lr": 0.5, "lr_decay": 1e-3}),
    "adagrad, start": (optim.Adagrad, {"lr": 0.5, "initial_accumulator_value": 0.1}),
    "nadam": (optim.NAdam, {"lr": 0.02, "betas": (0.9, 0.99)}),
    "radam": (optim.RAdam, {"lr": 0.02, "betas": (0.9, 0.99)}),
    "adadelta": (optim.Adadelta, {"lr": 1.0, "eps": 1e-4}),
}
ALPHA = 0.1


def problem():
    """Return samples, targets that depend on some features alone."""
    generator = torch.Generator().manual_seed(0)
    shape = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(60, 12, **shape)
    truth = torch.tensor([2, -1.5, 0, 0, 0.7, 0, 0, 0, 1, 0, 0, -0.3], dtype=torch.float64)
    return x, x @ truth + 0.3 * torch.randn(60, **shape)


def solve(kind, settings, penalty, most=3000):
    """Run full-batch steps on ½·MSE until they move nothing, and return the coefficients."""
    x, y = problem()
    model = nn.Linear(12, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.1)
    optimizer = kind(model.parameters(), **settings)
    session = regplug.attach(model, optimizer, [penalty])
    sign = -1 if settings.get("maximize") else 1
    before = torch.zeros_like(model.weight)
    for _ in range(most):
        optimizer.zero_grad()
        (sign * 0.5 * (model(x)[:, 0] - y).square().mean()).backward()
        optimizer.step()
        after = model.weight.detach()
        if (after - before).abs().max() < 2e-10:
            assert session.metrics()[f"{penalty.name}/zeros"] == (after == 0).double().mean().item()
            return after[0]
        before.copy_(after)
    raise AssertionError(f"not at rest after {most} steps")


def agrees(found, reference):
    expected = torch.from_numpy(reference.fit(*problem()).coef_)
    assert 0 < (expected == 0).sum() < 12, "the problem is too easy or too hard to show anything"
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


precise = {"fit_intercept": False, "tol": 1e-14, "max_iter": 100_000}


@pytest.mark.parametrize("name", KNOWN)
def test_l1_is_scikit_learns_lasso(name):
    """A threshold of lr·λ is wrong under momentum and under element-wise steps.

    SGD with momentum 0.9 would solve Lasso(λ/10), and after Adam not one weight would be zero.
    """
    found = solve(*KNOWN[name], L1(ALPHA, delivery="proximal"))
    agrees(found, Lasso(alpha=ALPHA, **precise))


@pytest.mark.parametrize("name", KNOWN)
def test_elastic_net_is_scikit_learns(name):
    """With ½·MSE, scikit-learn's λ₁ is alpha·l1_ratio and λ₂ is ½·alpha·(1 − l1_ratio)."""
    found = solve(*KNOWN[name], ElasticNet(ALPHA, 0.05, delivery="proximal"))
    total = ALPHA + 2 * 0.05
    agrees(found, ReferenceElasticNet(alpha=total, l1_ratio=ALPHA / total, **precise))


def test_strength_with_mse_is_twice_scikit_learns_alpha():
    """nn.MSELoss has no ½, so its λ is twice alpha."""
    x, y = problem()
    model = nn.Linear(12, 1, bias=False).double()
    optimizer = optim.SGD(model.parameters(), lr=0.2)
    regplug.attach(model, optimizer, [L1(2 * ALPHA, delivery="proximal")])
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x)[:, 0], y).backward()
        optimizer.step()
    agrees(model.weight.detach()[0], Lasso(alpha=ALPHA, **precise))


@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_gradient_deliveries_give_no_zeros(delivery):
    """L1 by its gradient comes near zero and never rests there."""
    x, y = problem()
    model = nn.Linear(12, 1, bias=False).double()
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    session = regplug.attach(model, optimizer, [L1(ALPHA, delivery=delivery)])
    for _ in range(300):
        optimizer.zero_grad()
        session.loss(0.5 * (model(x)[:, 0] - y).square().mean()).backward()
        optimizer.step()
    assert session.metrics()["l1/zeros"] == 0


# Elements that never had a gradient


ELEMENTWISE = [name for name, (kind, _) in KNOWN.items() if kind is not optim.SGD]
ELEMENTWISE.remove("adagrad, start")  # whose sums begin above 0


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("seen_later", [False, True])
def test_embedding_rows_that_were_never_seen_are_left_alone(name, seen_later):
    """With v̂ = 0 the threshold would be lr·λ/ε: every unseen row zero after one step."""
    kind, settings = KNOWN[name]
    model = nn.Embedding(6, 3).double()
    before = model.weight.detach().clone()
    optimizer = kind(model.parameters(), **settings)
    regplug.attach(model, optimizer, [L1(0.5, delivery="proximal")])
    for step in range(4):
        optimizer.zero_grad()
        tokens = [1, 4] if not seen_later or step < 2 else [2]
        model(torch.tensor(tokens)).sum().backward()
        optimizer.step()
    moved = (model.weight != before).any(dim=1).tolist()
    assert moved == [False, True, seen_later, False, True, False]


# The effective step itself


def test_effective_step_follows_the_learning_rate_of_the_moment():
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    regplug.attach(model, optimizer, [L1(1.0, delivery="proximal")])
    for expected in (0.9, 0.85, 0.825):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        scheduler.step()
        torch.testing.assert_close(
            model.weight.detach(), torch.full((1, 3), expected, dtype=torch.float64)
        )


def test_weights_without_a_gradient_have_no_step():
    model = nn.ModuleList([nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)])
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, [L1(1.0, delivery="proximal")])
    before = model[1].weight.detach().clone()
    model[0](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(model[1].weight, before)


def varied(kind, settings):
    """Return parameters of several layouts, sizes and dtypes, and gradients, some left out."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 3), (5, 2), (2, 3, 4, 4), (200, 200), (3, 3), (6, 1)]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    weights[2] = weights[2].to(memory_format=torch.channels_last)
    weights[1] = weights[1].double()
    weights[4] = torch.randn(3, 3, generator=generator).t()
    parameters = nn.ParameterList(weights)
    gradients = [
        [
            None if (step + index) % 3 == 0 else torch.randn(p.shape, generator=generator).to(p)
            for index, p in enumerate(parameters)
        ]
        for step in range(6)
    ]
    return parameters, gradients


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("penalty", [L1, lambda s, **k: ElasticNet(s, s, **k)], ids=["l1", "en"])
def test_parameters_of_one_optimizer_do_not_disturb_each_other(name, penalty):
    """Small ones are worked on together, if their states are alike in all but their tensors."""
    kind, settings = KNOWN[name]
    together, gradients = varied(kind, settings)
    alone, _ = varied(kind, settings)
    for batch in ([together], [nn.ParameterList([w]) for w in alone]):
        models = [nn.ModuleList([part]) for part in batch]
        optimizers = [kind(model.parameters(), **settings) for model in models]
        for model, optimizer in zip(models, optimizers, strict=True):
            regplug.attach(model, optimizer, [penalty(0.5, delivery="proximal")], kernels="foreach")
        owned = [w for model in models for w in model.parameters()]
        for step in gradients:
            for w, g in zip(owned, step, strict=True):
                w.grad = None if g is None else g.clone()
            for optimizer in optimizers:
                optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert 0 < sum(int((w == 0).sum()) for w in alone) < sum(w.numel() for w in alone)


# Optimizers that are known, and not


class Renamed(optim.Adam):
    """Inherits its step, so that its steps are known."""


class Altered(optim.Adam):
    """Has a step of its own."""

    def step(self, closure=None):
        return super().step(closure)


def test_subclass_that_inherits_its_step_is_known():
    found = solve(Renamed, KNOWN["adam"][1], L1(ALPHA, delivery="proximal"))
    agrees(found, Lasso(alpha=ALPHA, **precise))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Altered, {}),
        (optim.Adamax, {}),
        (optim.ASGD, {}),
        (optim.Rprop, {}),
        (optim.Adafactor, {}),
        (optim.SparseAdam, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_optimizer_that_is_not_known_is_refused_by_name(kind, settings):
    model = nn.Linear(3, 1)
    optimizer = kind(model.parameters(), **settings)
    message = f"{kind.__name__} multiplies .*it knows Adadelta, Adagrad, Adam, .*delivery='step'"
    with pytest.raises(UnsupportedError, match=message):
        regplug.attach(model, optimizer, [L1(0.1, delivery="proximal")])
    regplug.attach(model, optimizer, ["l1(0.1)"])


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        (optim.Adadelta, {"weight_decay": 0.1}, "Adadelta: its own weight_decay"),
        (optim.SGD, {"lr": 0.1, "momentum": 1.0}, "SGD: its momentum must be below 1"),
        (optim.RMSprop, {"momentum": 1.5}, "RMSprop: its momentum must be below 1"),
    ],
)
def test_settings_that_cannot_be_accounted_for_are_refused(kind, settings, reason):
    model = nn.Linear(3, 1)
    optimizer = kind(model.parameters(), **settings)
    with pytest.raises(UnsupportedError, match=reason):
        regplug.attach(model, optimizer, [L1(0.1, delivery="proximal")])


# Penalties that are not separable


class Rows(regplug.Penalty):
    """Σ over rows of ‖w_i‖: the group lasso."""

    def value(self, w):
        return w.norm(dim=1).sum()

    def proximal(self, w, step):
        norms = w.norm(dim=1, keepdim=True)
        return w * (1 - step * self.strength / norms).clamp(min=0)


def test_penalty_that_is_not_separable_works_where_all_elements_take_one_step():
    model = nn.Linear(3, 4, bias=False).double()
    before = model.weight.detach().clone()
    before[0] = 1e-3
    with torch.no_grad():
        model.weight.copy_(before)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, [Rows(0.5, delivery="proximal")])
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    norms = before.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        model.weight.detach(), before * (1 - 0.05 / norms).clamp(min=0), rtol=0, atol=1e-12
    )
    assert torch.equal(model.weight[0], torch.zeros(3, dtype=torch.float64))


def test_penalty_that_is_not_separable_is_refused_under_element_wise_steps():
    """The element-wise closed form is no proximal operator of a group lasso under Adam."""
    model = nn.Linear(3, 4)
    with pytest.raises(UnsupportedError, match=r"rows: Adam takes a step of its own for each"):
        regplug.attach(model, optim.Adam(model.parameters()), [Rows(0.5, delivery="proximal")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lr", [0.0, 1e-12, 0.02])
def test_step_of_adam_is_exact_from_the_smallest_second_moment_to_none(lr, dtype):
    """In 1/√v the smallest is large and 0 is infinite; neither may reach a weight as NaN."""
    smallest = torch.finfo(dtype).tiny
    v = torch.tensor([0.0, smallest, 1e-30, 1e-12, 1.0, 1e30], dtype=dtype)
    state = {"step": torch.tensor(3.0), "exp_avg_sq": v.float() if v.itemsize < 4 else v}
    group = {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False}
    rule = update_rule(optim.Adam([nn.Parameter(torch.zeros(1))]))
    wide = v.double()
    expected = lr / ((wide / (1 - 0.999**3)).sqrt() + 1e-8)
    expected[0] = 0.0
    for moments in (state["exp_avg_sq"], state["exp_avg_sq"][1:]):  # with and without a zero
        found = rule.step(group, {**state, "exp_avg_sq": moments.clone()}, moments)
        torch.testing.assert_close(found.double(), expected[-len(moments) :], rtol=1e-5, atol=0)
