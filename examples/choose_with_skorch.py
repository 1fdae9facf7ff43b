"""The same strengths through skorch and scikit-learn's own GridSearchCV.

    python examples/choose_with_skorch.py [--epochs 40]

skorch makes an estimator of a module. A callback of ten lines attaches regplug to its loop, and
the strengths become parameters that GridSearchCV sets by name.
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback

import regplug


class Regularize(Callback):
    """Attaches plugins while the net trains; its arguments are what GridSearchCV varies."""

    def __init__(self, l1=0.0, l2=0.0):
        self.l1, self.l2 = l1, l2

    def on_train_begin(self, net, **kwargs):
        specs = [f"l1({self.l1}, delivery='proximal')", f"l2({self.l2})"]
        self.session_ = regplug.attach(net.module_, net.optimizer_, specs)

    def on_train_end(self, net, **kwargs):
        self.session_.detach()


class Network(torch.nn.Sequential):
    """64 pixels, 32 units, 10 digits."""

    def __init__(self):
        super().__init__(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    epochs = parser.parse_args().epochs
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    X, X_test, y, y_test = train_test_split(X, y, train_size=300, stratify=y, random_state=0)

    torch.manual_seed(0)
    net = NeuralNetClassifier(
        Network,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        lr=0.2,
        optimizer__momentum=0.9,
        max_epochs=epochs,
        batch_size=60,
        train_split=None,
        callbacks=[("regularize", Regularize())],
        verbose=0,
    )
    search = GridSearchCV(
        net,
        {
            "callbacks__regularize__l1": [0.0, 1e-4, 1e-3],
            "callbacks__regularize__l2": [0.0, 1e-3],
        },
        cv=StratifiedKFold(3, shuffle=True, random_state=0),
    ).fit(X, y)
    for params, mean in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        l1, l2 = params.values()
        print(f"  l1({l1:g}) l2({l2:g})  {mean:.3f}")
    weights = [p for p in search.best_estimator_.module_.parameters() if p.ndim > 1]
    left = sum(int(p.count_nonzero()) for p in weights)
    print(f"best: {search.best_params_}")
    print(f"accuracy on the 1497 others: {search.score(X_test, y_test):.3f}, weights left: {left}")


if __name__ == "__main__":
    main()
