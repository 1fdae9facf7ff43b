"""What an exam found: one result per check and regime."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from regplug.table import table

__all__ = ["OUTCOMES", "Report", "Result"]

OUTCOMES = ("passed", "failed", "skipped", "expected")


@dataclass(frozen=True)
class Result:
    """One check in one regime.

    Attributes:
        plugin: the spec, or the name of a plugin that was given otherwise.
        check: the short id, such as ``"finite-difference"``.
        regime: under what circumstances: a delivery, a number format, a wrapper.
        outcome: ``"passed"``, ``"failed"``, ``"skipped"`` (it does not apply) or ``"expected"`` (it
            failed as was said beforehand).
        message: why, where it did not pass.
    """

    plugin: str
    check: str
    regime: str
    outcome: str
    message: str = ""


class Report:
    """The results of one plugin's exam. Its ``str`` is a table with a line for each.

    Args:
        plugin: the spec, or the name.
        results: in the order in which the checks were made.
        seconds: how long it took.

    >>> report = Report("l1(1e-3)", [Result("l1(1e-3)", "gradient", "gradient", "passed")], 0.1)
    >>> report.passed
    True
    >>> print(report)
    check     regime    outcome  message
    --------  --------  -------  -------
    gradient  gradient  passed
    l1(1e-3): 1 passed in 0.1 s
    """

    def __init__(self, plugin: str, results: Iterable[Result], seconds: float) -> None:
        self.plugin, self.results, self.seconds = plugin, tuple(results), seconds

    @property
    def passed(self) -> bool:
        """Whether nothing failed that was not expected to."""
        return not self.failures

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

    def as_json(self) -> list[dict[str, str]]:
        """Return the results as plain dicts."""
        return [asdict(result) for result in self.results]

    def __str__(self) -> str:
        rows = [[r.check, r.regime, r.outcome, _line(r.message)] for r in self.results]
        counts = [(outcome, len(self.of(outcome))) for outcome in OUTCOMES]
        summary = ", ".join(f"{count} {outcome}" for outcome, count in counts if count) or "nothing"
        heads = ["check", "regime", "outcome", "message"]
        return f"{table(heads, rows)}\n{self.plugin}: {summary} in {self.seconds:.1f} s"


def _line(message: str, most: int = 240) -> str:
    line = " ".join(message.split())
    return line if len(line) <= most else line[: most - 1] + "…"
