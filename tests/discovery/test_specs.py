"""Specs are read and never run: the grammar, and any text at all."""

import contextlib
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import regplug
from regplug.discovery.specs import parse
from regplug.errors import RegplugError, SpecError
from regplug.installed import offers
from regplug.schedules import constant, cosine, exponential, linear, piecewise, warmup


@pytest.mark.parametrize(
    ("spec", "args", "kwargs"),
    [
        ("l1", (), {}),
        ("l1()", (), {}),
        ("l1(1e-5)", (1e-5,), {}),
        ("l1=1e-5", (1e-5,), {}),
        ("  l1 = 1e-5  ", (1e-5,), {}),
        ("l1=linear(0, 1e-4, steps=1000)", (linear(0, 1e-4, steps=1000),), {}),
        ("l1=1e-5, where='encoder.*'", (1e-5,), {"where": "encoder.*"}),
        ("\tl1(\n  1e-5,\n)", (1e-5,), {}),
        ("l1(-1, +2.5, -0.0)", (-1, 2.5, -0.0), {}),
        ("l1(True, False, None)", (True, False, None), {}),
        ("l1('a', \"b\", 'a' 'b')", ("a", "b", "ab"), {}),
        ("l1([1, 'x', [2]], (3,), {0: 1.5})", ([1, "x", [2]], (3,), {0: 1.5}), {}),
        ("l1(1e-5, where=['all', '!*.bias'])", (1e-5,), {"where": ["all", "!*.bias"]}),
        ("l1(constant(0.5))", (constant(0.5),), {}),
        ("l1(cosine(1, 0, steps=5))", (cosine(1, 0, 5),), {}),
        ("l1(exponential(1, 0.1, 5))", (exponential(1, 0.1, 5),), {}),
        ("l1(piecewise({0: 0.0, 10: 1e-4}))", (piecewise({0: 0.0, 10: 1e-4}),), {}),
        ("l1(warmup(linear(1, 0, steps=9), steps=3))", (warmup(linear(1, 0, 9), 3),), {}),
        ("elastic_net(l1=1, l2=linear(0, 1, 2))", (), {"l1": 1, "l2": linear(0, 1, 2)}),
    ],
)
def test_spec_is_a_call_with_literals(spec, args, kwargs):
    name, found_args, found_kwargs = parse(spec)
    assert name == spec.strip().partition("(")[0].partition("=")[0].strip()
    assert (found_args, found_kwargs) == (args, kwargs)
    assert [type(a) for a in found_args] == [type(a) for a in args]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "'' is no spec such as"),
        ("   ", "is no spec such as"),
        ("l1(1e-5", r"'l1\(1e-5' is no spec such as"),
        ("l1(1e-5))", "is no spec such as"),
        ("l1(1) + l2(1)", "not a call of a plain name"),
        ("1e-5", "not a call of a plain name"),
        ("'l1'", "not a call of a plain name"),
        ("torch.nn.L1Loss()", "not a call of a plain name"),
        ("l1(1)(2)", "not a call of a plain name"),
        ("l1; l2", "is no spec such as"),
        ("l1 = ", "is no spec such as"),
        ("l1 == 1", "not a call of a plain name"),
        ("import os", "is no spec such as"),
        ("l1(x)", "'x' is no literal"),
        ("l1(1 + 1)", r"'1 \+ 1' is no literal"),
        ("l1(2 ** 99)", r"'2 \*\* 99' is no literal"),
        ("l1(-True)", "is no literal"),
        ("l1(--1)", "is no literal"),
        ("l1(not 1)", "is no literal"),
        ("l1(1j)", "is no literal"),
        ("l1(b'x')", "is no literal"),
        ("l1(...)", "is no literal"),
        ("l1(lambda t: 1)", "'lambda t: 1' is no literal"),
        ("l1([t for t in [1]])", "is no literal"),
        ("l1({1, 2})", "is no literal"),
        ("l1({**{}})", "is no literal"),
        ("l1({[]: 1})", "unhashable"),
        ("l1({'a.*': 1, 'b': 2, 'a.*': 3})", r"'a\.\*' is given twice"),
        ("l1(piecewise({0: 1, 5: 2, 5: 3}))", "5 is given twice"),
        ("l1(f'{1}')", "is no literal"),
        ("l1((y := 1))", "is no literal"),
        ("l1(*[1, 2])", "is no literal"),
        ("l1(**{'a': 1})", r"\*\* is not allowed in a spec"),
        ("l1(a=1, a=2)", "a"),
        ("l1(linaer(0, 1, steps=2))", "linaer is no schedule; the nearest are linear"),
        ("l1(__import__('os'))", "__import__ is no schedule"),
        ("l1(os.system('x'))", "is no literal"),
        (
            "l1(linear(0))",
            r"missing a required argument: 'end'; the schedule is linear\(start, end, steps\)",
        ),
        ("l1(linear(0, 1, steps=0))", "steps must be at least 1, got 0"),
        ("l1(linear(0, 1e999, steps=1))", "end must be finite, got inf"),
        ("l1(linear(0, 'x', steps=1))", "end must be a number, got 'x'"),
        ("l1(piecewise({1: 2}))", "what holds at step 0"),
        ("l1(" + "0x" + "f" * 9000 + " + 1)", "digits"),
        ("l1(linear(0, 0x" + "f" * 9000 + ", steps=1))", "end must be finite"),
        ("l1(linear(0, 1, steps=-0x" + "f" * 9000 + "))", "digits"),
        ("l1(" + "9" * 5000 + ")", "is no spec such as"),
        ("l1(" + "[" * 3000 + "]" * 3000 + ")", "too"),
        ("l1(" + "-" * 3000 + "1)", "is no"),
        ("l1(" + "x" * 20_000 + ")", "at most 10000 characters"),
        ("l1(\0)", "is no spec such as"),
        ("l1(\ud800)", "is no spec such as"),
        ("l1(1)\nl2(1)", "is no spec such as"),
        (5, "a spec must be a string, got 5"),
        (b"l1", "a spec must be a string"),
    ],
)
def test_anything_else_is_refused_with_its_reason(spec, message):
    with pytest.raises(SpecError, match=message):
        parse(spec)


@pytest.mark.parametrize("depth", [500, 2000, 4000, 9000])
@pytest.mark.parametrize("sign", ["-", "~", "not "])
def test_what_is_nested_too_deep_is_refused_in_the_same_words_by_every_python(sign, depth):
    """How deep the parser, the tree and what reads it go differs between versions of Python."""
    spec = "l1(" + (sign * depth)[:9900] + " 1)"
    with pytest.raises(
        SpecError, match=r"is no spec such as 'name\(1e-5\)': it is nested too deep$"
    ):
        parse(spec)


words = st.sampled_from(
    [
        *(
            "l1",
            "linear",
            "piecewise",
            "warmup",
            "__import__",
            "os",
            "exec",
            "x",
            "lambda t:",
            "if",
        ),
        *(
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            ",",
            "=",
            ":",
            "*",
            "**",
            ".",
            "-",
            "+",
            "'",
            '"',
            "f'",
            "#",
        ),
        *("0", "1e-5", "1e999", "0xff", "-1", "nan", "None", "True", "steps=", "where=", "'a.*'"),
        *(" ", "\n", "\\", "\0", ";", ":=", "@", "await ", "yield ", "é", "\ud800", "{0: 1}"),
    ]
)
texts = st.one_of(
    st.text(max_size=60),
    st.lists(words, max_size=14).map("".join),
    st.lists(words, max_size=12).map(lambda parts: f"l1({''.join(parts)})"),
    st.recursive(
        st.sampled_from(["1", "'a'", "x", "linear(0, 1, 2)"]),
        lambda inner: st.sampled_from(
            ["[{}]", "({},)", "{{0: {}}}", "warmup({}, steps=3)", "-{}"]
        ).flatmap(lambda form: inner.map(form.format)),
        max_leaves=20,
    ).map(lambda literal: f"l1={literal}"),
)


class Watch:
    on = False


noticed = []


def _watch(event, args):
    if Watch.on and event in ("exec", "import", "open", "os.system", "subprocess.Popen"):
        noticed.append((event, str(args)[:200]))


@pytest.fixture(scope="module")
def audited():
    """Python tells this hook of everything that is run, imported or opened; it is never removed."""
    sys.addaudithook(_watch)


@given(text=texts)
@example(text="l1(__import__('os').system('true'))")
@example(text="l1([exec('1') for _ in [1]])")
@example(text="l1(" * 1000)
@settings(max_examples=400, deadline=None)
def test_only_our_errors_come_out_and_nothing_is_run(audited, text):
    noticed.clear()
    Watch.on = True
    try:
        name, args, kwargs = parse(text)
    except RegplugError:
        return
    finally:
        Watch.on = False
        assert noticed == []
    assert name.isidentifier()
    assert isinstance(args, tuple)
    assert all(isinstance(key, str) for key in kwargs)


def test_the_watch_would_notice(audited):
    noticed.clear()
    Watch.on = True
    try:
        exec("1")
        offers(anew=True)
    finally:
        Watch.on = False
    assert {event for event, _ in noticed} >= {"exec", "open"}


@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_attach_with_any_text_raises_only_our_errors(text):
    """Catches a SyntaxError, a RecursionError and their like."""
    with contextlib.suppress(RegplugError):
        regplug.attach(torch.nn.Linear(2, 2), plugins=[text]).detach()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner)
            | st.dictionaries(st.integers() | st.text(), inner, max_size=3)
        ),
        max_leaves=10,
    )
)
def test_every_literal_reads_as_python_reads_it(value):
    assert parse(f"p({value!r})".replace("inf", "1e999")) == ("p", (value,), {})
