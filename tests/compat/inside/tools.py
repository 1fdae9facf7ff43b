"""The exam, two ranks, ``regplug run`` and ``StrengthCV`` in the environment under test."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from loops import SPECS

import regplug

EXAMINED = ("l1(1e-3)", "weight_decay(0.1)", "dropout(0.2)")
RANKS = ("ddp", "fsdp2", "ranks")

SCRIPT = """
import torch
torch.manual_seed(0)
net = torch.nn.Linear(4, 1, bias=False)
before = net.weight.detach().clone()
optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
for _ in range(3):
    optimizer.zero_grad()
    (0 * net(torch.ones(1, 4))).sum().backward()
    optimizer.step()
# 3·0.5·0.02 off each weight, and none through zero.
expected = before.sign() * (before.abs() - 0.03).clamp(min=0)
torch.testing.assert_close(net.weight.detach(), expected)
print("as computed by hand")
"""


def exam() -> Iterator[tuple[str, str, str]]:
    """Yield ``(check, outcome, message)`` of the whole exam of three plugins."""
    from regplug.testing import check_plugin

    for spec in EXAMINED:
        for result in check_plugin(spec).results:
            yield f"{result.check}, {result.regime}", result.outcome, f"{spec}: {result.message}"


def ranks() -> Iterator[tuple[str, str, str]]:
    """Yield the same of DDP and FSDP2 on two ranks, for all other plugins."""
    from regplug.testing import check_plugin

    done = {spec.partition("(")[0] for spec in EXAMINED}
    for name, spec in SPECS.items():
        if name.partition(" ")[0] in done:
            continue
        for result in check_plugin(spec, checks=RANKS).results:
            yield f"{result.check}, {result.regime}", result.outcome, f"{spec}: {result.message}"


def command() -> str:
    """Run ``regplug run`` on a script; return what it warned of.

    Raises:
        AssertionError: it did something else than the plugin says.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(SCRIPT, encoding="utf-8")
        spec = "l1(0.02, delivery='proximal')"
        line = [sys.executable, "-W", "default", "-m", "regplug", "run", "-p", spec, str(script)]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "as computed by hand" in done.stdout, done.stdout
    assert "3 real steps" in done.stderr, done.stderr
    return "\n".join(line for line in done.stderr.splitlines() if "Warning" in line)


def strength() -> None:
    """Let ``StrengthCV`` choose between a strength that helps and one that kills all.

    Raises:
        AssertionError: it chooses wrongly, or its score is not what scikit-learn's parts say.
    """
    import numpy as np
    from sklearn.linear_model import Lasso
    from sklearn.model_selection import KFold, cross_val_score

    from regplug.tune import StrengthCV

    random = np.random.default_rng(0)
    X = random.normal(size=(60, 5))
    y = X[:, 0] - 0.5 * X[:, 1] + 0.1 * random.normal(size=60)

    def train(X, y, plugins):
        model = torch.nn.Linear(X.shape[1], 1, bias=False, dtype=torch.float64)
        torch.nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        with regplug.attach(model, optimizer, plugins):
            for _ in range(200):
                optimizer.zero_grad()
                error = model(torch.tensor(X)) - torch.tensor(y)[:, None]
                (0.5 * error.square().mean()).backward()
                optimizer.step()
        return model

    grid = [0.02, 3.0]
    search = StrengthCV(
        train, {"l1(_, delivery='proximal')": grid}, cv=KFold(3), progress=False, scoring="r2"
    ).fit(X, y)
    (chosen,) = search.best_params_.values()
    assert chosen == 0.02, search.best_params_
    oracle = cross_val_score(Lasso(0.02, fit_intercept=False, tol=1e-12), X, y, cv=KFold(3))
    assert abs(search.best_score_ - oracle.mean()) < 1e-6, (search.best_score_, oracle.mean())
    lines = search.plot().figure.axes[0].lines
    assert lines, "the plot is empty"
