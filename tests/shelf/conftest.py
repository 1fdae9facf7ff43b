"""Keras, an oracle here, on its torch backend."""

import os

os.environ["KERAS_BACKEND"] = "torch"
