"""What the scripts of this folder share: their options, tables, intervals and pictures."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from scipy.stats import t as student

# After Okabe and Ito: colour-blind readers can tell them apart.
COLORS = ["#333333", "#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7"]

STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def reproduce(name: str, about: str | None, study: Callable[[bool], tuple[str, Figure]]) -> None:
    """Run a study and write what it found, as ``papers_NAME.md`` and ``papers_NAME.png``."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write into")
    options = parser.parse_args()
    torch.set_num_threads(1)  # fastest for so small networks, and repeatable
    began = time.process_time()
    with mpl.rc_context(STYLE):
        found, figure = study(options.quick)
        options.out.mkdir(parents=True, exist_ok=True)
        picture = options.out / f"papers_{name}.png"
        # The picture says which table it belongs to.
        figure.savefig(picture, dpi=100, metadata={"Description": found, "Software": None})
    seconds = time.process_time() - began
    text = f"{found}\n\n{seconds:.0f} seconds of one core.\n"
    (options.out / f"papers_{name}.md").write_text(text, encoding="utf-8")
    print(text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown, its first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def interval(values: torch.Tensor) -> tuple[float, float]:
    """Return the mean over seeds and half of its 95 % interval (Student's t), shape (seeds,)."""
    half = student.ppf(0.975, len(values) - 1) * float(values.std()) / len(values) ** 0.5
    return float(values.mean()), float(half)
