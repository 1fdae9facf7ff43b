"""Several proximal operators on one weight are that of their sum, in whichever order they stand."""

import itertools
import warnings

import pytest
import torch
from sklearn.linear_model import ElasticNet as Reference
from sklearn.model_selection import cross_val_score
from torch import nn

import regplug
from regplug.errors import UnsupportedError
from regplug.tune import Recipe, StrengthCV
from regplug_builtins import L1, L2, L2SP, ElasticNet, GroupLasso

F64 = torch.float64
A, B, C = 0.08, 0.3, 0.06
ROOT = 2  # of the length of the groups below


def l1(**settings):
    return L1(A, delivery="proximal", **settings)


def l2(**settings):
    return L2(B, delivery="proximal", **settings)


def groups(**settings):
    return GroupLasso(C, delivery="proximal", **settings)


def net(**settings):
    return ElasticNet(A, B, delivery="proximal", **settings)


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05}),
    "momentum": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.5}),
    "adam": (torch.optim.Adam, {"lr": 0.01}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.005, "alpha": 0.9}),
}


def problem():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 8, generator=generator, dtype=F64)
    y = x @ torch.tensor([1.5, -2, 0, 0, 0.3, 0, 0.1, 0], dtype=F64)
    return x, y + 0.1 * torch.randn(60, generator=generator, dtype=F64)


def solved(plugins, optimizer, steps=4000):
    """Return the coefficients at which training rests."""
    kind, settings = OPTIMIZERS[optimizer]
    x, y = problem()
    model = nn.Linear(8, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    updates = kind(model.parameters(), **settings)
    with regplug.attach(model, updates, plugins):
        for _ in range(steps):
            updates.zero_grad()
            (0.5 * (model(x)[:, 0] - y).square().mean()).backward()
            updates.step()
    return model.weight.detach()[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("order", [(l1, l2), (l2, l1)])
def test_lasso_and_ridge_are_scikit_learns_elastic_net(order, optimizer):
    x, y = problem()
    # ½·MSE + A·Σ|w| + B·Σw²
    alpha = A + 2 * B
    exact = Reference(
        alpha=alpha, l1_ratio=A / alpha, fit_intercept=False, tol=1e-12, max_iter=100_000
    ).fit(x, y)
    found = solved([make() for make in order], optimizer)
    tolerance = 1e-6 if "adam" not in optimizer and "rms" not in optimizer else 2e-4
    torch.testing.assert_close(found, torch.tensor(exact.coef_), rtol=0, atol=tolerance)
    assert (found == 0).tolist() == (exact.coef_ == 0).tolist()
    assert 0 < int((found == 0).sum()) < 8


def one_step(plugins, start, optimizer="sgd"):
    """Return what one step with zero, or given, gradients makes of a matrix."""
    model = nn.ParameterList([start.clone()])
    if optimizer == "sgd":
        updates = torch.optim.SGD(model.parameters(), lr=1.0)
        model[0].grad = torch.zeros_like(start)
        moved, steps = start, torch.ones_like(start)
    else:
        updates = torch.optim.RMSprop(model.parameters(), lr=0.5, alpha=0.75)
        gradient = torch.linspace(0.2, 2, start.numel(), dtype=F64).view_as(start)
        model[0].grad = gradient.clone()
        # v = ¼·g² at the first step
        steps = 0.5 / (gradient / 2 + 1e-8)
        moved = start - steps * gradient
    with regplug.attach(model, updates, plugins):
        updates.step()
    return model[0].detach(), moved, steps


def check_stationary(u, w, s, *, threshold=0.0, ridge=0.0, group=0.0):
    """Check 0 ∈ (u − w)/s + threshold·∂|u| + 2·ridge·u + group·∂‖u‖, row by row."""
    rest = (w - u) / s - 2 * ridge * u
    soft = rest.sign() * (rest.abs() - threshold).clamp(min=0)
    for row in range(len(u)):
        size = u[row].norm()
        if size == 0:
            assert soft[row].norm() <= group * (1 + 1e-9)
            continue
        pull = rest[row] - group * u[row] / size
        alive = u[row] != 0
        torch.testing.assert_close(pull[alive], threshold * u[row][alive].sign())
        assert (pull[~alive].abs() <= threshold * (1 + 1e-9)).all()


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
@pytest.mark.parametrize("plugins", list(itertools.permutations([l1, groups])))
def test_lasso_and_group_lasso_are_the_sparse_group_lasso(plugins, optimizer):
    start = torch.randn(12, 4, dtype=F64) * torch.linspace(0.05, 1, 12, dtype=F64)[:, None]
    u, w, s = one_step([make() for make in plugins], start, optimizer)
    check_stationary(u, w, s, threshold=A, group=C * ROOT)
    assert (u == 0).any()
    assert (u != 0).any()


@pytest.mark.parametrize("plugins", list(itertools.permutations([l1, groups, l2])))
def test_all_three_are_one_operator(plugins):
    start = torch.randn(12, 4, dtype=F64) * torch.linspace(0.05, 1, 12, dtype=F64)[:, None]
    u, w, s = one_step([make() for make in plugins], start)
    check_stationary(u, w, s, threshold=A, ridge=B, group=C * ROOT)
    assert (u == 0).all(dim=1).any()


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
@pytest.mark.parametrize(
    ("plugins", "threshold", "ridge"),
    [
        ([l1, lambda: L1(A, delivery="proximal", name="second")], 2 * A, 0.0),
        ([net, l1], 2 * A, B),
        ([l1, net], 2 * A, B),
        ([l2, l1, lambda: L1(A, delivery="proximal", name="second")], 2 * A, B),
    ],
)
def test_thresholds_add_up(plugins, threshold, ridge, optimizer):
    u, w, s = one_step([make() for make in plugins], torch.randn(12, 4, dtype=F64), optimizer)
    check_stationary(u, w, s, threshold=threshold, ridge=ridge)


def test_group_lassos_of_the_same_groups_add_up():
    start = torch.randn(12, 4, dtype=F64) * torch.linspace(0.05, 1, 12, dtype=F64)[:, None]
    u, w, s = one_step([groups(), groups(name="second")], start)
    check_stationary(u, w, s, group=2 * C * ROOT)


def anchored():
    return L2SP(B, delivery="proximal")


@pytest.mark.parametrize(
    ("plugins", "optimizer", "told"),
    [
        ([l2, lambda: l2(name="second")], "sgd", "l2 and second.*give one of them the sum"),
        ([net, lambda: net(name="second")], "sgd", "elastic_net and second.*the sum of both"),
        ([net, l2], "sgd", "elastic_net and l2.*the sum"),
        ([l2, net], "adam", "l2 and elastic_net.*the sum"),
        ([net, groups], "sgd", "elastic_net and group_lasso.*a penalty for each of its terms"),
        ([groups, l2], "adam", "group_lasso and l2.*delivery='step'"),
        ([groups, lambda: groups(name="b")], "adam", "group_lasso and b.*give one of them the sum"),
        ([groups, lambda: groups(groups="columns", name="b")], "sgd", "group_lasso and b.*'step'"),
        ([anchored, l1], "sgd", "l2_sp and l1.*delivery='step'"),
        ([l2, anchored], "sgd", "l2 and l2_sp.*delivery='step'"),
    ],
)
def test_what_is_not_one_operator_is_refused_with_a_way_out(plugins, optimizer, told):
    kind, settings = OPTIMIZERS[optimizer]
    model = nn.Linear(4, 3)
    updates = kind(model.parameters(), **settings)
    with pytest.raises(UnsupportedError, match=told):
        regplug.attach(model, updates, [make() for make in plugins])
    assert not updates._optimizer_step_post_hooks


def test_weights_that_are_not_shared_are_no_matter():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    updates = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = [l2(where="0.*"), l2(where="1.*", name="second"), net(where="0.bias", name="third")]
    with pytest.raises(UnsupportedError, match=r"l2 and third.*0\.bias"):
        regplug.attach(model, updates, plugins)
    regplug.attach(model, updates, plugins[:2])


def test_other_deliveries_are_no_matter():
    """Catches a refusal of two penalties of which one alone has an operator."""
    model = nn.Linear(4, 3)
    updates = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, updates, [l2(), net(), L2(0.1, delivery="step", name="x")][::2])


def test_parameters_that_come_later_are_looked_at_too():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    updates = torch.optim.SGD(model[0].parameters(), lr=0.1)
    regplug.attach(model, updates, [l2(where="*.weight"), net(where=["1.weight", "0.bias"])])
    updates.add_param_group({"params": list(model[1].parameters())})
    model(torch.ones(1, 4)).sum().backward()
    with pytest.raises(UnsupportedError, match=r"l2 and elastic_net.*1\.weight"):
        updates.step()


def test_lazy_weights_are_looked_at_at_once():
    model = nn.LazyLinear(2)
    updates = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UnsupportedError, match="l2 and elastic_net"):
        regplug.attach(model, updates, [l2(), net()])


def test_plugins_stay_in_the_order_of_the_list():
    model = nn.Linear(4, 3)
    updates = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, updates, [l2(), "non_negative", l1()])
    assert [p.name for p in session.plugins] == ["l2", "non_negative", "l1"]
    assert next(iter(session.metrics())) == "l2/value"


class Halves(regplug.Penalty):
    """A stranger's, of which nothing is known: it halves."""

    separable = True

    def value(self, w):
        return w.abs().sum()

    def proximal(self, w, step):
        return w / 2


class Known(Halves):
    composition = "scale"

    def proximal(self, w, step):
        return w / (1 + step * self.strength)


def test_of_a_strangers_operator_it_is_said_once_that_nothing_is_known():
    model = nn.Linear(4, 3)
    updates = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="halves and l1.*one after the other.*order") as told:
        regplug.attach(model, updates, [Halves(0.1, delivery="proximal"), l1()])
    assert len(told) == 1


def test_a_stranger_may_say_what_an_operator_does():
    start = torch.randn(5, 4, dtype=F64)
    found, _, _ = one_step([Known(0.5, delivery="proximal"), l1()], start)
    torch.testing.assert_close(found, nn.functional.softshrink(start, A) / 1.5)


def test_a_subclass_that_writes_its_own_operator_is_a_strangers():
    class Own(L2):
        def proximal(self, w, step):
            return w / (1 + step * self.strength) ** 2

    assert Own.composition is None
    assert type("Same", (L2,), {}).composition == "scale"


@pytest.mark.parametrize("constraint", ["non_negative", "max_norm(0.5)"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_constraint_and_an_operator_keep_their_places(constraint, order):
    start = torch.randn(6, 4, dtype=F64)
    found, _, _ = one_step([l1(), constraint][::order], start)
    soft = nn.functional.softshrink(start, A)
    if constraint == "non_negative":
        expected = soft.clamp(min=0)
    else:
        norms = (soft if order == 1 else start).norm(dim=1, keepdim=True)
        first = soft if order == 1 else start
        expected = first * (0.5 / norms).clamp(max=1)
        expected = expected if order == 1 else nn.functional.softshrink(expected, A)
    torch.testing.assert_close(found, expected)


def test_no_warning_for_what_is_known():
    """Catches a warning of an order that nobody needs to care about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_step([l2(), groups(), l1()], torch.ones(2, 2, dtype=F64))


@pytest.mark.parametrize("order", [1, -1])
def test_fits_that_are_trained_at_once_have_the_operators_in_order_too(order):
    x, y = (t.numpy() for t in problem())

    def build():
        model = nn.Linear(8, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        return model

    def half_mse(output, target):
        return 0.5 * nn.functional.mse_loss(output, target)

    recipe = Recipe(build, half_mse, lambda ps: torch.optim.SGD(ps, lr=0.05), epochs=2000)
    keys = ["l1(_, delivery='proximal')", "l2(_, delivery='proximal')"][::order]
    grid = {key: [A, 2 * A] if key.startswith("l1") else [B] for key in keys}
    search = StrengthCV(recipe, grid, cv=3, progress=False).fit(x, y[:, None])
    for place, strength in enumerate(search.cv_results_[f"param_{keys[::order][0]}"]):
        alpha = strength + 2 * B
        exact = Reference(
            alpha=alpha, l1_ratio=strength / alpha, fit_intercept=False, tol=1e-12, max_iter=10**5
        )
        errors = -cross_val_score(exact, x, y, cv=3, scoring="neg_mean_squared_error")
        found = -search.cv_results_["mean_test_score"][place]
        assert found == pytest.approx(errors.mean(), rel=1e-6)
