"""Plain text tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regplug.table import table

cells = st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=8)


@given(st.lists(st.tuples(cells, cells, cells), max_size=5))
def test_columns_stand_under_their_heads(rows):
    lines = table(["one", "two", "three"], rows).split("\n")
    assert len(lines) == 2 + len(rows)
    widths = [len(rule) for rule in lines[1].split("  ")]
    starts = [sum(widths[:i]) + 2 * i for i in range(3)]
    for line, row in zip(lines[2:], rows, strict=True):
        for start, width, cell in zip(starts, widths, row, strict=True):
            assert line[start : start + width].strip() == cell.strip()


@pytest.mark.parametrize("column", [["1", "20"], ["0.5", "–"], ["-3", "+.5"], ["1,000", "-"]])
def test_numbers_stand_to_the_right(column):
    text = table(["number", "x"], [[cell, "y"] for cell in column])
    assert [line.split("  y")[0] for line in text.splitlines()[2:]] == [c.rjust(6) for c in column]


@pytest.mark.parametrize("column", [["1", "a"], ["auto", "step"], ["1", "x2"]])
def test_words_stand_to_the_left(column):
    text = table(["word", "x"], [[cell, "y"] for cell in column])
    assert [line.split("  y")[0] for line in text.splitlines()[2:]] == [c.ljust(4) for c in column]


def test_empty_cells_and_no_rows_are_no_matter():
    assert table(["a", "b"], []) == "a  b\n-  -"
    assert table(["a", "b"], [["", "1"]]).splitlines()[2] == "   1"


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="argument"):
        table(["a", "b"], [["1"]])
