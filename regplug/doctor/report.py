"""What is told of the runs of a program, for people and as JSON."""

import math
from collections.abc import Sequence
from typing import Any

from regplug.doctor.checks import CHECKS
from regplug.doctor.findings import Finding, listed, worst_first
from regplug.doctor.groups import Decay, Group, Penalty
from regplug.doctor.run import Run
from regplug.doctor.summary import groups_of, treated
from regplug.table import table

__all__ = ["RunReport", "as_json"]


class RunReport:
    """What is told of one run.

    Attributes:
        model: what the model is called.
        optimizer: what the optimizer is called.
        steps: how many real steps it made.
        groups: the parameters by how they are treated.
        findings: the findings, worst first.
        unseen: what could not be seen, and why.
    """

    def __init__(self, run: Run) -> None:
        self.model, self.optimizer = run.names
        self.steps, self.looked = run.steps, len(run.looked)
        all_ = treated(run)
        self.groups = groups_of(run, all_)
        self.findings: list[Finding] = worst_first(f for check in CHECKS for f in check(run, all_))
        self.unseen = list(run.troubles)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "steps": self.steps,
            "looked": self.looked,
            "groups": [group.as_json() for group in self.groups],
            "findings": [finding.as_json() for finding in self.findings],
            "unseen": self.unseen,
        }

    def __str__(self) -> str:
        steps = f"{self.steps:,} real steps, {self.looked} of them looked at"
        head = f"{self.model} with {self.optimizer}: {steps}"
        heads = ["parameters", "weights", "in the loss", "decay per step", "dropout", "share"]
        heads += ["1/(lr·λ)", "zeros", "norm"]
        lines = [head, table(heads, [_row(group) for group in self.groups])]
        lines += [str(finding) for finding in self.findings]
        lines += [f"not seen: {what}" for what in self.unseen]
        return "\n".join(lines)


def _row(group: Group) -> list[str]:
    return [
        listed(group.parameters, 2),
        f"{group.weights:,}",
        "; ".join([*map(_penalty, group.penalties), *group.plugins]) or "–",
        "; ".join(map(_decay, group.decays)) or "–",
        _dropout(group.dropout),
        "–" if group.share is None else f"{100 * group.share:.2g} %",
        "–" if group.time is None else f"{group.time:.3g}",
        f"{100 * group.zeros:.1f} %",
        f"{group.norm:.4g}",
    ]


_SIGNS = {
    "l1": "{}·Σ|w|",
    "l2": "{}·Σw²",
    "norm": "{}·‖w‖",
    "l1_to_anchor": "{}·Σ|w−w₀|",
    "l2_to_anchor": "{}·Σ(w−w₀)²",
}


def _penalty(penalty: Penalty) -> str:
    if penalty.strength is None or penalty.kind not in _SIGNS:
        return "another of weights"
    return _SIGNS[penalty.kind].format(f"{penalty.strength:.4g}")


def _decay(decay: Decay) -> str:
    by = "" if decay.by == "optimizer" else f" by the {decay.by}"
    return f"{decay.rate:.3g} ({decay.convention}, {decay.strength:.4g}){by}"


def _dropout(dropout: dict[str, Any]) -> str:
    def rates(found: Sequence[float]) -> str:
        if len(found) > 3:
            return f"{min(found):g} … {max(found):g}"
        return ", ".join(f"{rate:g}" for rate in found) or "–"

    if not dropout["modules"]:
        return "–"
    return f"{rates(dropout['training'])} / {rates(dropout['evaluation'])}"


def as_json(reports: Sequence[RunReport]) -> dict[str, Any]:
    """Return what ``regplug doctor --json`` writes."""
    return {"version": 1, "runs": [_finite(report.as_json()) for report in reports]}


def _finite(data: Any) -> Any:
    """Return plain data without NaN and infinity, which JSON has no words for."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
