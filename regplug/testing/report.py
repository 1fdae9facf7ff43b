"""What an exam found: one result per check and regime."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from regplug.table import table
from regplug.testing.registry import ACTS, EXAM

__all__ = ["NOT_JUDGED", "OUTCOMES", "Report", "Result"]

NOT_JUDGED = "not judged"
OUTCOMES = ("passed", "failed", NOT_JUDGED, "skipped", "expected")


@dataclass(frozen=True)
class Result:
    """One check in one regime.

    Attributes:
        plugin: the spec, or the name of a plugin that was given otherwise.
        check: the short id, such as ``"finite-difference"``.
        regime: under what circumstances: a delivery, a number format, a wrapper.
        outcome: ``"passed"``, ``"failed"``, ``"not judged"`` (it depends on a check that failed),
            ``"skipped"`` (it does not apply) or ``"expected"`` (it failed as was said beforehand).
        message: why, where it did not pass.
    """

    plugin: str
    check: str
    regime: str
    outcome: str
    message: str = ""


class Report:
    """The results of one plugin's exam. Its ``str`` is a table with a line for each.

    If something failed, the line before the table is the likeliest cause of it: the first failure,
    since checks are made in the order in which one depends on another.

    Args:
        plugin: the spec, or the name.
        results: in the order in which the checks were made.
        seconds: how long it took.
        notes: what else is to be said of the exam.

    >>> report = Report("l1(1e-3)", [Result("l1(1e-3)", "gradient", "gradient", "passed")], 0.1)
    >>> report.passed
    True
    >>> print(report)
    check     regime    outcome  message
    --------  --------  -------  -------
    gradient  gradient  passed
    l1(1e-3): 1 passed in 0.1 s
    """

    def __init__(
        self, plugin: str, results: Iterable[Result], seconds: float, notes: Iterable[str] = ()
    ) -> None:
        self.plugin, self.results, self.seconds = plugin, tuple(results), seconds
        self.notes = tuple(notes)

    @property
    def passed(self) -> bool:
        """Whether nothing failed that was not expected to, and it was seen to act if asked to."""
        return not self.failures and self.acted

    @property
    def acted(self) -> bool:
        """Whether it was seen to act; True where nobody looked, as with other checks alone."""
        found = {result.outcome for result in self.results if result.check == ACTS}
        return not found or "passed" in found

    @property
    def failures(self) -> tuple[Result, ...]:
        """The results that failed."""
        return self.of("failed")

    def of(self, outcome: str) -> tuple[Result, ...]:
        """Return the results with this outcome."""
        return tuple(result for result in self.results if result.outcome == outcome)

    def failed_checks(self) -> set[str]:
        """Return the ids of the checks that failed in any regime."""
        return {result.check for result in self.failures}

    @property
    def cause(self) -> Result | None:
        """The failure that is the likeliest cause of all others; None if nothing failed."""
        return self.failures[0] if self.failures else None

    def as_json(self) -> list[dict[str, str | int]]:
        """Return the results as plain dicts, each with the version of the exam."""
        return [{**asdict(result), "exam": EXAM} for result in self.results]

    def __str__(self) -> str:
        cause = self.cause
        first = () if cause is None else (f"{cause.check} failed: {_line(cause.message)}",)
        rows = [[r.check, r.regime, r.outcome, _line(r.message)] for r in self.results]
        counts = [(outcome, len(self.of(outcome))) for outcome in OUTCOMES]
        summary = ", ".join(f"{count} {outcome}" for outcome, count in counts if count) or "nothing"
        heads = ["check", "regime", "outcome", "message"]
        last = f"{self.plugin}: {summary} in {self.seconds:.1f} s"
        notes = self.notes
        if not (self.failures or self.acted):
            notes = (*notes, "it was not seen to act, so it has not passed")
        return "\n".join([*first, table(heads, rows), *notes, last])


def _line(message: str, most: int = 240) -> str:
    line = " ".join(message.split())
    return line if len(line) <= most else line[: most - 1] + "…"
