"""The pages of the documentation, taken apart: blocks of code, commands, tables, links."""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

# Whatever has public names; beside these the integrations, of which most import other packages.
MODULES = (
    *("regplug", "regplug.doctor", "regplug.errors", "regplug.hookspecs", "regplug.report"),
    *("regplug.schedules", "regplug.testing", "regplug.testing.strategies", "regplug.tune"),
    "regplug_builtins",
)

FLAGS = re.DOTALL | re.MULTILINE
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", FLAGS)
SHOWN = ("text", "console")
"""A block of text right after a command is what the command prints."""


@dataclass(frozen=True)
class Block:
    """One fenced block, and the language of the one that stands right before it."""

    language: str
    text: str
    line: int
    after: str


@dataclass(frozen=True)
class Page:
    """One page of Markdown."""

    path: Path

    @cached_property
    def name(self) -> str:
        """Its path from the project's root."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """All of it but its blocks of code."""
        return FENCE.sub("", self.text)

    @cached_property
    def blocks(self) -> list[Block]:
        """Its blocks of code, from the first to the last."""
        found: list[Block] = []
        end = 0
        for match in FENCE.finditer(self.text):
            between = self.text[end : match.start()].strip()
            after = found[-1].language if found and not between else ""
            line = self.text[: match.start()].count("\n") + 2
            found.append(Block(match[1], match[2], line, after))
            end = match.end()
        return found

    @cached_property
    def commands(self) -> list[str]:
        """The commands that it shows, but for those whose output it shows too."""
        fenced = [
            part.strip()
            for block in self.blocks
            if block.language == "console"
            for line in block.text.splitlines()
            for part in line.partition("  #")[0].split("&&")
        ]
        programs = "make|python|regplug|torchrun|accelerate launch|pip install"
        inline = re.findall(rf"`((?:{programs}) [^`…]+)`", self.prose)
        # What these print is shown, and compared, by a test of their own.
        compared = {a.text.strip() for a, b in pairwise(self.blocks) if _shows(b)}
        return sorted({*fenced, *inline} - compared)

    @cached_property
    def outputs(self) -> list[tuple[Block, Block]]:
        """Each command whose output it shows, with that output."""
        return [(a, b) for a, b in pairwise(self.blocks) if _shows(b)]

    @cached_property
    def anchors(self) -> set[str]:
        """What a link to a heading of it may end in."""
        return {
            re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        }

    @cached_property
    def links(self) -> list[str]:
        """Where its links lead."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    def section(self, heading: str) -> str:
        """Return what stands under a heading of the second level."""
        match = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", self.text, FLAGS)
        assert match, heading
        return match[1]


def _shows(block: Block) -> bool:
    return (block.language, block.after) == SHOWN


def page(name: str) -> Page:
    """Return one page of ``docs/``."""
    return Page(DOCS / name)


def pages() -> list[Page]:
    """Return the front page and all pages of ``docs/``."""
    return [Page(ROOT / "README.md"), *map(Page, sorted(DOCS.rglob("*.md")))]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the Markdown tables in ``text``, without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = [i for i, row in enumerate(cells) if all(re.fullmatch(":?-+:?", c) for c in row)]
    assert rules
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]
