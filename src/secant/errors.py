"""The errors of secant, one class per cause. Every message gives the rule, what broke it, and what to do."""

import inspect
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from operator import index
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, SupportsFloat, SupportsIndex, TypeVar, Union, get_args, get_origin

P = ParamSpec("P")
R = TypeVar("R")

UNPRINTED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of characters that print nothing or control a terminal."""


def printable(text: str) -> str:
    r"""A text in which unprintable characters, and those that control a terminal, are escaped.

    >>> print(printable("a\x1b[31m b"))
    a\x1b[31m b
    """
    return "".join(c if unicodedata.category(c) not in UNPRINTED else ascii(c)[1:-1] for c in text)


class SecantError(Exception):
    """Base of every error that secant raises on purpose: one line, ready to show to a user.

    Attributes:
        rule: The rule that was broken.
        got: What broke it.
        todo: What the user can do.

    """

    def __init__(self, rule: str, got: str, todo: str) -> None:
        self.rule, self.got, self.todo = rule, got, todo
        super().__init__(printable(" ".join(f"{rule}; got {got}. {todo}".split())))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.rule, self.got, self.todo)


class ModelNotFound(SecantError):
    """The folder or hub model does not exist, or the hub is unreachable or refuses access."""


class ModelRefused(SecantError):
    """The model exists but is not loaded: it is not a causal LM, needs remote code, or its weights are pickled or
    missing.
    """


class BadWeights(SecantError):
    """A weight is NaN or infinite, or has a type that models do not multiply with."""


class TrainingMode(SecantError):
    """The model is in training mode, so its forward pass is random."""


class BadPrompt(SecantError):
    """The prompt is empty or too long, or contains tokens that are not in the vocabulary."""


class BadArgument(SecantError):
    """An argument is outside what the function accepts."""


class NoRule(SecantError):
    """A torch function received a live tensor and has no row in the table of rules."""


class NotExact(SecantError):
    """The frozen network does not reproduce the model within the tolerance."""


class ReplayMismatch(SecantError):
    """A replay diverged from the recorded pass."""


class NoPoint(SecantError):
    """The network has no such activation."""


class TooLarge(SecantError):
    """The work does not fit in memory."""


class OutputFailed(SecantError):
    """A result could not be written. No partial file is left."""


class DamagedFile(SecantError):
    """A file does not contain what it should."""


class NotConverged(SecantError):
    """A solver did not reach its tolerance within its limit."""


class Stopped(BaseException):
    """Work was stopped at a stopping point. It is not an `Exception`, so that no code mistakes it for an error."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full, in Python or on a device; torch has several ways to say it.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    (True, True)
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)  # so is torch.OutOfMemoryError; torch is not imported for it
        and (
            type(error).__name__ == "OutOfMemoryError"
            or any(said in str(error) for said in ("out of memory", "can't allocate memory"))
        )
    )


def seeded(seed: Any) -> int:
    """A seed of random numbers.

    Args:
        seed: A whole number from 0 to 2⁶³ - 1.

    Raises:
        BadArgument: `seed` is anything else.

    """
    return integer(seed, 0, 2**63 - 1, "A seed is a whole number that is not negative", "seed = ")


def integer(value: Any, least: int, most: int, rule: str, name: str = "") -> int:
    """A whole number between two bounds.

    Args:
        value: The number, of any integer type.
        least: The lower bound.
        most: The upper bound.
        rule: What the number counts, for the message.
        name: What the message puts before the value, such as "k = ".

    Raises:
        BadArgument: `value` is not such a number.

    """
    todo = f"Use {least} to {most}."
    try:
        found = index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise BadArgument(rule, f"{name}{shown(value)}", todo)
    if not least <= found <= most:
        raise BadArgument(rule, f"{name}{found}", todo)
    return found


def chosen(values: Any, known: Iterable[str], rule: str) -> list[str]:
    """One or several known names as a list, each once.

    Args:
        values: A name, or several.
        known: All names.
        rule: What the names denote, for the message, in the plural.

    Raises:
        BadArgument: A name is unknown or repeated, or there is none.

    """
    known = list(known)
    every = [values] if isinstance(values, str) else list(values) if isinstance(values, Iterable) else []
    if not every or not all(isinstance(value, str) and value in known for value in every):
        raise BadArgument(f"{rule} are among {', '.join(known)}", quoted(values), "Choose from them.")
    if len(set(every)) < len(every):
        raise BadArgument(f"{rule} are given once each", quoted(values), "Remove the repetition.")
    return every


def number(value: Any, least: float, most: float, rule: str, name: str = "", todo: str = "") -> float:
    """A finite number between two bounds.

    Args:
        value: The number, of any real type.
        least: The lower bound.
        most: The upper bound.
        rule: What the number is, for the message.
        name: What the message puts before the value, such as "tol = ".
        todo: What the user can do; by default to use a number within the bounds.

    Raises:
        BadArgument: `value` is not such a number.

    """
    try:
        found = None if isinstance(value, bool | str | bytes | complex) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        found = None
    if found is None or not least <= found <= most or found in (float("inf"), float("-inf")):
        raise BadArgument(rule, f"{name}{shown(value)}", todo or f"Use {least:g} to {most:g}.")
    return found


def share(value: Any, rule: str, name: str, todo: str) -> float:
    """A number above 0 and below 1. Takes the arguments of `number`.

    Raises:
        BadArgument: `value` is not such a number.

    """
    found = number(value, 0, 1, rule, name, todo)
    if found in (0, 1):
        raise BadArgument(rule, f"{name}{shown(value)}", todo)
    return found


def several(prompts: Any) -> list[Any]:
    """A list of prompts, from any iterable of prompts.

    >>> several(text for text in ("a", "b"))
    ['a', 'b']

    Raises:
        BadArgument: There are none, or `prompts` is a single prompt.

    """
    one = isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable)
    found = [] if one or getattr(prompts, "ndim", 1) != 1 else list(prompts)
    if not found:
        raise BadArgument("Prompts are a non-empty list", shown(prompts), 'Give, for example, ["The bridge is"].')
    return found


def one_of(value: Any, names: Sequence[str], what: str) -> str:
    """One of some names.

    Args:
        value: The name.
        names: All names.
        what: What the names denote, for the message.

    Raises:
        BadArgument: `value` is none of the names.

    """
    if not isinstance(value, str) or value not in names:
        raise BadArgument(f"{what} is one of {', '.join(names)}", shown(value), "Choose one of them.")
    return value


def shown(value: Any) -> str:
    """A value and its type, short enough for a message.

    >>> shown("3"), shown(2), shown(len)
    ("'3', a str", '2, an int', 'a function')
    """
    text, kind = quoted(value), _kind_of(value)
    return text if value is None or text == kind else f"{text}, {kind}"


OPAQUE = re.compile(r"^<|<(function|class|built-in|bound|[\w.]+ object)| at 0x|\b(tensor|array|Parameter)\(|\n")
"""What in the repr of a value says nothing to users."""


def quoted(value: Any, most: int = 60) -> str:
    """A value, short enough for a message; only its type if it is long, or if its elements or address would be shown.

    >>> quoted("3"), quoted([1, 2]), quoted(object()), quoted([len])
    ("'3'", '[1, 2]', 'an object', 'a list')
    """
    if isinstance(value, str):
        return repr(value if len(value) <= most else f"{value[: most - 1]}…")
    text = repr(value)
    return _kind_of(value) if len(text) > most or OPAQUE.search(text) else text


def _kind_of(value: Any) -> str:
    """The type of a value, with an article; for an array or a tensor also its shape."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = "function" if callable(value) and hasattr(value, "__qualname__") else type(value).__name__
    shape = getattr(value, "shape", None)
    of = f" of shape {' x '.join(map(str, shape))}" if isinstance(shape, tuple) and shape else ""
    return f"an {kind}{of}" if kind.startswith((*"aeiouAEIO", "ndarray")) else f"a {kind}{of}"


MAKES = {
    "LM": "Make one with sc.load or sc.LM.",
    "Run": "Make one with sc.freeze(lm, prompt).",
    "Operator": "Make one with run.operator().",
    "SVD": "Make one with sc.svd(op).",
}
"""How users make the objects that functions take."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, raising BadArgument if an argument's type does not match its annotation.

    Numbers, prompts and tensor shapes are left to the function, which has rules for them. If the annotation is a
    sequence, generators, sets, arrays and table columns are passed as lists.
    """
    signature, hints = inspect.signature(function), dict[str, Any]()

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}: {error}") from None
        for name, given in bound.arguments.items():
            if name not in hints:
                hints[name] = _hint(function, signature.parameters[name])
            value = bound.arguments[name] = _in_a_list(given, hints[name])
            if not _fits(value, hints[name]):
                kinds = _kinds(hints[name])
                todo = next((MAKES[k.__name__] for k in kinds if getattr(k, "__name__", "") in MAKES), "Pass one.")
                what = " or ".join(dict.fromkeys(map(_named, kinds)))
                raise BadArgument(f"{function.__name__} takes {what} as {name}", shown(given), todo)
        return function(*bound.args, **bound.kwargs)

    return call


def _hint(function: Any, parameter: inspect.Parameter) -> Any:
    """The annotation of an argument; Any if the function checks the argument itself."""
    hint = parameter.annotation
    if isinstance(hint, str):
        try:
            hint = eval(hint, function.__globals__)  # an annotation in secant's own source
        except NameError:  # a name that only type checkers import
            return Any
    kinds = _kinds(hint)
    alone = [k for k in kinds if k not in (NoneType, int, float, SupportsIndex, SupportsFloat)]
    judged = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    prompt = any(get_origin(k) is Sequence and "Mapping" in repr(k) for k in kinds)  # a prompt, or a list of prompts
    return hint if alone and not prompt and not judged and hint is not parameter.empty else Any


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (NoneType if hint is None else hint,)


def _in_a_list(value: Any, hint: Any) -> Any:
    """A list, if a sequence is annotated and another iterable is given; sets are sorted. Else the value itself."""
    kinds = () if hint is Any else _kinds(hint)
    others = [kind for kind in kinds if get_origin(kind) is not Sequence]
    if len(others) == len(kinds) or isinstance(value, list | tuple | str | bytes | bytearray | Mapping):
        return value
    if not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1 or any(_is(value, kind) for kind in others):
        return value
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return value.tolist() if hasattr(value, "tolist") else list(value)


def _fits(value: Any, hint: Any) -> bool:
    return hint is Any or any(_is(value, kind) for kind in _kinds(hint))


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of one annotated type."""
    of = get_origin(kind) or kind
    if of in (int, SupportsIndex, float, SupportsFloat):
        return not isinstance(value, bool | str | bytes) and _made(
            index if of in (int, SupportsIndex) else float, value
        )
    if of is bool:
        return type(value).__name__ in ("bool", "bool_")  # numpy's as well
    if of is Literal:
        return isinstance(value, str)
    if of is Path:
        return isinstance(value, os.PathLike)
    if of is Callable:
        return callable(value)
    if of is Sequence:
        listed = hasattr(value, "__len__") and hasattr(value, "__getitem__")
        if not listed or isinstance(value, str | bytes | Mapping) or getattr(value, "ndim", 1) != 1:
            return False
        return all(_fits(each, get_args(kind)[0]) for each in value)
    if of is Mapping and isinstance(value, Mapping):
        return all(_fits(each, get_args(kind)[1]) for each in value.values())
    if of is Iterable and getattr(value, "ndim", 1) == 0:  # it has __iter__, which raises
        return False
    of = getattr(of, "array_type", of)  # a tensor of some shape
    return not isinstance(of, type) or isinstance(value, of)


def _made(kind: Callable[[Any], object], value: Any) -> bool:
    """Whether a value converts to a number; most arrays and tensors do not."""
    try:
        kind(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
    return True


def _named(kind: Any) -> str:
    """An annotated type, in words."""
    of = get_origin(kind) or kind
    if of is Sequence:
        inner = " or ".join(dict.fromkeys(map(_named, _kinds(get_args(kind)[0]))))
        return f"a list, each {inner}"
    names = {
        NoneType: "None", str: "a text", bool: "True or False", int: "a whole number", SupportsIndex: "a whole number",
        float: "a number", SupportsFloat: "a number", Literal: "a text", Callable: "a function", Mapping: "a mapping",
        slice: "a slice",
    }  # fmt: skip
    name = getattr(getattr(of, "array_type", of), "__name__", str(of))
    return names.get(of, f"an {name}" if name[0] in "AEIOULS" and name[:2] not in ("Se", "Un") else f"a {name}")
