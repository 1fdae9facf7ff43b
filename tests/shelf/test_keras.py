"""Values and gradients against Keras' own regularizers."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import regplug

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("keras") is None, reason="needs keras, of the extra test"
)

CASES = {
    "L1(0.01)": "l1(0.01)",
    "L1(3.5)": "l1(3.5)",
    "L2(0.01)": "l2(0.01)",
    "L2(3.5)": "l2(3.5)",
    "L1L2(0.3, 0.2)": "elastic_net(0.3, 0.2)",
    "L1L2(0.3, 0.0)": "elastic_net(0.3, 0)",
    "L1L2(0.0, 0.2)": "elastic_net(0, 0.2)",
    "L1(0.0)": "l1(0)",
}
SHAPES = [(3, 4), (2, 3, 2, 2), (1, 5)]

# Keras is imported in a process of its own: it chooses its backend once, and is slow to import.
SCRIPT = """
    import json, sys
    import keras, torch
    assert keras.backend.backend() == "torch"
    found = {}
    for case in json.loads(sys.argv[1]):
        name, arguments = case[:-1].split("(")
        kind = getattr(keras.regularizers, name)
        for i, data in enumerate(json.loads(sys.argv[2])):
            w = torch.tensor(data, dtype=torch.float32, requires_grad=True)
            penalty = kind(*map(float, arguments.split(",")))(w)
            if penalty.requires_grad:
                penalty.backward()
            gradient = torch.zeros_like(w) if w.grad is None else w.grad
            found[f"{case} {i}"] = [penalty.item(), gradient.tolist()]
    print(json.dumps(found))
"""


def weight(index):
    generator = torch.Generator().manual_seed(index)
    w = torch.randn(SHAPES[index], generator=generator)
    w.view(-1)[0] = 0.0
    return w


@pytest.fixture(scope="module")
def keras():
    """Return what Keras says of each case and weight: value and gradient."""
    data = [weight(i).tolist() for i in range(len(SHAPES))]
    arguments = [json.dumps(list(CASES)), json.dumps(data)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_values_and_gradients_are_those_of_keras(keras, case, index):
    value, gradient = keras[f"{case} {index}"]
    model = nn.ParameterList([weight(index)])
    spec = CASES[case]
    session = regplug.attach(model, plugins=[spec])
    name = spec.partition("(")[0]
    assert session.metrics()[f"{name}/value"] == pytest.approx(value, rel=1e-5, abs=1e-7)
    total = session.loss(torch.zeros((), requires_grad=True))
    assert total.item() == pytest.approx(value, rel=1e-5, abs=1e-7)
    total.backward()
    ours = torch.zeros_like(model[0]) if model[0].grad is None else model[0].grad
    torch.testing.assert_close(ours, torch.tensor(gradient))


def test_keras_l2_has_no_half(keras):
    value, _ = keras["L2(3.5) 0"]
    assert value == pytest.approx(3.5 * weight(0).square().sum().item(), rel=1e-5)
