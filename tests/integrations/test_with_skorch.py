"""skorch: fits, partial fits, pickles, and strengths chosen by scikit-learn's own search."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import regplug

pytestmark = pytest.mark.frameworks

PLUGINS = ["l1(linear(0.05, 0, steps=8), delivery='proximal')", "weight_decay(0.1)"]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 5)).astype(np.float32)
Y = (X[:, :1] - X[:, 1:2]).astype(np.float32)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(5, 6), nn.Linear(6, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x)))


def estimator(plugins=PLUGINS, epochs=2):
    from skorch import NeuralNetRegressor

    from regplug.integrations.skorch import RegplugCallback

    return NeuralNetRegressor(
        Net,
        max_epochs=epochs,
        lr=0.1,
        batch_size=6,
        train_split=None,
        verbose=0,
        callbacks=[("regplug", RegplugCallback(plugins))],
    )


def plain(plugins, epochs):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    regplug.attach(net, optimizer, plugins)
    for _ in range(epochs):
        for start in range(0, len(X), 6):
            batch = slice(start, start + 6)
            optimizer.zero_grad()
            nn.functional.mse_loss(net(torch.tensor(X[batch])), torch.tensor(Y[batch])).backward()
            optimizer.step()
    return net


def same(net, other):
    return all(map(torch.equal, net.module_.parameters(), other.parameters()))


def test_fits_train_as_a_plain_loop(tmp_path):
    net = estimator().fit(X, Y)
    session = dict(net.callbacks_)["regplug"].session_
    assert session.steps == 8
    assert same(net, plain(PLUGINS, 2))
    net.fit(X, Y)  # anew
    assert same(net, plain(PLUGINS, 2))
    assert dict(net.callbacks_)["regplug"].session_ is not session


def test_a_partial_fit_goes_on_and_so_does_a_pickled_net():
    net = estimator(epochs=1).fit(X, Y)
    copy = pickle.loads(pickle.dumps(net))
    for going_on in (net, copy):
        going_on.partial_fit(X, Y)
        assert dict(going_on.callbacks_)["regplug"].session_.steps == 8
        assert same(going_on, plain(PLUGINS, 2))


def test_saved_parameters_with_the_session_beside_them_go_on(tmp_path):
    net = estimator(epochs=1).fit(X, Y)
    net.save_params(f_params=tmp_path / "net.pt", f_optimizer=tmp_path / "optimizer.pt")
    torch.save(dict(net.callbacks_)["regplug"].session_.state_dict(), tmp_path / "regplug.pt")
    again = estimator(epochs=1).initialize()
    again.load_params(f_params=tmp_path / "net.pt", f_optimizer=tmp_path / "optimizer.pt")
    state = torch.load(tmp_path / "regplug.pt", weights_only=True)
    dict(again.callbacks_)["regplug"].load_state_dict(state)
    again.partial_fit(X, Y)
    assert same(again, plain(PLUGINS, 2))


def test_a_search_over_strengths():
    from sklearn.model_selection import GridSearchCV

    grid = {"callbacks__regplug__plugins": [["l2(10)"], ["l2(1e-4)"]]}
    search = GridSearchCV(estimator(epochs=12), grid, cv=2, scoring="neg_mean_squared_error")
    search.fit(X, Y)
    assert search.best_params_ == {"callbacks__regplug__plugins": ["l2(1e-4)"]}
