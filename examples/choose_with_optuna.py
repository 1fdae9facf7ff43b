"""The same strengths, chosen by Optuna: plugins are specs, so any search can drive them.

    python examples/choose_with_optuna.py [--trials 30]

A trial suggests two strengths; the loop attaches plugins of these strengths; scikit-learn's
folds score it. Compare choose_strength.py, which tries every combination of a grid.
"""

import argparse

import numpy as np
import optuna
import torch
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, train_test_split

import regplug


def train(X: np.ndarray, y: np.ndarray, plugins: list[str]) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(X.shape[1], 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)
    )
    inputs = torch.tensor(X, dtype=torch.float32)
    targets = torch.tensor(y, dtype=torch.float32)[:, None]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with regplug.attach(model, optimizer, plugins):
        for _ in range(150):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    return model


def score(model: torch.nn.Module, X: np.ndarray, y: np.ndarray) -> float:
    with torch.no_grad():
        return r2_score(y, model(torch.tensor(X, dtype=torch.float32)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=30)
    trials = parser.parse_args().trials
    data = load_diabetes()
    X, y = data.data / data.data.std(axis=0), data.target / data.target.std()
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.4, random_state=0)
    folds = list(KFold(4, shuffle=True, random_state=0).split(X))

    def specs(params: dict[str, float]) -> list[str]:
        return [f"l1({params['l1']}, delivery='proximal')", f"weight_decay({params['decay']})"]

    def objective(trial: optuna.Trial) -> float:
        params = {
            "l1": trial.suggest_float("l1", 1e-4, 1.0, log=True),
            "decay": trial.suggest_float("decay", 1e-3, 3.0, log=True),
        }
        scores = [
            score(train(X[rows], y[rows], specs(params)), X[test], y[test]) for rows, test in folds
        ]
        return float(np.mean(scores))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials)
    best = specs(study.best_params)
    print(f"best of {trials} trials: R² {study.best_value:.3f} with {', '.join(best)}")
    for name, plugins in (("without plugins", []), ("with these", best)):
        found = score(train(X, y, plugins), X_test, y_test)
        print(f"  patients that took no part, {name}: R² {found:.3f}")


if __name__ == "__main__":
    main()
