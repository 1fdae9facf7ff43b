"""What a search has done, in a file, line by line, so that a stopped one goes on where it was.

The first line tells what the scores belong to (data, folds, scoring, seed, loop); each other line
is one fit. Strengths are stored with their scores, so that a grid may grow in between.
"""

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from regplug.errors import StateError
from regplug.tune.data import Split, as_numpy
from regplug.tune.fits import Fit, Outcome

__all__ = ["Journal", "fingerprint"]


def fingerprint(
    X: Any, y: Any, splits: Sequence[Split], weight: Any = None, **other: str
) -> dict[str, str]:
    """Return short hashes of the data and the folds, and whatever else the scores depend on."""
    if weight is not None:
        other["sample_weight"] = str(joblib.hash(as_numpy(weight)))
    folds = hashlib.sha256()
    for train, test in splits:
        folds.update(train.astype(np.int64).tobytes() + b"|" + test.astype(np.int64).tobytes())
    return {
        "X": str(joblib.hash(as_numpy(X))),
        "y": str(joblib.hash(as_numpy(y))),
        "folds": folds.hexdigest()[:32],
        **other,
    }


class Journal:
    """The file of one search.

    Args:
        path: where it is, or will be.
        about: what its scores belong to, as from :func:`fingerprint`.

    Raises:
        StateError: the file is none of these, or belongs to another search; it says what differs.
    """

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, str]) -> None:
        self.path = Path(path)
        self._about = dict(about)
        self._done: dict[tuple[str, int], Outcome] = {}
        self._waiting = ""  # what did not fit on the disk yet
        try:
            if not (self.path.exists() and self.path.stat().st_size and self._read()):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                header = json.dumps({"regplug.tune": 1, **self._about})
                self.path.write_text(f"{header}\n", encoding="utf-8")
        except OSError as error:
            why = error.strerror or error
            raise StateError(f"resume={str(self.path)!r} can't be used: {why}") from error

    def outcome(self, fit: Fit) -> Outcome | None:
        """Return what came of ``fit``, if it was done before."""
        found = self._done.get((_key(fit.params), fit.fold))
        return None if found is None else Outcome(**{**vars(found), "candidate": fit.candidate})

    def add(self, params: Sequence[Mapping[str, float]], outcomes: Sequence[Outcome]) -> None:
        """Write fits that are done; ``params`` are those of every candidate."""
        lines = []
        for one in outcomes:
            weights = None if one.weights is None else one.weights.tolist()
            entry = {"params": dict(params[one.candidate]), **vars(one), "weights": weights}
            del entry["candidate"]
            lines.append(json.dumps(entry))
        told = bool(self._waiting)
        self._waiting += "".join(f"{line}\n" for line in lines)
        try:
            self._append(self._waiting.encode())
        except OSError as error:
            # The search itself has lost nothing, and goes on.
            if not told:
                warnings.warn(
                    f"resume={str(self.path)!r} can't be written ({error.strerror or error}); what "
                    "is done is kept for as long as this search runs, and written once it can be",
                    stacklevel=2,
                )
        else:
            self._waiting = ""

    def _append(self, data: bytes) -> None:
        whole = self.path.stat().st_size
        try:
            with self.path.open("ab", buffering=0) as file:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):  # half a line would spoil the next
                os.truncate(self.path, whole)
            raise

    def _read(self) -> bool:
        """Read what is done; tell whether there was as much as a header."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        header = json.dumps({"regplug.tune": 1, **self._about})
        if "\n" not in text and header.startswith(text):
            return False  # it stopped while it began
        first, *others = text.removesuffix("\n").split("\n")
        try:
            about = json.loads(first)
            version = about.pop("regplug.tune")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise StateError(
                f"resume={str(self.path)!r} is no file of an earlier search"
            ) from error
        if version != 1 or about != self._about:
            wrong = [
                k for k in self._about.keys() | about.keys() if about.get(k) != self._about.get(k)
            ]
            told = ", ".join(sorted(wrong)) or "its format"
            raise StateError(
                f"resume={str(self.path)!r} belongs to another search: {told} differ; give "
                "splitters that shuffle a random_state, or start afresh with another file"
            )
        for number, line in enumerate(others, start=2):
            if number == len(others) + 1 and not text.endswith("\n"):
                break  # the line that was being written when it stopped
            try:
                key, one = _entry(json.loads(line))
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
                raise StateError(
                    f"resume={str(self.path)!r}: line {number} is damaged; take it out, and its "
                    "fit is done again"
                ) from error
            self._done[key, one.fold] = one
        if not text.endswith("\n"):
            whole = text[: text.rindex("\n") + 1] if others else f"{first}\n"
            self.path.write_text(whole, encoding="utf-8")
        return True


def _entry(entry: Any) -> tuple[str, Outcome]:
    """Return what a line says: the strengths, as a key, and what came of them."""
    params, weights = entry.pop("params"), entry.pop("weights")
    if weights is not None:
        weights = np.asarray(weights)
        if weights.dtype.kind not in "fiu":
            raise ValueError("weights are numbers")
    one = Outcome(candidate=-1, weights=weights, **entry)
    if type(one.fold) is not int or not isinstance(one.score, int | float):
        raise TypeError("fold and score are numbers")
    return _key(params), one


def _key(params: Mapping[str, float]) -> str:
    return json.dumps(sorted((key, float(value)) for key, value in params.items()))
