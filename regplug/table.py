"""Tables: of plain text for the terminal and for messages, of HTML for notebooks."""

import re
from collections.abc import Sequence
from html import escape

__all__ = ["html_table", "table"]


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


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the same in HTML, for notebooks.

    >>> html_table(["name", "n"], [["a<b", "7"]])  # doctest: +ELLIPSIS
    '<table><thead><tr><th>name</th><th>n</th></tr></thead><tbody><tr><td>a&lt;b</td>...'
    """

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(heads, 'th')}</thead><tbody>{body}</tbody></table>"


# With a sign of what is counted, perhaps: "8.3 %", "1.2×"; but "0.weight" is a name.
_NUMBER = re.compile(r"[-+−]?\.?\d[\d.,]*(e[-+]?\d+)?[^\s.,\d]{0,2}(\s|$)")


def _is_number(cell: str) -> bool:
    return not cell.strip("–- ") or _NUMBER.match(cell) is not None
