"""Keras 3 on torch: the mix-in against plain torch, under clipping and accumulation, and saved."""

import os

import numpy as np
import pytest
import torch

import regplug
from regplug.errors import SpecError, UnsupportedError

pytestmark = [
    pytest.mark.frameworks,
    # Keras' own way to numpy, under a numpy newer than it knows.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = (X.sum(1, keepdims=True) > 0).astype("float32")
SPECS = ["l1(linear(0.02, 0, steps=6))", "weight_decay(0.1)"]


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "torch"  # read when it is imported first
    import keras

    assert keras.backend.backend() == "torch"
    return keras


def optimizer_class(keras, name):
    from regplug.integrations.keras import Regularized

    @keras.saving.register_keras_serializable("tests", name=f"Regularized{name}")
    class Optimizer(Regularized, getattr(keras.optimizers, name)):
        pass

    return Optimizer


def network(keras):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Dense(5, activation="tanh", name="hidden"),
            keras.layers.Dense(1, name="out"),
        ]
    )


def kernels(model):
    return [layer.kernel.numpy() for layer in model.layers]


def plain(keras, optimizer, plugins, epochs, clip=None):
    """The same training in torch, from the same weights."""
    weights = [torch.tensor(w) for w in network(keras).get_weights()]
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), weights, strict=True):
            parameter.copy_(value.mT if value.ndim == 2 else value)
    optimizer = optimizer(net.parameters())
    session = regplug.attach(net, optimizer, plugins)
    for _ in range(epochs):
        for start in range(0, 16, 8):
            x, y = torch.tensor(X[start : start + 8]), torch.tensor(Y[start : start + 8])
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(net(x), y).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
    return [net[0].weight.detach().numpy().T, net[2].weight.detach().numpy().T], session


def fitted(keras, optimizer, plugins, epochs, attach=True):
    model = network(keras)
    model.compile(optimizer, "mse")
    if attach:
        optimizer.attach(model, plugins)
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize(
    ("name", "torch_optimizer", "options", "clip"),
    [
        ("SGD", lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), {"momentum": 0.9}, None),
        ("SGD", lambda p: torch.optim.SGD(p, 0.1), {"global_clipnorm": 0.05}, 0.05),
        ("Adam", lambda p: torch.optim.Adam(p, 0.1), {"epsilon": 1e-8}, None),
    ],
)
def test_fit_trains_as_torch_does(name, torch_optimizer, options, clip, keras):
    optimizer = optimizer_class(keras, name)(0.1, **options)
    model = fitted(keras, optimizer, SPECS, 3)
    expected, _ = plain(keras, torch_optimizer, SPECS, 3, clip)
    assert optimizer.session.steps == 6
    for ours, theirs in zip(kernels(model), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_proximal_zeros_under_plain_sgd_alone(keras):
    spec = ["l1(0.2, delivery='proximal')"]
    model = fitted(keras, optimizer_class(keras, "SGD")(0.1), spec, 3)
    expected, _ = plain(keras, lambda p: torch.optim.SGD(p, 0.1), spec, 3)
    for ours, theirs in zip(kernels(model), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_array_equal(ours == 0, theirs == 0)
    assert any((kernel == 0).any() for kernel in kernels(model))
    with pytest.raises(UnsupportedError, match="delivery='proximal' can't act in Optimizer"):
        fitted(keras, optimizer_class(keras, "Adam")(0.1), spec, 1)


def test_accumulated_batches_are_one_step(keras):
    optimizer = optimizer_class(keras, "SGD")(0.1, gradient_accumulation_steps=2)
    silent = network(keras)
    silent.compile(optimizer, lambda y, p: 0.0 * (y - p) ** 2)
    before = kernels(silent)
    session = optimizer.attach(silent, ["l1(0.5)"])
    silent.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    assert session.steps == 1
    for old, new in zip(before, kernels(silent), strict=True):
        np.testing.assert_allclose(new, old - 0.1 * 0.5 * np.sign(old), atol=1e-6)


def test_a_saved_model_holds_the_session(keras, tmp_path):
    def make():
        return optimizer_class(keras, "SGD")(0.1, momentum=0.9)

    whole = fitted(keras, make(), SPECS, 3)
    half = fitted(keras, make(), SPECS, 2)
    half.save(tmp_path / "half.keras")
    again = keras.saving.load_model(tmp_path / "half.keras")
    session = again.optimizer.attach(again, SPECS)
    assert session.steps == 4
    again.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    for ours, theirs in zip(kernels(again), kernels(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_unbuilt_models_are_refused(keras):
    optimizer = optimizer_class(keras, "SGD")(0.1)
    with pytest.raises(SpecError, match="has no weights yet"):
        optimizer.attach(keras.Sequential([keras.layers.Dense(1)]), ["l1(1)"])
