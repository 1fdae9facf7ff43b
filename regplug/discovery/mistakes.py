"""What somebody probably meant who wrote something that is no spec.

A guess is said only if it is a spec that works: the caller tries it.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real

__all__ = ["meant"]

# Of other languages and of word processors.
_LETTERS = str.maketrans("−–—“”‘’（），", "---\"\"''(),")  # noqa: RUF001
_WORDS = {"true": "True", "false": "False", "null": "None", "none": "None"}
_HEAD = re.compile(
    r"(?:\w+\.)*(?P<name>[A-Za-z]\w*(?:[-\s]+[A-Za-z]\w*)*)\s*(?P<rest>.*)", re.DOTALL
)
_ARGUMENT = re.compile(r"\s*(?:(?P<key>[A-Za-z_]\w*)\s*[=:](?!=))?\s*(?P<value>.*\S)\s*", re.DOTALL)
_BARE = re.compile(r"[A-Za-z_!*][\w.*!?-]*")
_CALLED = ("name", "plugin", "type")
_OPEN, _CLOSE = "([{", ")]}"


def meant(
    wish: object,
    names: Iterable[str],
    parameters: Callable[[str], Iterable[inspect.Parameter]],
    works: Callable[[str], bool],
) -> list[str]:
    """Return the specs that ``wish`` probably means, or nothing if that can't be told.

    Args:
        wish: what stands where a spec, or a list of plugins, should.
        names: of all plugins.
        parameters: returns those of the plugin of a name.
        works: tells whether a text is a spec of which a plugin can be made.
    """
    folded = {_fold(name): name for name in names}

    def one(text: str) -> str | None:
        for guess in _guesses(text, folded, parameters):
            if works(guess):
                return guess
        return None

    for texts in _readings(wish):
        found = [one(text) for text in texts]
        whole = [guess for guess in found if guess is not None]
        if found and len(whole) == len(found):
            return whole
    return []


def _fold(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).lower()


# --- readings: as which texts ------------------------------------------------------------------


def _readings(wish: object) -> Iterator[list[str]]:
    """Yield ``wish`` as lists of texts, each of which may be a call that is written wrongly."""
    if isinstance(wish, bytes):
        wish = wish.decode(errors="replace")
    if isinstance(wish, str):
        text = wish.translate(_LETTERS).strip().rstrip(";,").strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"`":
            text = text[1:-1].strip()
        yield _split(text, ",;+&|\n")
        yield [text]
    elif isinstance(wish, Mapping):
        for key in _CALLED:
            if isinstance(name := wish.get(key), str):
                others = {k: v for k, v in wish.items() if k != key}
                yield [f"{name}({_listed(others)})"]
        yield [f"{name}({_listed(value)})" for name, value in wish.items()]
    elif isinstance(wish, list | tuple) and wish and isinstance(wish[0], str):
        if len(wish) > 1:
            yield [f"{wish[0]}({', '.join(map(_literal, wish[1:]))})"]
        yield [str(part) for part in wish]
    elif isinstance(wish, list | tuple) and wish and all(isinstance(p, Mapping) for p in wish):
        yield [f"{name}({_listed(value)})" for part in wish for name, value in part.items()]


def _listed(value: object) -> str:
    if isinstance(value, Mapping):
        if not all(str(key).isidentifier() for key in value):  # patterns, each with its strength
            return repr(dict(value))
        return ", ".join(f"{key}={_literal(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_literal, value))
    return "" if value is None else _literal(value)


def _literal(value: object) -> str:
    # Numbers of numpy and tensors of one element are plain ones in a spec.
    plain = isinstance(value, int | float) or not isinstance(value, Real)
    return repr(value if plain else float(value))  # type: ignore[arg-type]


def _split(text: str, at: str) -> list[str]:
    """Return the parts of ``text`` between these signs, where no bracket is open."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _OPEN:
            depth += 1
        elif letter in _CLOSE:
            depth -= 1
        elif letter in at and depth <= 0:
            parts.append("")
            continue
        parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


# --- guesses: with which arguments -------------------------------------------------------------


def _guesses(
    text: str, folded: Mapping[str, str], parameters: Callable[[str], Iterable[inspect.Parameter]]
) -> Iterator[str]:
    head = _HEAD.fullmatch(text)
    if head is None or (name := folded.get(_fold(head["name"]))) is None:
        return
    rest = head["rest"]
    if rest[:1] in ("(", "[", "{", ":", "="):
        rest = rest[1:]
    args, beyond = _closed(rest.strip())
    if beyond.strip(_CLOSE + " ,"):
        return
    yield f"{name}({args})"
    yield f"{name}({', '.join(_arguments(args, list(parameters(name))))})"


def _closed(text: str) -> tuple[str, str]:
    """Return ``text`` up to the bracket that it did not open, its own ones closed, and the rest."""
    open_: list[str] = []
    for place, letter in enumerate(text):
        if letter in _OPEN:
            open_.append(_CLOSE[_OPEN.index(letter)])
        elif letter in _CLOSE:
            if not open_:
                return text[:place].strip(), text[place:]
            open_.pop()
    return text + "".join(reversed(open_)), ""


def _arguments(text: str, parameters: list[inspect.Parameter]) -> Iterator[str]:
    """Yield the arguments with strings in quotes, and with keywords that there are."""
    free = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    for part in _split(text, ",;"):
        argument = _ARGUMENT.fullmatch(part)
        assert argument is not None  # a part is not empty
        key, value = argument["key"], argument["value"]
        value = _WORDS.get(value.lower(), value)
        if value not in _WORDS.values() and _BARE.fullmatch(value):
            value = repr(value)
        if key is None:
            following = next(iter(free), None)
            if following is not None:
                by_name = free.pop(following).kind is inspect.Parameter.KEYWORD_ONLY
                # A number or schedule too many is none of those that have a name.
                key = following if by_name and value[:1] in "'\"[" else None
        elif key in free:
            del free[key]
        elif close := difflib.get_close_matches(key, free, n=1) or [
            name for name, p in free.items() if p.default is p.empty
        ]:
            key = close[0]
            del free[key]
        yield value if key is None else f"{key}={value}"
