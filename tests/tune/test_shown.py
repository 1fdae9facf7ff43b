"""What a notebook shows of a search."""

import re

import numpy as np
import torch

from regplug.tune import StrengthCV


def train(X, y, plugins):
    import regplug

    model = torch.nn.Linear(3, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, plugins):
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(torch.tensor(X)), torch.tensor(y)).backward()
            optimizer.step()
    return model


def test_before_a_fit_it_is_scikit_learns_view_and_then_the_scores():
    search = StrengthCV(train, {"l1": [1.0, 0.1, 0.01], "l2": [0.1, 0.01]}, cv=2, progress=False)
    assert "StrengthCV" in search._repr_html_()
    assert "sk-" in search._repr_mimebundle_()["text/html"]
    random = np.random.default_rng(0)
    X = random.normal(size=(40, 3))
    search.fit(X, X @ np.ones((3, 1)))
    shown = search._repr_mimebundle_()["text/html"]
    assert shown == search._repr_html_()
    cells = re.findall(r"<td>(.*?)</td>", shown)
    rows = [cells[i : i + 5] for i in range(0, len(cells), 5)]
    assert len(rows) == 6
    best = search.best_params_
    assert rows[0][:2] == [f"{value:g}" for value in best.values()]
    assert rows[0][2].startswith(f"{search.best_score_:.4g}")
    assert "best" in rows[0][4]
    scores = [float(row[2].split()[0]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert sum("one SE" in row[4] for row in rows) == 1
