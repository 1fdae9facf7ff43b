"""Every private name of torch.distributed, Accelerate, scikit-learn and Keras.

What is done where a version has it not: a public way, or :class:`UnsupportedError` names it. None
of these packages is imported before it is needed.
"""

import os
import re
import socket
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import nn

from regplug.backend.living import living
from regplug.errors import UnsupportedError

__all__ = [
    "UpdateStep",
    "default_store",
    "is_prepared",
    "module_of_metric",
    "prefixed_store",
    "prepared_by",
    "rows_of",
]

# Where the names are; a test that renames one sees what is done without it.
_STORE = "_get_default_store"
_PREPARED, _OPTIMIZERS, _MODELS = "_is_accelerate_prepared", "_optimizers", "_models"
_INDEXING, _METRIC = "_safe_indexing", "_score_func"
_UPDATE = "_backend_update_step"


# --- torch.distributed -------------------------------------------------------------------------

_own_stores: dict[int, Any] = {}


def prefixed_store(prefix: str) -> Any:
    """Return a key-value store that all ranks see, of keys under ``prefix`` alone."""
    return dist.PrefixStore(prefix, default_store())  # type: ignore[attr-defined]


def default_store(timeout: float = 60.0) -> Any:
    """Return the key-value store through which the process group was made.

    Without torch's function: a store of our own, which the first rank opens and tells the others
    of, by a collective of all ranks the first time.

    Args:
        timeout: how many seconds a rank waits for what another is to set in a store of our own.
    """
    private = getattr(dist.distributed_c10d, _STORE, None)
    if private is not None:
        return private()
    group: Any = dist.group.WORLD
    if id(group) not in _own_stores:
        first, wait = dist.get_rank() == 0, timedelta(seconds=timeout)
        host = os.environ.get("MASTER_ADDR") or socket.gethostname()
        store = None
        make: Any = partial(dist.TCPStore, timeout=wait, wait_for_workers=False)  # type: ignore[attr-defined]
        if first:
            store = make(host, 0, is_master=True)
        where: list[Any] = [(host, store.port) if store is not None else None]
        dist.broadcast_object_list(where, src=0)
        if store is None:
            store = make(*where[0], is_master=False)
        # With the group, so that another one, made after this is gone, can't be taken for it.
        _own_stores.clear()
        _own_stores[id(group)] = (group, store)
    return _own_stores[id(group)][1]


# --- Accelerate --------------------------------------------------------------------------------


def is_prepared(layers: Sequence[nn.Module]) -> bool:
    """Whether Accelerate has prepared one of ``layers``, a model and what it wraps, by its mark.

    Without the mark: by the list of a living Accelerator. A session whose optimizer Accelerate
    wraps is known by that, so this matters where the optimizer is given unwrapped.
    """
    if any(getattr(layer, _PREPARED, False) for layer in layers):
        return True
    held = [model for one in _accelerators() for model in getattr(one, _MODELS, ())]
    return any(layer is model for layer in layers for model in held)


def prepared_by(optimizer: object) -> list[Any]:
    """Return the living accelerators that prepared ``optimizer``, which knows nothing of them.

    Raises:
        UnsupportedError: there is one, and it does not say what it prepared.
    """
    living = _accelerators()
    if living and not any(hasattr(one, _OPTIMIZERS) for one in living):
        raise UnsupportedError(
            f"this version of Accelerate has no Accelerator.{_OPTIMIZERS}, by which regplug knows "
            "whose checkpoints are to hold the session's state: give it, "
            "attach(…, accelerator=accelerator)"
        )
    return [
        one for one in living if any(held is optimizer for held in getattr(one, _OPTIMIZERS, ()))
    ]


def _accelerators() -> list[Any]:
    if "accelerate" not in sys.modules:
        return []
    from accelerate import Accelerator
    from accelerate.state import is_initialized

    if not is_initialized():  # as each is that was made: it needn't be looked for
        return []
    return living(lambda kind: issubclass(kind, Accelerator))


# --- scikit-learn ------------------------------------------------------------------------------


def rows_of(data: Any, index: Any) -> Any:
    """Return the rows of an array, a sparse matrix, a data frame or a list.

    Without scikit-learn's function: by what each kind of data takes itself.
    """
    import sklearn.utils

    private = getattr(sklearn.utils, _INDEXING, None)
    if private is not None:
        return private(data, index)
    if hasattr(data, "iloc"):  # pandas
        return data.iloc[index]
    if hasattr(data, "tocsr"):  # of sparse ones not all kinds take rows
        return data.tocsr()[index]
    if hasattr(data, "take") and not hasattr(data, "__array_interface__"):  # pyarrow
        return data.take(index)
    if hasattr(data, "shape"):
        return data[index]
    return [data[int(row)] for row in index]


def module_of_metric(scorer: object) -> str:
    """Return the module of the metric that a scorer of scikit-learn's is made of, "" for others.

    Without the attribute: by the metric's name, which the scorer's repr begins with.
    """
    metric = getattr(scorer, _METRIC, None)
    if metric is None and type(scorer).__module__.startswith("sklearn.metrics."):
        import sklearn.metrics

        named = re.match(r"make_scorer\((\w+)", repr(scorer))
        metric = getattr(sklearn.metrics, named[1], None) if named else None
    return getattr(metric, "__module__", None) or ""


# --- Keras -------------------------------------------------------------------------------------


class UpdateStep:
    """A mix-in for a Keras optimizer: :meth:`around_update` is called around each real update."""

    def check_update_step(self) -> None:
        """Check that Keras calls the method that is overridden here.

        Raises:
            UnsupportedError: it has none of that name, and would never call this one.
        """
        if not callable(getattr(super(), _UPDATE, None)):
            raise UnsupportedError(
                f"the optimizers of this version of Keras have no {_UPDATE}, around which regplug "
                "fires its events: write the loop yourself, with regplug.attach(model, plugins=…) "
                "and `with session.step(lr=…):` around optimizer.apply(…)"
            )

    def around_update(self, update: Any, grads: Any, variables: Any, learning_rate: Any) -> None:
        """Call ``update(grads, variables, learning_rate)``."""
        raise NotImplementedError

    def _backend_update_step(self, grads: Any, variables: Any, learning_rate: Any) -> None:
        update: Any = super()._backend_update_step  # type: ignore[misc]
        self.around_update(update, grads, variables, learning_rate)
