"""What a search has done, in a file, line by line, so that a stopped one goes on where it was.

The first line tells what the scores belong to (data, folds, scoring, seed, loop); each other line
is one fit. Strengths are stored with their scores, so that a grid may grow in between.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
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
        if self.path.exists() and self.path.stat().st_size:
            self._read()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write([json.dumps({"regplug.tune": 1, **self._about})], "w")

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
        self._write(lines, "a")

    def _write(self, lines: Sequence[str], mode: str) -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8", errors="replace")
        first, *others = text.splitlines()
        try:
            about = json.loads(first)
            version = about.pop("regplug.tune")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
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
            try:
                entry = json.loads(line)
                params, weights = entry.pop("params"), entry.pop("weights")
                one = Outcome(
                    candidate=-1,
                    weights=None if weights is None else np.asarray(weights),
                    **entry,
                )
            except (ValueError, KeyError, TypeError) as error:
                if number == len(others) + 1:  # the line that was being written when it stopped
                    break
                raise StateError(f"resume={str(self.path)!r}: line {number} is damaged") from error
            self._done[_key(params), one.fold] = one
        if not text.endswith("\n"):
            whole = text[: text.rindex("\n") + 1]
            self.path.write_text(whole, encoding="utf-8")


def _key(params: Mapping[str, float]) -> str:
    return json.dumps(sorted((key, float(value)) for key, value in params.items()))
