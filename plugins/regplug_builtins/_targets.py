"""Rates of modules, and which of several each is to have, where rates are by pattern."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from regplug import Patterns, Plugin
from regplug.errors import SelectionError
from regplug.strengths import ByPattern, Setting, layers_above

__all__ = ["Target", "settled"]


@dataclass
class Target:
    """One rate: an attribute of a module, with the value that it had."""

    module: nn.Module
    attribute: str
    name: str
    own: float


def settled(
    plugin: Plugin,
    mappings: Mapping[str, ByPattern],
    kind: str,
    found: Sequence[Target],
    targets: Sequence[Target],
) -> tuple[list[Target], list[Setting | None], dict[str, Setting]]:
    """Return the targets that have a rate, and which: the first pattern that matches counts.

    And what people call each, in the order of the patterns.

    Args:
        plugin: whose rates they are, for messages.
        mappings: the only one, by attribute.
        kind: what targets are, likewise.
        found: all of the model.
        targets: those that are selected.

    Raises:
        SelectionError: a pattern is the first to match none.
        SpecError: a rate leaves its range in a layer.
    """
    ((argument, mapping),) = mappings.items()
    layers = layers_above(target.name for target in found) if mapping.decays else {}
    patterns = {text: Patterns(text) for text in mapping.entries}
    taken: list[Target] = []
    settings: list[Setting | None] = []
    known: dict[str, dict[str, Setting]] = {text: {} for text in patterns}
    for target in targets:
        names = target.name, target.name.rpartition(".")[0]
        text = next((t for t, each in patterns.items() if each.takes(*names)), None)
        if text is not None:
            factor, label = 1.0, text
            if text in mapping.decays:
                layer, above = layers[target.name]
                factor = mapping.decays[text] ** above
                label = layer if mapping.alone else f"{text} {layer}"
            taken.append(target)
            settings.append(Setting(text, factor))
            known[text][label] = Setting(text, factor)
    unused = [text for text, each in known.items() if not each]
    if unused:
        have = ", ".join(target.name for target in found[:6]) or "none"
        raise SelectionError(
            f"{plugin.name}: {argument}: the pattern {unused[0]!r} is the first to match no {kind} "
            f"that is selected; the model has {have}"
        )
    mapping.settle({text: [s.factor for s in each.values()] for text, each in known.items()})
    labels = {label: setting for each in known.values() for label, setting in each.items()}
    return taken, settings, labels
