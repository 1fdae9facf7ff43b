"""Private names of torch.distributed, Accelerate, scikit-learn and Keras, taken away."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regplug
from regplug.backend import others, wrappers
from regplug.errors import RegplugError, UnsupportedError
from regplug.session import agreement
from tests.helpers.pair import Pair

GONE = "_no_such_name"


# --- the store of the process group ------------------------------------------------------------


def attach_without_the_store(rank: int, specs: list[list[str]]) -> tuple[str, bool, float]:
    others._STORE = GONE
    started = time.monotonic()
    try:
        model = DistributedDataParallel(nn.Linear(2, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        regplug.attach(model, optimizer, specs[rank]).detach()
        words = "agreed"
    except RegplugError as error:
        words = str(error)
    finally:
        others._STORE = "_get_default_store"
    return words, bool(others._own_stores), time.monotonic() - started


def test_without_the_groups_store_ranks_compare_over_one_of_their_own() -> None:
    pair = Pair()
    try:
        for _ in range(2):  # the second time it is there
            for words, own, seconds in pair.run(attach_without_the_store, [["l1(0.1)"]] * 2):
                assert words == "agreed"
                assert own
                assert seconds < agreement.PATIENCE / 2
        for words, _, seconds in pair.run(attach_without_the_store, [["l1(0.1)"], ["l1(0.2)"]]):
            assert "l1.strength: constant(0.1) on rank 0, constant(0.2) on rank 1" in words
            assert seconds < agreement.PATIENCE / 2
    finally:
        pair.stop()


# --- its optimizer of shares -------------------------------------------------------------------


def step_of_zero(rank: int, name: str) -> tuple[list[list[float]], int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own, on the way
        from torch.distributed.optim import ZeroRedundancyOptimizer
    kind: Any = type(name, (ZeroRedundancyOptimizer,), {})
    own, ZeroRedundancyOptimizer.__name__ = ZeroRedundancyOptimizer.__name__, name
    try:
        model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False))
        for p in model.parameters():
            nn.init.constant_(p, 2.0)
        optimizer = kind(model.parameters(), optimizer_class=torch.optim.SGD, lr=0.1)
        with regplug.attach(model, optimizer, ["l2(0.5)"]) as session:
            (0.0 * model(torch.ones(1, 2))).sum().backward()
            optimizer.step()
            return [p.flatten().tolist() for p in model.parameters()], session.steps
    finally:
        ZeroRedundancyOptimizer.__name__ = own


@pytest.mark.parametrize("name", ["ZeroRedundancyOptimizer", "Renamed"])
def test_torchs_optimizer_of_shares_acts_once_for_all_ranks(name: str) -> None:
    pair = Pair()
    try:
        for weights, steps in pair.run(step_of_zero, name):
            assert steps == 1
            assert weights == [[pytest.approx(2.0 - 0.1 * 2 * 0.5 * 2.0)] * 2] * 2  # λ·w², once
    finally:
        pair.stop()


# --- Accelerate --------------------------------------------------------------------------------


def members_with_and_without_the_mark(rank: int) -> list[tuple[int, ...]]:
    accelerator = Accelerator(cpu=True)
    model, bare = accelerator.prepare(nn.Linear(2, 1)), nn.Linear(2, 1)
    found = [agreement._members(bare, prepared=False)]
    for marked in ("_is_accelerate_prepared", GONE):
        others._PREPARED = marked
        try:
            found += [
                (rank,) if others.is_prepared(list(wrappers.layers(model))) else (),
                (rank,) if others.is_prepared([bare]) else (),
            ]
        finally:
            others._PREPARED = "_is_accelerate_prepared"
    return found


def test_without_its_mark_a_prepared_model_is_known_by_its_accelerator() -> None:
    pair = Pair(group=False)
    try:
        for rank, found in enumerate(pair.run(members_with_and_without_the_mark)):
            assert found == [(), (rank,), (), (rank,), ()]
    finally:
        pair.stop()


def test_without_its_list_an_accelerator_has_to_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    assert others.prepared_by(optimizer) == [accelerator]
    monkeypatch.setattr(others, "_OPTIMIZERS", GONE)
    with pytest.raises(UnsupportedError, match=rf"Accelerator\.{GONE}.*accelerator=accelerator"):
        regplug.attach(model, optimizer, ["l1(0.1)"])
    regplug.attach(model, optimizer, ["l1(0.1)"], accelerator=accelerator).detach()


def test_its_wrapper_of_an_optimizer_is_known_by_the_package_alone(tmp_path: Path) -> None:
    from accelerate.optimizer import AcceleratedOptimizer as Wrapper

    accelerator = Accelerator(cpu=True)
    model = nn.Linear(2, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    named = Wrapper.__name__, Wrapper.__module__
    Wrapper.__name__, Wrapper.__module__ = "Renamed", "accelerate.elsewhere"
    try:
        with regplug.attach(model, optimizer, ["l1(0.1)"]):
            accelerator.save_state(str(tmp_path))
    finally:
        Wrapper.__name__, Wrapper.__module__ = named
    assert list((tmp_path / "regplug").iterdir())


# --- scikit-learn ------------------------------------------------------------------------------


def kinds_of_data() -> dict[str, Any]:
    pandas = pytest.importorskip("pandas")
    sparse = pytest.importorskip("scipy.sparse")
    array = np.arange(24.0).reshape(8, 3)
    return {
        "array": array,
        "vector": array[:, 0],
        "words": np.array(list("abcdefgh")),
        "frame": pandas.DataFrame(array, index=list("hgfedcba"), columns=list("xyz")),
        "series": pandas.Series(array[:, 1], index=range(8, 0, -1)),
        "csr": sparse.csr_matrix(array),
        "coo": sparse.coo_array(array),
        "list": array[:, 2].tolist(),
    }


def plain(data: Any) -> Any:
    return np.asarray(data.toarray() if hasattr(data, "toarray") else data).tolist()


@pytest.mark.parametrize("kind", ["array", "vector", "words", "frame", "series", "csr", "list"])
def test_without_scikit_learns_function_rows_are_taken_as_each_kind_takes_them(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data, index = kinds_of_data()[kind], np.array([6, 0, 3])
    wanted = others.rows_of(data, index)
    monkeypatch.setattr(others, "_INDEXING", GONE)
    found = others.rows_of(data, index)
    assert type(found) is type(wanted)
    assert plain(found) == plain(wanted)
    if hasattr(wanted, "index") and kind != "list":
        assert list(found.index) == list(wanted.index)


def test_without_the_metric_of_a_scorer_its_module_is_found_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    names = ["r2", "neg_mean_squared_error", "accuracy", "roc_auc", "f1_macro", "neg_log_loss"]
    names += ["neg_max_error", "balanced_accuracy", "neg_mean_absolute_percentage_error"]
    scorers = [metrics.get_scorer(name) for name in names]
    scorers.append(metrics.make_scorer(metrics.fbeta_score, beta=2))
    wanted = [others.module_of_metric(scorer) for scorer in scorers]
    assert len(set(wanted)) > 2
    monkeypatch.setattr(others, "_METRIC", GONE)
    assert [others.module_of_metric(scorer) for scorer in scorers] == wanted
    assert others.module_of_metric(lambda estimator, X, y: 0.0) == ""


# --- Keras -------------------------------------------------------------------------------------


def test_an_optimizer_without_the_method_that_is_overridden_is_refused() -> None:
    class Base:
        def _backend_update_step(self, grads: Any, variables: Any, learning_rate: Any) -> None:
            """As Keras' own."""

    class Other:
        pass

    type("Optimizer", (others.UpdateStep, Base), {})().check_update_step()
    with pytest.raises(UnsupportedError, match=r"no _backend_update_step.*session\.step"):
        type("Optimizer", (others.UpdateStep, Other), {})().check_update_step()


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs keras")
def test_keras_without_that_method_is_refused_at_attach() -> None:
    code = """
        import json, keras, numpy as np
        from regplug.errors import UnsupportedError
        from regplug.integrations.keras import Regularized

        class SGD(Regularized, keras.optimizers.SGD):
            pass

        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        optimizer = SGD(0.1)
        model.compile(optimizer, "mse")
        session = optimizer.attach(model, ["l1(0.1)"])
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
        print(json.dumps(session.steps))
        for kind in keras.optimizers.SGD.__mro__:
            if "_backend_update_step" in vars(kind):
                del kind._backend_update_step
        try:
            optimizer.attach(model, ["l1(0.1)"])
        except UnsupportedError as error:
            print(json.dumps(str(error)))
    """
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=False,
    )
    steps, words = map(json.loads, ended.stdout.splitlines())
    assert steps == 1, ended.stderr
    assert "no _backend_update_step" in words
