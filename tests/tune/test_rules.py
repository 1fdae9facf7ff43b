"""The rules that choose, against their definitions written out, and the grid's own language."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from regplug.discovery import catalog
from regplug.errors import RegplugError, SpecError
from regplug.tune import Auto, rules
from regplug.tune.grid import Grid

_SCORES = arrays(
    np.float64,
    st.tuples(st.integers(1, 8), st.integers(2, 6)),
    elements=st.floats(-10, 10).map(lambda score: round(score, 3)),
)


@given(_SCORES)
def test_one_standard_error_is_the_strongest_candidate_that_is_not_below_the_floor(scores):
    params = [{"l1": 10.0 ** -(index % 3), "l2": float(index)} for index in range(len(scores))]
    found = rules.summary(scores)
    chosen = rules.one_standard_error(params, found["mean_test_score"], found["se_test_score"])

    top = max(range(len(scores)), key=lambda i: np.mean(scores[i]))
    squares = sum((score - np.mean(scores[top])) ** 2 for score in scores[top])
    folds = scores.shape[1]
    floor = np.mean(scores[top]) - (squares / (folds - 1)) ** 0.5 / folds**0.5
    for params_of, row in zip(params, scores, strict=True):
        stronger = (params_of["l1"], params_of["l2"]) > (params[chosen]["l1"], params[chosen]["l2"])
        assert not stronger or np.mean(row) < floor + 1e-9
    assert np.mean(scores[chosen]) >= floor - 1e-9


def test_the_first_key_decides_which_of_several_strengths_is_strongest():
    means, errors = np.zeros(4), np.ones(4)
    one = [{"l1": a, "l2": b} for a in (0.1, 1.0) for b in (5.0, 7.0)]
    assert one[rules.one_standard_error(one, means, errors)] == {"l1": 1.0, "l2": 7.0}
    other = [{"l2": p["l2"], "l1": p["l1"]} for p in one if p != {"l1": 1.0, "l2": 7.0}]
    chosen = rules.one_standard_error(other, np.zeros(3), np.ones(3))
    assert other[chosen] == {"l2": 7.0, "l1": 0.1}


def test_nan_is_never_chosen_and_ranks_last():
    means = np.array([np.nan, 0.2, 0.9, 0.9])
    assert rules.best(means) == 2
    assert rules.ranks(means).tolist() == [4, 3, 1, 1]
    params = [{"l1": strength} for strength in (100.0, 10.0, 1.0, 0.1)]
    assert rules.one_standard_error(params, means, np.array([np.nan, 0.1, 0.1, 0.1])) == 2
    with pytest.raises(ValueError, match="no candidate has a score"):
        rules.best(np.array([np.nan]))


def test_a_single_fold_has_no_standard_error():
    assert np.isnan(rules.standard_errors(np.array([[1.0], [2.0]]))).all()
    with pytest.raises(ValueError, match="standard error"):
        rules.one_standard_error([{"l1": 1.0}], np.array([1.0]), np.array([np.nan]))


@pytest.mark.parametrize(
    ("key", "spec"),
    [
        ("l1", "l1(0.5)"),
        (" l1 ", "l1(0.5)"),
        ("l1=_", "l1(0.5)"),
        ("l1(_, where='all', delivery='proximal')", "l1(0.5, where='all', delivery='proximal')"),
        ("l1(strength=_)", "l1(strength=0.5)"),
        ("l1(linear(0, _, steps=10))", "l1(linear(0, 0.5, steps=10))"),
        (
            "elastic_net(1e-3, _, where=['all', '!*_*'])",
            "elastic_net(0.001, 0.5, where=['all', '!*_*'])",
        ),
    ],
)
def test_a_key_becomes_a_spec_that_the_catalog_reads(key, spec):
    grid = Grid({key: [0.5]})
    (candidate,) = grid.candidates
    assert candidate == {key: 0.5}
    assert grid.specs(candidate) == [spec]
    assert catalog.load(spec).name == spec.partition("(")[0]


def test_strengths_of_any_kind_become_plain_numbers_and_all_combinations_are_there():
    torch = pytest.importorskip("torch")
    grid = Grid({"l1": np.array([1.0, 2.0]), "l2": (torch.tensor(3), 4.5), "dropout": range(1)})
    assert grid.candidates == [
        {"l1": a, "l2": b, "dropout": 0} for a in (1.0, 2.0) for b in (3, 4.5)
    ]
    assert {type(v) for c in grid.candidates for v in c.values()} == {int, float}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_finite_strength_comes_back_from_its_spec_to_the_bit(strength):
    grid = Grid({"l1": [strength]})
    (spec,) = grid.specs(grid.candidates[0])
    assert catalog.parse(spec) == ("l1", (strength,), {})


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({}, "empty"),
        ([("l1", [1.0])], "mapping"),
        ({"l1": []}, r"grid\['l1'\] is empty"),
        ({"l1": 0.1}, "list of strengths"),
        ({"l1": np.array(0.1)}, "list of strengths"),
        ({"l1": "0.1"}, "'0.1'"),
        ({"l1": ["0.1"]}, "no number"),
        ({"l1": [True]}, "no number"),
        ({"l1": [float("nan")]}, "not finite"),
        ({"l1": [np.ones(2)]}, "no number"),
        ({"l1": [0.1, 0.1]}, "more than once"),
        ({"l1(where='all')": [0.1]}, "no placeholder"),
        ({"elastic_net(_, _)": [0.1]}, "2 placeholders"),
        ({"l1(": [0.1]}, "no spec"),
        ({"l1(" + "-" * 5000 + "_)": [0.1]}, "nested too deep"),
        ({f"l1(_, {'9' * 5000})": [0.1]}, "digits"),
        ({"_(0.1)": [0.1]}, "no placeholder"),
        ({"_ + 1": [0.1]}, "no spec"),
        ({3: [0.1]}, "must be a spec"),
    ],
)
def test_a_wrong_grid_is_refused_by_name(grid, words):
    with pytest.raises(SpecError, match=words):
        Grid(grid)


@given(st.text(max_size=30))
def test_whatever_a_key_is_only_regplugs_errors_come_out(key):
    try:
        grid = Grid({key: [0.5]})
    except RegplugError:
        return
    (spec,) = grid.specs(grid.candidates[0])
    assert "0.5" in spec


def test_an_automatic_path_is_geometric_and_ends_where_it_says():
    path = Auto(eps=1e-2, n=5).below(4.0)
    np.testing.assert_allclose(path, np.geomspace(4.0, 0.04, 5), rtol=1e-12)
    assert path[0] == 4.0


@pytest.mark.parametrize("wrong", [{"eps": 0}, {"eps": 1.5}, {"eps": "x"}, {"n": 1}, {"n": 2.5}])
def test_wrong_settings_of_an_automatic_path_are_refused(wrong):
    with pytest.raises(SpecError, match=next(iter(wrong))):
        Auto(**wrong)
