"""Choosing strengths: a lasso path on diabetes, two strengths on digits, the textbook's search.

    python examples/choose_strength.py [--out FOLDER] [--quick]

1. Diabetes (442 patients, 10 measurements): a handwritten loop, an automatic grid for the lasso,
   warm starts along the path, and the one-standard-error rule.
2. Digits (300 images): every combination of two strengths, all folds trained at once.
3. The textbook's search, made right: 6 x 6 strengths of L1 and L2 in the loss of a small network,
   5 folds, that is 180 fits. Three ways to run it, and how long each takes.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from torch import nn

import regplug
from regplug.tune import Auto, Recipe, StrengthCV


def lasso_loop(X, y, plugins, start=None):
    """Gradient descent with momentum on ½·MSE: any loop of your own."""
    model = nn.Linear(X.shape[1], 1, dtype=torch.float64)
    for p in model.parameters():
        nn.init.zeros_(p)
    if start is not None:
        model.load_state_dict(start.state_dict())
    inputs, targets = torch.tensor(X), torch.tensor(y)[:, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    with regplug.attach(model, optimizer, plugins):
        for _ in range(150):
            optimizer.zero_grad()
            loss = 0.5 * nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
    return model


def diabetes(out: Path, quick: bool) -> None:
    data = load_diabetes()
    X, y = data.data / data.data.std(axis=0), data.target / data.target.std()
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.4, random_state=0)
    search = StrengthCV(
        lasso_loop,
        {"l1": Auto(eps=1e-3, n=4 if quick else 20)},
        cv=KFold(3 if quick else 10, shuffle=True, random_state=0),
        rule="one_se",
    ).fit(X, y)
    print("\nDiabetes, lasso: R² on patients that took no part, and the measurements it needs")
    for name, params in (("best", search.best_params_), ("one_se", search.one_se_params_)):
        model = lasso_loop(X, y, [f"l1({params['l1']}, delivery='proximal')"])
        score = r2_score(y_test, model(torch.tensor(X_test)).detach())
        kept = [n for n, w in zip(data.feature_names, model.weight[0], strict=True) if w != 0]
        print(f"  {name:7} l1({params['l1']:.3g})  {score:.3f}  {len(kept):2} {' '.join(kept)}")
    search.plot().figure.savefig(out / "diabetes_scores.png", dpi=120)
    search.plot_path(names=data.feature_names).figure.savefig(out / "diabetes_path.png", dpi=120)


def digits_network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits(out: Path, quick: bool) -> None:
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    X, X_test, y, y_test = train_test_split(X, y, train_size=300, stratify=y, random_state=0)
    recipe = Recipe(
        digits_network,
        nn.CrossEntropyLoss(),
        functools.partial(torch.optim.SGD, lr=0.2, momentum=0.9),
        epochs=5 if quick else 60,
        batch_size=60,
    )
    few = slice(None, None, 2) if quick else slice(None)
    grid = {
        "l1(_, delivery='proximal')": np.geomspace(1e-4, 1e-2, 5)[few],
        "l2": np.geomspace(1e-4, 1e-2, 5)[few],
    }
    cv = StratifiedKFold(2 if quick else 5, shuffle=True, random_state=0)
    search = StrengthCV(recipe, grid, cv=cv, scoring="neg_log_loss", rule="one_se").fit(X, y)
    plain = recipe(X, y, []).eval()
    print("\nDigits, 300 images: accuracy on the 1497 others, and the weights that are left")
    for name, model in (
        ("none", plain),
        ("best", recipe(X, y, _specs(search.best_params_))),
        ("one_se", search.best_model_),
    ):
        score = accuracy_score(y_test, model(torch.tensor(X_test)).argmax(1))
        left = sum(int(p.count_nonzero()) for p in model.parameters() if p.ndim > 1)
        print(f"  {name:7} {score:.3f}  {left:5} of {64 * 32 + 32 * 10}")
    search.plot().figure.savefig(out / "digits_scores.png", dpi=120)


def _specs(params: dict[str, float]) -> list[str]:
    l1, l2 = params.values()
    return [f"l1({l1}, delivery='proximal')", f"l2({l2})"]


def textbook_network() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 10))


def textbook_loop(X, y, plugins):
    """As textbooks write it: both penalties in the loss, by hand."""
    torch.manual_seed(0)
    model = textbook_network()
    inputs, targets = torch.tensor(X), torch.tensor(y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    l1, l2 = (plugin.strength for plugin in plugins)
    weights = [p for p in model.parameters() if p.ndim > 1]
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss = loss + l1 * sum(w.abs().sum() for w in weights)
        loss = loss + l2 * sum(w.square().sum() for w in weights)
        loss.backward()
        optimizer.step()
    return model


def textbook(out: Path, quick: bool) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 10)).astype(np.float32)
    true = rng.normal(size=(10, 10)) * (rng.random((10, 10)) < 0.3)
    y = (X @ true + 2 * rng.normal(size=(100, 10))).astype(np.float32)
    strengths = np.geomspace(1e-5, 1e-1, 2 if quick else 6)
    recipe = Recipe(
        textbook_network,
        nn.MSELoss(),
        functools.partial(torch.optim.SGD, lr=0.1),
        epochs=100,
    )
    ways: Sequence[tuple[str, Callable, int | None]] = (
        ("a handwritten loop", textbook_loop, None),
        ("the same, n_jobs=2", textbook_loop, 2),
        ("a Recipe", recipe, None),
    )
    rows = []
    for name, train, n_jobs in ways:
        for grid in ({"l1": [0.1], "l2": [0.1]}, {"l1": strengths, "l2": strengths}):  # warm up
            began = time.perf_counter()
            search = StrengthCV(train, grid, n_jobs=n_jobs, progress=False).fit(X, y)
            seconds = time.perf_counter() - began
        rows.append((name, seconds, search.best_params_))
    fits = len(strengths) ** 2 * 5
    print(f"\nThe textbook's search, {fits} fits on {torch.get_num_threads()} thread each")
    for name, seconds, best in rows:
        told = ", ".join(f"{key}={value:.2g}" for key, value in best.items())
        print(f"  {name:19} {seconds:6.2f} s  {rows[0][1] / seconds:4.1f} x  best {told}")
    search.plot().figure.savefig(out / "textbook_scores.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("choose_strength"))
    parser.add_argument("--quick", action="store_true", help="smaller grids, fewer folds")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in (diabetes, digits, textbook):
        part(arguments.out, arguments.quick)
    print(f"\nPictures: {', '.join(str(p) for p in sorted(arguments.out.glob('*.png')))}")


if __name__ == "__main__":
    main()
