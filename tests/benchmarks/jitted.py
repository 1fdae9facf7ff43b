"""The same formulas in optax under ``jax.jit`` on a CPU: ratios to a bare pass, jitted too.

    python tests/benchmarks/jitted.py TENSORS EACH ROUNDS

Arguments are donated, so that each result takes the place of what it is computed from.
"""

import dataclasses
import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"

import functools

import jax
import jax.numpy as jnp
import optax
from timing import in_turn

LAMBDA = 1e-4


def main(tensors: int, each: int, rounds: int) -> None:
    """Print the ratios as JSON."""
    keys = jax.random.split(jax.random.key(0), tensors)
    weights = [jax.random.normal(key, (each,)) for key in keys]
    decay = optax.add_decayed_weights(LAMBDA)
    none = decay.init(weights)

    @functools.partial(jax.jit, donate_argnums=0)
    def bare(gradients, weights):
        return [g + LAMBDA * w for g, w in zip(gradients, weights, strict=True)]

    @functools.partial(jax.jit, donate_argnums=0)
    def l2(gradients, weights):
        return decay.update(gradients, none, weights)[0]

    @functools.partial(jax.jit, donate_argnums=0)
    def l1(gradients, weights):
        return [g + LAMBDA * jnp.sign(w) for g, w in zip(gradients, weights, strict=True)]

    @functools.partial(jax.jit, donate_argnums=0)
    def proximal_adam(weights, seconds):
        def moved(w, v):
            size = LAMBDA * 1e-9 / (jnp.sqrt(v) + 1e-8)
            return jnp.sign(w) * jnp.maximum(jnp.abs(w) - size, 0)

        return [moved(w, v) for w, v in zip(weights, seconds, strict=True)]

    held = {"gradients": [jnp.ones_like(w) for w in weights], "weights": weights}
    held["seconds"] = [jnp.ones_like(w) for w in weights]

    def turn(function, written, read):
        def run() -> None:
            held[written] = jax.block_until_ready(function(held[written], held[read]))

        return run

    candidates = {
        "bare pass under jit": turn(bare, "gradients", "weights"),
        "optax.add_decayed_weights": turn(l2, "gradients", "weights"),
        "l1 at the step": turn(l1, "gradients", "weights"),
        "l1, proximal, Adam": turn(proximal_adam, "weights", "seconds"),
    }
    ratios = [dataclasses.asdict(ratio) for ratio in in_turn(candidates, rounds=rounds)]
    print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
