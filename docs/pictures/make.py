"""Draw the pictures of the plugins' pages, each by the plugin itself, and those of the gallery.

    python docs/pictures/make.py [NAME …] [--out FOLDER] [--quick]

Each picture is a function of a module beside this one; it returns the figure and the specs that it
shows, which are kept in the file. All are cards with a white ground of at most 40 kB, which the
site turns dark where the reader wants it dark.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import activations
import constraints
import decays
import examples_drawn
import matplotlib as mpl
import penalties
import problems
import starts
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from panels import STYLE
from PIL import Image, PngImagePlugin

Drawn = tuple[Figure, Sequence[str]]

PICTURES: dict[str, Callable[[], Drawn]] = {
    name: draw
    for module in (penalties, starts, decays, activations, constraints, examples_drawn)
    for name, draw in module.PICTURES.items()
}


def save(figure: Figure, specs: Sequence[str], path: Path) -> None:
    """Write it as a small PNG of few colours."""
    FigureCanvasAgg(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, format="png", metadata={"Software": ""})
    about = PngImagePlugin.PngInfo()
    about.add_text("Description", "\n".join(specs))
    with Image.open(drawn) as image:
        few = image.convert("RGB").quantize(48, dither=Image.Dither.NONE)
        few.save(path, format="PNG", optimize=True, pnginfo=about)


def main() -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--quick", action="store_true", help="a few steps each, to try it")
    arguments = parser.parse_args()
    problems.QUICK = arguments.quick
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or PICTURES:
        with mpl.rc_context(STYLE):
            figure, specs = PICTURES[name]()
            save(figure, specs, arguments.out / f"{name}.png")
        print(name, *specs, sep="\n  ")


if __name__ == "__main__":
    main()
