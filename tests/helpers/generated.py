"""Puts what a command measured into a page of the documentation, between two marks.

``python tests/helpers/generated.py PAGE COMMAND FILE`` does it from a Makefile.
"""

import sys
from pathlib import Path

END = "<!-- until here -->"


def start(command: str) -> str:
    """Return the mark that stands before what ``command`` wrote."""
    return f"<!-- written by `{command}` -->"


def written(page: Path, command: str) -> str:
    """Return what ``command`` wrote into ``page``."""
    _, found, rest = page.read_text(encoding="utf-8").partition(start(command) + "\n")
    text, ended, _ = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{page} has no place for what `{command}` writes")
    return text.strip()


def write(page: Path, command: str, text: str) -> None:
    """Replace what ``command`` wrote into ``page`` before."""
    written(page, command)  # or there is no place for it
    head, mark, rest = page.read_text(encoding="utf-8").partition(start(command) + "\n")
    _, end, tail = rest.partition(END)
    page.write_text(f"{head}{mark}\n{text.strip()}\n\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).read_text(encoding="utf-8"))
    print(f"written to {sys.argv[1]}")
