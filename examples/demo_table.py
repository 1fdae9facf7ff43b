"""The table of demo.py, and what may be concluded from it."""

from __future__ import annotations

from statistics import mean, stdev
from typing import TYPE_CHECKING

from scipy.stats import t as student_t

if TYPE_CHECKING:
    from demo import Run


def against(runs: list[Run], plain: list[Run]) -> tuple[float, float]:
    """Return mean and 95 % half-width of the difference in test accuracy, seed by seed."""
    difference = [a.test[-1] - b.test[-1] for a, b in zip(runs, plain, strict=True)]
    n = len(difference)
    return mean(difference), float(student_t.ppf(0.975, n - 1)) * stdev(difference) / n**0.5


def table(results: dict[str, list[Run]], seconds: dict[str, float]) -> str:
    """Return the results as a Markdown table that reads well in a terminal, too."""
    rows = [["variant", "train %", "test %", "gap", "vs plain", "exact zeros %", "cost per step"]]
    for name, runs in results.items():
        train, test = [r.train[-1] for r in runs], [r.test[-1] for r in runs]
        difference, half = against(runs, results["plain"])
        rows.append(
            [
                name,
                f"{mean(train):.1f} ± {stdev(train):.1f}",
                f"{mean(test):.1f} ± {stdev(test):.1f}",
                f"{mean(train) - mean(test):.1f}",
                "" if name == "plain" else f"{round(difference, 1) + 0.0:+.1f} ± {half:.1f}",
                f"{mean(r.zeros for r in runs):.1f}",
                f"{seconds[name] / seconds['plain']:.2f} ×",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]])
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    )


def verdict(results: dict[str, list[Run]], seconds: dict[str, float], torch_dropout: str) -> str:
    """Say in words what the table shows, and what it does not."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not clearly different": []}
    for name, runs in results.items():
        if name != "plain":
            difference, half = against(runs, results["plain"])
            sure = abs(difference) > half
            group = ("better" if difference > 0 else "worse") if sure else "not clearly different"
            groups[group].append(name)
    plain = results["plain"]
    found = "; ".join(f"{group}: {', '.join(names)}" for group, names in groups.items() if names)
    micro, ratio = 1e6 * seconds["plain"], seconds[torch_dropout] / seconds["plain"]
    shown = [
        f"{len(plain)} seeds of {plain[0].steps[-1]} steps; ± is the standard deviation over them.",
        "“vs plain” is the mean difference in test accuracy, seed by seed, with its 95 % interval:",
        f"by that, on test images, {found}.",
        f"A plain step takes {micro:.0f} µs here, with torch's {torch_dropout} {ratio:.2f} × that.",
    ]
    return "\n".join(shown)
