"""What is to be said of a run: findings with fixed codes, worst first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SEVERITIES", "Finding", "listed"]

SEVERITIES = ("error", "warning", "note")
"""From the worst on. A sound run may have notes, never more."""


@dataclass(frozen=True)
class Finding:
    """One thing that is to be said.

    Attributes:
        code: what kind of thing: one of those of ``docs/doctor.md``.
        severity: one of ``SEVERITIES``.
        parameters: the names of the parameters that it is about, or of modules.
        message: what it is, and the way out.
        values: the numbers behind it.
    """

    code: str
    severity: str
    parameters: tuple[str, ...]
    message: str
    values: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "code": self.code,
            "severity": self.severity,
            "parameters": list(self.parameters),
            "message": self.message,
            "values": self.values,
        }

    def __str__(self) -> str:
        return f"{self.severity}: {self.code}: {self.message}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return a few of ``names``, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def worst_first(found: Iterable[Finding]) -> list[Finding]:
    """Return the findings in the order of their severities."""
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
