"""What goes wrong says who, where and when; wrong use fails when it is attached."""

import inspect
import math
from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import regplug
from regplug import errors, hookimpl, hookspecs
from regplug.errors import (
    PluginError,
    PluginNotFoundError,
    RegplugError,
    SelectionError,
    SpecError,
    StateError,
    UnsupportedError,
)
from regplug_builtins import L1, L2, Dropout, ElasticNet, WeightDecay

EVENTS = [
    name for name, hook in vars(hookspecs).items() if hasattr(hook, f"{hookspecs.PROJECT}_spec")
]

GRUMPY = """
    import regplug

    class Grumpy(regplug.Plugin):
        changes_weights = False

        def __init__(self, event, after=0, name=None):
            self.event, self.after, self.name = event, after, name

        def come(self, event, session):
            if event == self.event and session.steps >= self.after:
                raise OSError(f"no disk in {event}")
"""
for event in EVENTS:
    GRUMPY += f"""
        @regplug.hookimpl
        def {event}(self, session):
            return self.come("{event}", session)
"""


@pytest.fixture
def grumpy(install):
    """Install a plugin that raises in the event and from the step that its spec names."""
    install("acme-grumpy", [("grumpy", "acme_grumpy:Grumpy")], "4.2", acme_grumpy=GRUMPY)


def live(plugins):
    """Take a session through every event there is, with a closure in its second step."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, plugins) as session:
        session.loss(model(torch.ones(1, 3)).sum()).backward()
        optimizer.step()
        optimizer.step(lambda: model(torch.ones(1, 3)).sum().backward())
        session.note(loss=1.0)
        session.metrics()
        session.load_state_dict(session.state_dict())


# Errors at run time


@pytest.mark.parametrize("event", EVENTS)
def test_error_in_any_event_names_plugin_distribution_version_event_and_step(grumpy, event):
    """An exception in a pluggy hook arrives without the plugin's name."""
    late = ("on_note", "on_metrics", "on_state", "on_load_state", "on_detach")
    step = {"on_closure": 1, **dict.fromkeys(late, 2)}
    with pytest.raises(PluginError) as caught:
        live(["l1(0.1)", f"grumpy('{event}', name='sulky')", "dropout(0.5)"])
    assert str(caught.value) == (
        f"sulky (acme-grumpy 4.2) failed in {event} at step {step.get(event, 0)}: "
        f"OSError: no disk in {event}"
    )
    assert isinstance(caught.value.__cause__, OSError)


def test_culprit_is_found_among_plugins_of_one_class(grumpy):
    specs = [f"grumpy('on_gradients', after={after}, name='p{after}')" for after in (9, 1, 5)]
    with pytest.raises(PluginError, match=r"^p1 \(acme-grumpy 4\.2\) failed .* at step 1"):
        live(specs)


def test_culprit_is_found_when_the_error_comes_from_far_below():
    def deep(levels):
        return deep(levels - 1) if levels else [][levels]

    class Indirect(regplug.Plugin):
        @hookimpl
        def before_step(self, session):
            deep(20)

    with pytest.raises(
        PluginError, match=r"indirect \(tests.session.test_errors\) failed in before_step"
    ) as e:
        live(["l1(0.1)", Indirect(), L2(0.1)])
    assert isinstance(e.value.__cause__, IndexError)


def test_culprit_is_found_when_its_hook_is_no_ordinary_method():
    class Static(regplug.Plugin):
        @staticmethod
        @hookimpl
        def before_step():
            raise OSError("static")

    with pytest.raises(
        PluginError, match=r"static \(tests.session.test_errors\) failed in before_step"
    ):
        live([L2(0.1), Static()])


@pytest.mark.parametrize("method", ["value", "gradient"])
@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_error_in_a_formula_names_the_plugin(method, delivery):
    def wrong(self, w):
        raise ArithmeticError("bad formula")

    kind = type("Odd", (L1,), {method: wrong, "add_gradients": regplug.Penalty.add_gradients})
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["l2(0.1)", kind(0.1, delivery=delivery)])

    def step():
        session.loss(model(torch.ones(1, 2)).sum()).backward()
        optimizer.step()
        session.metrics()

    with pytest.raises(
        PluginError, match=r"^odd \(tests.session.test_errors\) failed in .*bad formula"
    ) as e:
        step()
    assert isinstance(e.value.__cause__, ArithmeticError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_stops_the_program_passes_through(kind):
    class Stops(regplug.Plugin):
        @hookimpl
        def before_step(self, session):
            raise kind

    with pytest.raises(kind):
        live([Stops()])


@pytest.mark.parametrize(
    "error", [SpecError, SelectionError, StateError, UnsupportedError, PluginError, RegplugError]
)
def test_error_raised_on_purpose_keeps_its_kind(error):
    class Knows(regplug.Plugin):
        @hookimpl
        def before_step(self, session):
            raise error("told you so")

    with pytest.raises(error) as caught:
        live([Knows()])
    assert type(caught.value) is error
    assert (
        str(caught.value)
        == "knows (tests.session.test_errors) failed in before_step at step 0: told you so"
    )
    assert str(caught.value.__cause__) == "told you so"


def test_plugin_that_cannot_be_hashed_is_refused_with_the_way_out():
    """As any dataclass, whose instances are equal if their fields are."""

    class Fields(regplug.Plugin):
        size: int = 3

        @hookimpl
        def on_attach(self, session):
            pass

    with pytest.raises(
        PluginError, match=r"fields \(tests.session.test_errors\) can't be hashed.*eq=False"
    ):
        live([dataclass(Fields)()])
    live([dataclass(eq=False)(type("Fields", (Fields,), {"__hash__": object.__hash__}))()])


def test_error_of_a_kind_of_the_plugins_own_is_wrapped():
    class SpecialError(RegplugError):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    class Knows(regplug.Plugin):
        @hookimpl
        def before_step(self, session):
            raise SpecialError(1, 2)

    with pytest.raises(PluginError, match=r"knows .*: SpecialError: 1 and 2") as caught:
        live([Knows()])
    assert isinstance(caught.value.__cause__, SpecialError)


@pytest.mark.parametrize("event", [e for e in EVENTS if e not in ("on_attach", "on_detach")])
def test_detach_restores_everything_after_a_failure(grumpy, event):
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.3))
    optimizer = torch.optim.AdamW(model.parameters())
    specs = ["dropout(0.5)", f"grumpy('{event}')", "weight_decay(0.1, existing='replace')"]
    session = regplug.attach(model, optimizer, specs)
    with suppress(PluginError):
        session.loss(model(torch.ones(1, 3)).sum()).backward()
        optimizer.step()
    session.detach()
    assert model[1].p == 0.3
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("hook", "returned"),
    [
        ("on_metrics", 5),
        ("on_metrics", {"rate": "high"}),
        ("on_metrics", {"rate": torch.zeros(2)}),
        ("on_state", [1]),
        ("on_closure", "x"),
    ],
)
def test_wrong_return_is_blamed_on_its_plugin(hook, returned):
    kind = type("Wrong", (regplug.Plugin,), {hook: hookimpl(lambda self: returned)})
    message = rf"wrong \(tests.session.test_errors\) failed in {hook} at step .*must.*got"
    with pytest.raises(PluginError, match=message):
        live(["l1(0.1)", kind()])


def test_error_of_the_loop_itself_is_not_blamed_on_a_plugin():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, ["l1(0.1)"])
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)


# Wrong use fails when it is attached


def net():
    return nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.3))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


class Nameless:
    pass


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda m: ([m], {}), None, ""),
        (lambda m: ([5], {}), SpecError, "model must be a torch.nn.Module, got int"),
        (lambda m: ([sgd(m), m], {}), SpecError, "model must be a torch.nn.Module, got SGD"),
        (lambda m: ([nn.Linear, sgd(m)], {}), SpecError, "model must be .*, got type"),
        (lambda m: ([m, "sgd"], {}), SpecError, "optimizer must be .*, got str"),
        (lambda m: ([m, [sgd(m)]], {}), SpecError, "optimizer must be .*, got list"),
        (lambda m: ([m, ["l1(1)"]], {}), SpecError, "optimizer must be .*, got list"),
        (lambda m: ([m, torch.optim.SGD], {}), SpecError, "optimizer must be .*, got type"),
        (lambda m: ([m, None, 5], {}), SpecError, "plugins must be a list .*, got 5"),
        (lambda m: ([m, None, None], {}), SpecError, "plugins must be a list .*, got None"),
        (lambda m: ([m, None, [5]], {}), SpecError, "a plugin must be a spec .*; got 5"),
        (lambda m: ([m, None, L1], {}), SpecError, "not the class; got .*L1"),
        (lambda m: ([m, None, [L1]], {}), SpecError, "not the class; got .*L1"),
        (lambda m: ([m, None, [Nameless()]], {}), SpecError, "instance of regplug.Plugin; got"),
        (lambda m: ([m, None, [nn.L1Loss()]], {}), SpecError, "a plugin must be .*got L1Loss"),
        (lambda m: ([m, None, ["l1(1)", "l1(2)"]], {}), SpecError, "two plugins are named 'l1'"),
        (lambda m: ([m, None, "l3(1)"], {}), PluginNotFoundError, "'l3'; the nearest are l[12]"),
        (lambda m: ([m], {"name": ""}), SpecError, "name must be a non-empty string, got ''"),
        (lambda m: ([m], {"name": 5}), SpecError, "name must be a non-empty string, got 5"),
        (lambda m: ([m], {"accelerator": 5}), SpecError, "accelerator must be .*, got int"),
    ],
)
def test_arguments_of_attach(arguments, error, message):
    positional, keyword = arguments(net())
    if error is None:
        regplug.attach(*positional, **keyword).detach()
        return
    with pytest.raises(error, match=message):
        regplug.attach(*positional, **keyword)


WRONG_NUMBERS = [-1, -1e-30, math.nan, math.inf, -math.inf, "1", None, True, [1], 1j, b"1"]
WRONG_SELECTIONS = [5, None, [], "", "!", [5], {"a"}]
WRONG_DELIVERIES = ["Step", "", None, 1, ["loss"], "prox"]
WRONG_NAMES = ["", 5, "a/b", [], True]
MAKERS = {
    "strength": (WRONG_NUMBERS, [L1, L2, WeightDecay]),
    "l1_strength": (WRONG_NUMBERS, [lambda value: ElasticNet(value, 1)]),
    "l2_strength": (WRONG_NUMBERS, [lambda value: ElasticNet(1, value)]),
    "rate": ([*WRONG_NUMBERS, 1.01], [Dropout]),
    "factor": (WRONG_NUMBERS, [lambda value: Dropout(value, relative=True)]),
    "where": (
        WRONG_SELECTIONS,
        [
            lambda value: L1(1, where=value),
            lambda value: ElasticNet(1, 1, where=value),
            lambda value: WeightDecay(1, where=value),
            lambda value: Dropout(0.5, where=value),
        ],
    ),
    "delivery": (
        WRONG_DELIVERIES,
        [lambda value: L2(1, delivery=value), lambda value: ElasticNet(1, 1, delivery=value)],
    ),
    "existing": (["yes", None, 1], [lambda value: WeightDecay(1, existing=value)]),
    "relative": (["yes", None, 1], [lambda value: Dropout(0.5, relative=value)]),
    "name": (
        WRONG_NAMES,
        [
            lambda value: L1(1, name=value),
            lambda value: WeightDecay(1, name=value),
            lambda value: Dropout(0.5, name=value),
        ],
    ),
}


@pytest.mark.parametrize(
    ("argument", "value", "make"),
    [
        pytest.param(argument, value, make, id=f"{argument}={value!r}-{index}")
        for argument, (values, makers) in MAKERS.items()
        for value in values
        for index, make in enumerate(makers)
    ],
)
def test_wrong_arguments_of_built_ins_name_the_argument_and_the_value(argument, value, make):
    with pytest.raises((SpecError, SelectionError)) as caught:
        make(value)
    assert argument in str(caught.value)
    assert repr(value) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("text", ["l1(-1)", "l1(1, where=[])", "l1(1, delivery='x')", "dropout(2)"])
def test_wrong_arguments_in_a_spec_show_the_spec(text):
    with pytest.raises(ValueError, match="must") as caught:
        regplug.attach(net(), plugins=[text])
    assert str(caught.value).startswith(repr(text))


@pytest.mark.parametrize("value", [-1, math.nan, "x"])
def test_strength_that_is_set_later_is_checked_as_well(value):
    l1 = L1(1)
    with pytest.raises(SpecError, match="strength must"):
        l1.strength = value
    assert l1.strength == 1


def test_errors_at_attach_name_the_plugin():
    with pytest.raises(SelectionError, match=r"^second: where='nothing'"):
        regplug.attach(net(), plugins=["l1(1)", "l1(1, where='nothing', name='second')"])


# The errors themselves


def test_every_error_is_one_of_ours():
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, RegplugError)
        assert inspect.getdoc(kind)
    assert issubclass(SpecError, ValueError)
    assert issubclass(SelectionError, ValueError)
    assert issubclass(StateError, ValueError)
    assert issubclass(PluginNotFoundError, LookupError)
    assert not issubclass(PluginError, ValueError)
