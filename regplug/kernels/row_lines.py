"""An expression of rows as lines of a program, whatever the language: pass by pass, loop by loop.

Elements are computed anew in each pass over a row, out of what was read; what each row has one of
is kept. Passes that can go together do: the sums of one round of a loop are one pass.
"""

from collections.abc import Iterable, Sequence
from typing import cast

from regplug.kernels.emitted import Dialect
from regplug.kernels.expression import TRUTHS, arguments
from regplug.kernels.row_symbols import REDUCTIONS, RowExpression

__all__ = ["SHAPES", "RowLines"]

SHAPES = ("size", "inner", "outer_stride", "inner_stride", "group_stride", "groups", "count")
"""What a table has of each tensor: the elements of a group, how many of these follow each other at
``inner_stride``, how far apart such runs are, and the groups; and how many groups and elements it
has."""


class RowLines:
    """Writes the lines of one expression; each language writes its own passes over a row.

    Args:
        expression: what is computed.
        dialect: how the language says it.

    Attributes:
        lines: what was written.
        indent: of the next line, in steps.
        levels: of each step: see :func:`regplug.kernels.row_symbols.levels_of`.
        kept: elements that are not computed anew in each pass, and where they are kept.
    """

    wide = "{0}"  # an integer in double precision

    def __init__(self, expression: RowExpression, dialect: Dialect) -> None:
        self.expression, self.dialect = expression, dialect
        self.steps = expression.steps
        self.levels = expression.levels()
        self.needed = expression.needed()
        self.kept: dict[int, str] = {}
        self.lines: list[str] = []
        self.indent = 1

    def reduce(self, places: Sequence[int]) -> None:
        """Write one pass over the row for all these sums, and the like."""
        raise NotImplementedError

    def before_loop(self, carried: int) -> None:
        """Write what should be done before the loop in which ``carried`` changes."""

    def write(self, line: str) -> None:
        """Append a line."""
        self.lines.append("    " * self.indent + line)

    def name(self, place: int) -> str:
        """Return what the result of a step is called, in the precision of the elements."""
        step = self.steps[place]
        if step[0] == "input":
            return f"x{step[1]}"
        return f"{'nrv'[self.levels[place]]}{place}"

    def said(self, place: int) -> str:
        """Return the operation of a step on elements, or on what each row has one of."""
        step = self.steps[place]
        return self.dialect.elements[step[0]].format(*map(self.name, arguments(step)))

    def fixed(self) -> list[int]:
        """Write what is the same for all rows of a tensor; return the places that rows read."""
        places = [place for place in self.needed if not self.levels[place]]
        read = {self.expression.result}
        for place in self.needed:
            if self.levels[place]:
                read.update(arguments(self.steps[place]))
        for place in places:
            name, *rest = self.steps[place]
            if name == "number":
                value = self.dialect.number.format(rest[0])
            elif name == "scalar":
                value = self.dialect.scalar.format(rest[0])
            elif name in ("count", "groups"):
                value = self.wide.format(name)
            else:
                value = self.dialect.uniform[name].format(*(f"u{argument}" for argument in rest))
            self.write(f"u{place} = {value}")
            if place in read:
                wide = f"u{place}"
                narrow = wide if name in TRUTHS else self.dialect.narrowed.format(wide)
                self.write(f"n{place} = {narrow}")
        return [place for place in places if place in read]

    def rows(self) -> None:
        """Write all that each row has one of."""
        self.region([place for place in self.needed if self.levels[place] == 1])

    def region(self, places: Sequence[int]) -> None:
        """Write what each row has one of, loop by loop."""
        straight: list[int] = []
        done = 0
        while done < len(places):
            if self.steps[places[done]][0] != "carried":
                straight.append(places[done])
                done += 1
                continue
            self.straight(straight)
            straight = []
            done += self.loop(places[done:])
        self.straight(straight)

    def straight(self, places: Sequence[int]) -> None:
        """Write steps without a loop, in as few passes over the row as can be."""
        depths: dict[int, int] = {}
        for place in places:
            step = self.steps[place]
            one_more = step[0] in REDUCTIONS
            before = self.behind([step[1]]) if one_more else arguments(step)
            depths[place] = one_more + max((depths.get(p, 0) for p in before), default=0)
        for depth in sorted(set(depths.values())):
            own = [place for place in places if depths[place] == depth]
            if sums := [place for place in own if self.steps[place][0] in REDUCTIONS]:
                self.reduce(sums)
            for place in own:
                if self.steps[place][0] not in REDUCTIONS:
                    self.write(f"r{place} = {self.said(place)}")

    def loop(self, places: Sequence[int]) -> int:
        """Write a loop, and return how many of ``places`` it took."""
        carried, steps = places[0], self.steps
        end = next(i for i, p in enumerate(places) if steps[p][:2] == ("loop", carried))
        place = places[end]
        _, _, found, rounds = cast("tuple[str, int, int, int]", steps[place])
        self.before_loop(carried)
        self.write(f"r{carried} = {self.name(arguments(steps[carried])[0])}")
        self.write(f"moving{place} = one > zero")
        self.write(f"round{place} = 0")
        self.write(f"while (round{place} < {rounds}) & moving{place}:")
        self.indent += 1
        self.region(places[1:end])
        self.write(f"after{place} = {self.name(found)}")
        same = f"(after{place} == r{carried}) | (after{place} != after{place})"
        self.write(f"moving{place} = ({same}) == 0")
        self.write(f"r{carried} = after{place}")
        self.write(f"round{place} += 1")
        self.indent -= 1
        self.write(f"r{place} = r{carried}")
        return end + 1

    def behind(self, places: Iterable[int]) -> set[int]:
        """Return the places of what elements are made of, down to what rows have one of."""
        found: set[int] = set()
        open_ = list(places)
        while open_:
            place = open_.pop()
            if place not in found:
                found.add(place)
                if self.levels[place] == 2 and place not in self.kept:
                    open_ += arguments(self.steps[place])
        return found

    def elements(self, places: Iterable[int]) -> list[int]:
        """Return the places of the elements to be computed for these, in order."""
        return sorted(place for place in self.behind(places) if self.levels[place] == 2)
