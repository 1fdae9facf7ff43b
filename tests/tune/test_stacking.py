"""What is stacked into one fit and how, by its formula, and what is trained one by one."""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import regplug
from regplug.tune import Recipe, StrengthCV, stacked
from regplug.tune.stacked_penalty import StackedPenalty
from tests.tune.many_fits import GRID, OPTIMIZERS, X, Y, both, network, sgd


class Rows(regplug.Penalty):
    """λ·Σ‖row‖: not separable; its gradient comes from autograd, its step from a formula."""

    def value(self, w):
        return (w.square().sum(dim=-1) + 1e-12).sqrt().sum()

    def proximal(self, w, step):
        norms = w.square().sum(dim=-1, keepdim=True).sqrt()
        return w * (1 - step * self.strength / norms).clamp(min=0)


class Branching(regplug.Penalty):
    """A formula that looks at its strength, as no batched call may."""

    separable = True

    def value(self, w):
        return w.abs().sum()

    def gradient(self, w):
        return torch.sign(w) if self.strength > 1e-3 else w

    def proximal(self, w, step):
        if self.strength > 1e-3:
            return torch.nn.functional.softshrink(w, float(step) * self.strength)
        return w


class Bowl(regplug.Penalty):
    """Separable, with a gradient from autograd only."""

    separable = True

    def value(self, w):
        return w.cosh().log().sum()


@pytest.fixture
def formulas(monkeypatch):
    """Make the classes above known by their names in specs."""
    from regplug.discovery import catalog

    known = {"rows": Rows, "branching": Branching, "bowl": Bowl}
    real = catalog.load_class

    def load_class(name):
        return known.get(name) or real(name)

    monkeypatch.setattr(catalog, "load_class", load_class)


@pytest.mark.parametrize(
    ("spec", "way"),
    [
        ("l1", "_broadcast"),
        ("elastic_net(0.01, _)", "_broadcast"),
        ("bowl", "_broadcast"),
        ("rows", "_vmapped"),
        ("branching", "_one_by_one"),
        ("l1(_, delivery='proximal')", "_broadcast"),
        ("rows(_, delivery='proximal')", "_vmapped"),
        ("branching(_, delivery='proximal')", "_one_by_one"),
    ],
)
def test_formulas_of_every_kind_take_the_fastest_way_that_is_right(
    spec, way, formulas, monkeypatch
):
    ways = []
    choose = StackedPenalty._choose

    def choosing(self, *arguments):
        ways.append(choose(self, *arguments).__name__)
        return choose(self, *arguments)

    monkeypatch.setattr(StackedPenalty, "_choose", choosing)
    recipe = Recipe(network, nn.MSELoss(), OPTIMIZERS["sgd"], epochs=4)
    grid = {spec: [0.2, 0.01]}
    if "branching" in spec or spec == "l1":
        both(recipe, grid)
    else:
        both(recipe, grid, rtol=1e-8)
    assert set(ways) == {way}


# --- what can't be stacked --------------------------------------------------------------------


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.rand(()).item()


class Branches(nn.Linear):
    def forward(self, x):
        return (
            super().forward(x) if float(self.weight.detach().sum()) > 100 else super().forward(-x)
        )


def _with(*layers):
    def build():
        return nn.Sequential(nn.Linear(5, 4), *copy.deepcopy(layers), nn.Linear(4, 2))

    return build


@pytest.mark.parametrize(
    ("build", "optimizer", "grid", "why"),
    [
        (_with(nn.Dropout(0.5)), sgd, {"l2": [0.1]}, "draws random numbers"),
        (_with(nn.BatchNorm1d(4)), sgd, {"l2": [0.1]}, "changes its buffers"),
        (_with(), functools.partial(torch.optim.LBFGS, max_iter=2), {"l2": [0.1]}, "LBFGS"),
        (_with(), torch.optim.Adafactor, {"l2": [0.1]}, "Adafactor"),
        (_with(), sgd, {"weight_decay": [0.1]}, "weight_decay is no penalty"),
        (_with(Branches(4, 4)), sgd, {"l2": [0.1]}, "vmap can't run"),
        (_with(Noisy(4, 4)), sgd, {"l2": [0.1]}, "draws random numbers"),
    ],
)
def test_what_cant_be_stacked_is_trained_one_by_one_and_says_why(build, optimizer, grid, why):
    recipe = Recipe(build, nn.MSELoss(), optimizer, epochs=2)
    data, target = X.astype(np.float32), Y.astype(np.float32)
    with pytest.warns(UserWarning, match=f"one by one: .*{why}"):
        search = StrengthCV(recipe, grid, cv=2, progress=False).fit(data, target)
    single = StrengthCV(recipe.__call__, grid, cv=2, progress=False).fit(data, target)
    assert not search.batched_
    assert search.best_score_ == single.best_score_


def test_dropout_at_rate_zero_is_no_hindrance():
    recipe = Recipe(_with(nn.Dropout(0.0)), nn.MSELoss(), sgd, epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = StrengthCV(recipe, {"l2": [0.1]}, cv=2, progress=False)
        assert search.fit(X.astype(np.float32), Y.astype(np.float32)).batched_


@pytest.mark.parametrize("limit", ["MEMORY", "PRODUCTS"])
def test_a_search_in_batches_is_the_same_and_tells_its_progress(limit, monkeypatch, capsys):
    recipe = Recipe(network, nn.MSELoss(), sgd, epochs=3)
    whole = StrengthCV(recipe, GRID, progress=False).fit(X, Y)
    with monkeypatch.context() as patch:
        patch.setattr(stacked, limit, 1)  # as if a fit filled it
        parts = StrengthCV(recipe, GRID).fit(X, Y)
    # Two sizes of folds, four strengths: at the end of each of eight batches a line may be due.
    assert len(capsys.readouterr().err.splitlines()) > 4
    np.testing.assert_allclose(
        parts.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"], rtol=1e-9
    )


def test_a_search_in_workers_or_after_a_stop_is_the_same(tmp_path):
    recipe = Recipe(network, nn.MSELoss(), sgd, epochs=3)
    whole = StrengthCV(recipe, GRID, progress=False).fit(X, Y)
    workers = StrengthCV(recipe, GRID, progress=False, n_jobs=2).fit(X, Y)
    np.testing.assert_allclose(
        workers.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"], rtol=1e-9
    )
    # Strengths that a file has already are left out.
    file = tmp_path / "search.jsonl"
    some = {**GRID, "l1": GRID["l1"][:1]}
    StrengthCV(recipe, some, progress=False, resume=file).fit(X, Y)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-3]) + "\n")
    again = StrengthCV(recipe, GRID, progress=False, resume=file).fit(X, Y)
    np.testing.assert_allclose(
        again.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"], rtol=1e-9
    )
