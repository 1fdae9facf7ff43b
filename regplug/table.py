"""Plain text tables, for the terminal and for messages."""

from collections.abc import Sequence

__all__ = ["table"]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return ``rows`` under ``heads`` in aligned columns; numbers stand to the right.

    >>> print(table(["name", "n"], [["a", "1,000"], ["bc", "7"]]))
    name      n
    ----  -----
    a     1,000
    bc        7
    """
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [bool(rows) and all(_is_number(cell) for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(cells, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(heads), line(["-" * width for width in widths]), *map(line, rows)])


def _is_number(cell: str) -> bool:
    return not cell.strip("–- ") or cell[0] in "+-.0123456789"
