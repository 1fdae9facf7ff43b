"""REGPLUG_TRACE=1 tells of each event, plugin and time; without it nothing is there to be told."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import regplug
from tests.helpers.nets import one_layer


class Watch(regplug.Plugin):
    changes_weights = False

    @regplug.hookimpl
    def on_loss(self, loss: Any) -> None:
        pass

    @regplug.hookimpl
    def after_step(self, session: Any) -> None:
        if session.steps == 1:
            raise ZeroDivisionError("in the second step")


def loop(plugins: list[Any]) -> Any:
    model = one_layer(1.0, 2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, plugins, name="net")

    def step() -> None:
        session.loss(model(torch.ones(1, 2).double()).sum()).backward()
        optimizer.step()

    return session, step


LINE = re.compile(
    r"regplug: (?:rank (\d) )?(?:net step (\d) )?(\w+) (\w+) (failed after )?[\d.]+ ms"
)


def told(text: str) -> list[Any]:
    return [LINE.fullmatch(line).groups() for line in text.splitlines()]  # type: ignore[union-attr]


def test_each_event_and_plugin_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REGPLUG_TRACE", "1")
    monkeypatch.setenv("RANK", "3")
    session, step = loop(["l1(0.1, delivery='step')", Watch()])
    step()
    session.metrics()
    found = told(capsys.readouterr().err)
    assert [(at, event, who) for _, at, event, who, _ in found if event != "on_attach"] == [
        ("0", "on_loss", "l1"),
        (None, "on_loss", "watch"),
        ("0", "on_gradients", "l1"),
        ("0", "after_step", "watch"),
        ("1", "on_metrics", "l1"),
    ]
    assert {rank for rank, *_ in found} == {"3"}
    assert [f[1:4] for f in found if f[2] == "on_attach"] == [("0", "on_attach", "l1")]
    with pytest.raises(regplug.errors.PluginError, match=r"watch .* failed in after_step"):
        step()
    *_, last = told(capsys.readouterr().err)
    assert last == ("3", "1", "after_step", "watch", "failed after ")
    session.detach()


@pytest.mark.parametrize("value", [None, "", "0", "false", "Off", "no"])
def test_it_is_silent_and_free_without(
    value: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REGPLUG_TRACE", raising=False)
    if value is not None:
        monkeypatch.setenv("REGPLUG_TRACE", value)
    session, step = loop(["l1(0.1)"])
    step()
    session.detach()
    assert capsys.readouterr().err == ""
