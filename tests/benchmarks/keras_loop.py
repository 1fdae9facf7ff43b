"""Keras on the torch backend without and with its own regularizers, in a process of its own.

Wants ``KERAS_BACKEND=torch``. Prints one JSON object: the ratio of the two times of a batch.
"""

import json
import sys

import keras
import numpy
import torch
from timing import in_turn


def step(regularizer: object) -> object:
    """Return one training step of the textbook network."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Dense(50, activation="relu", kernel_regularizer=regularizer),
            keras.layers.Dense(10, kernel_regularizer=regularizer),
        ]
    )
    model.compile(optimizer=keras.optimizers.SGD(1e-3), loss="mse")
    random = numpy.random.default_rng(0)
    x = random.standard_normal((100, 10), dtype="float32")
    y = random.standard_normal((100, 10), dtype="float32")
    return lambda: model.train_on_batch(x, y)


if __name__ == "__main__":
    torch.set_num_threads(1)
    bare, regularized = in_turn(
        {"bare": step(None), "L1L2": step(keras.regularizers.L1L2(1e-4, 1e-4))},
        rounds=int(sys.argv[1]),
        seconds=0.05,
    )
    print(
        json.dumps({"ratio": regularized.median, "low": regularized.low, "high": regularized.high})
    )
