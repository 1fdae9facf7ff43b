"""The data of a search: checked once, cut into folds, and what kind of target it is."""

import math
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import check_cv

from regplug.backend.others import rows_of
from regplug.errors import SpecError

__all__ = [
    "Kind",
    "Split",
    "as_numpy",
    "check_data",
    "check_weight",
    "kind_of",
    "length",
    "rows",
    "scored",
    "splits_of",
]

Kind: TypeAlias = Literal["regression", "classification"]
Split: TypeAlias = tuple[NDArray[np.intp], NDArray[np.intp]]


def check_data(X: Any, y: Any, groups: Any = None) -> tuple[Any, Any]:
    """Return ``X`` and ``y``, as arrays, tensors or data frames of one length without NaN.

    Lists become arrays; everything else is handed on as it is, so that a loop gets what its owner
    has.

    Raises:
        SpecError: they are empty or of different lengths, or hold NaN or infinities.
    """
    X, y = (np.asarray(data) if isinstance(data, list | tuple) else data for data in (X, y))
    if y is None:
        raise SpecError("y is None: scores need a target")
    for name, data in (("X", X), ("y", y)):
        if not hasattr(data, "shape") or not len(data.shape):
            raise SpecError(f"{name} must be an array, a tensor or a data frame, got {data!r}")
        _check_finite(name, data)
    if length(X) == 0:
        raise SpecError("X is empty")
    for name, data in (("y", y), ("groups", groups)):
        if data is not None and length(data) != length(X):
            raise SpecError(f"X has {length(X)} rows and {name} has {length(data)}")
    return X, y


def check_weight(weight: Any, X: Any) -> Any:
    """Return weights of rows, lists as an array.

    Raises:
        SpecError: they are not one finite number for each row.
    """
    weight = np.asarray(weight) if isinstance(weight, list | tuple) else weight
    if not hasattr(weight, "shape") or tuple(weight.shape) != (length(X),):
        given = tuple(weight.shape) if hasattr(weight, "shape") else repr(weight)
        raise SpecError(
            f"sample_weight must be one number for each of {length(X)} rows, got {given}"
        )
    if as_numpy(weight).dtype.kind not in "biuf":
        raise SpecError(f"sample_weight must be numbers, got {weight!r}")
    _check_finite("sample_weight", weight)
    return weight


def _check_finite(name: str, data: Any) -> None:
    if isinstance(data, torch.Tensor):
        wrong = ~torch.isfinite(data) if data.is_floating_point() else torch.zeros(0, device="cpu")
        count, where = int(wrong.sum()), wrong.nonzero()[:1].flatten().tolist()
    else:
        array = np.asarray(data)
        if array.dtype == object:  # a data frame of mixed columns, or labels with gaps
            bad = np.vectorize(_is_missing, otypes=[bool])(array)
        elif array.dtype.kind in "fc":
            bad = ~np.isfinite(array)
        else:
            return
        count = int(bad.sum())
        where = np.argwhere(bad)[0].tolist() if count else []
    if count:
        values = "values that are" if count > 1 else "value that is"
        raise SpecError(f"{name} holds {count} {values} NaN or infinite, the first at {where}")


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # as pandas has them
        return True
    return isinstance(value, float) and not math.isfinite(value)


def length(data: Any) -> int:
    """Return the number of rows."""
    return int(data.shape[0]) if hasattr(data, "shape") else len(data)


def rows(data: Any, index: NDArray[np.intp]) -> Any:
    """Return the rows of an array, a tensor or a data frame, as a copy of the same kind."""
    if isinstance(data, torch.Tensor):
        return data[torch.as_tensor(index, device=data.device)]
    return rows_of(data, index)


def as_numpy(data: Any) -> NDArray[Any]:
    """Return an array, whatever holds the numbers; objects that are all numbers become numbers."""
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu()
        return np.asarray(data.float() if data.dtype == torch.bfloat16 else data)
    array = np.asarray(data)
    if not array.dtype.isnative:  # torch takes none of these
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == object and array.size:  # pandas' types with gaps, which have none here
        plain = np.array(array.tolist())
        if plain.dtype.kind in "biuf" and plain.shape == array.shape:
            return plain
    return array


def scored(y: Any, kind: Kind) -> Any:
    """Return a target as scorers take it: pandas' types with gaps as an array, values as floats."""
    if kind == "regression" and (array := as_numpy(y)).dtype.kind in "biu":
        return array.astype(np.float64)
    if isinstance(y, torch.Tensor):
        return y
    dtypes = y.dtypes if hasattr(y, "columns") else [y.dtype]
    plain = all(isinstance(dtype, np.dtype) and dtype.kind != "O" for dtype in dtypes)
    return y if plain else as_numpy(y)


def kind_of(y: Any) -> Kind:
    """Return what is learned: floating targets are a regression, all others classes.

    The numbers themselves are not judged: a target of whole numbers that are stored as floats
    (diabetes' disease progression, say) is a regression.

    >>> kind_of(np.array([151.0, 75.0])), kind_of(np.array(["cat", "dog"]))
    ('regression', 'classification')
    """
    if isinstance(y, torch.Tensor):
        return "regression" if y.is_floating_point() else "classification"
    return "regression" if as_numpy(y).dtype.kind == "f" else "classification"


def splits_of(cv: Any, X: Any, y: Any, groups: Any, kind: Kind) -> list[Split]:
    """Return the (train, test) row numbers of every fold.

    Args:
        cv: a number of folds, any splitter of scikit-learn, or an iterable of splits.
        X: the rows, of which only the number matters.
        y: the target, for splitters that stratify.
        kind: a number of folds means stratified ones for classes.
        groups: for splitters that keep groups together, one label for each row.

    Raises:
        SpecError: the splitter refuses the data (more folds than rows, no groups for one that
            needs them), or a fold has no rows to train on or to score.
    """
    target = as_numpy(y)
    try:
        splitter = check_cv(cv, target, classifier=kind == "classification")
        found: Iterable[Any] = splitter.split(np.zeros(length(X)), target, groups)
        splits = [(np.asarray(train), np.asarray(test)) for train, test in found]
    except (ValueError, TypeError) as error:
        raise SpecError(f"cv={cv!r} can't split {length(X)} rows: {error}") from error
    if not splits:
        raise SpecError(f"cv={cv!r} yields no fold")
    for number, (train, test) in enumerate(splits):
        if not len(train) or not len(test):
            part = "test" if len(train) else "training"
            raise SpecError(f"cv={cv!r}: fold {number} has no {part} rows")
    return splits
