"""What can go wrong, one class per cause; every message gives the rule, what came, and what to do next."""

import inspect
import os
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
"""Categories of characters that print nothing, or command a terminal."""


def printable(text: str) -> str:
    r"""A text with what does not print, or would command a terminal, as escapes.

    >>> print(printable("a\x1b[31m b"))
    a\x1b[31m b
    """
    return "".join(c if unicodedata.category(c) not in UNPRINTED else ascii(c)[1:-1] for c in text)


class SecantError(Exception):
    """Base of every error that secant raises on purpose: one line, ready to show to a user."""

    def __init__(self, rule: str, got: str, todo: str) -> None:
        self.rule, self.got, self.todo = rule, got, todo
        super().__init__(printable(" ".join(f"{rule}; got {got}. {todo}".split())))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.rule, self.got, self.todo)


class ModelNotFound(SecantError):
    """There is no such folder or hub model, or the hub could not be reached or refused access."""


class ModelRefused(SecantError):
    """The model was found and is not loaded: not a causal LM, remote code, pickled or missing weights."""


class BadWeights(SecantError):
    """A weight holds NaN, infinity, or numbers of another kind than a model multiplies with."""


class TrainingMode(SecantError):
    """The model is in training mode, so that its forward pass is random."""


class BadPrompt(SecantError):
    """The prompt is empty, too long, or names tokens that the vocabulary does not have."""


class BadArgument(SecantError):
    """An argument is outside what the function accepts."""


class NoRule(SecantError):
    """A torch function met a live tensor and the table of rules has no row for it."""


class NotExact(SecantError):
    """The held network does not reproduce the model within tolerance."""


class ReplayMismatch(SecantError):
    """A replay took another course than the recorded pass."""


class NoPoint(SecantError):
    """The network has no such point."""


class TooLarge(SecantError):
    """What was asked for does not fit in memory."""


class OutputFailed(SecantError):
    """A result could not be written; nothing half-written is left behind."""


class DamagedFile(SecantError):
    """A file is not what its name promises."""


class NotConverged(SecantError):
    """A solver did not reach its tolerance within its limit."""


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
    """A seed of random numbers. Raises BadArgument."""
    return integer(seed, 0, 2**63 - 1, "A seed is a whole number that is not negative", "seed = ")


def integer(value: Any, least: int, most: int, rule: str, name: str = "") -> int:
    """A whole number between two bounds. Raises BadArgument, with a rule that says what has them."""
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
    """Some known names, each once, from one or several. Raises BadArgument, with a rule that says what they are."""
    known = list(known)
    every = [values] if isinstance(values, str) else list(values) if isinstance(values, Iterable) else []
    if not every or not all(isinstance(value, str) and value in known for value in every):
        raise BadArgument(f"{rule} are of {', '.join(known)}", f"{values!r:.60}", "Choose from them.")
    if len(set(every)) < len(every):
        raise BadArgument(f"{rule} are given once each", f"{values!r:.60}", "Leave out what comes twice.")
    return every


def number(value: Any, least: float, most: float, rule: str, name: str = "", todo: str = "") -> float:
    """A finite number between two bounds. Raises BadArgument, with a rule that says what has them."""
    try:
        found = None if isinstance(value, bool | str | bytes | complex) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        found = None
    if found is None or not least <= found <= most or found in (float("inf"), float("-inf")):
        raise BadArgument(rule, f"{name}{shown(value)}", todo or f"Use {least:g} to {most:g}.")
    return found


def share(value: Any, rule: str, name: str, todo: str) -> float:
    """A number above 0 and below 1. Raises BadArgument, with a rule that says so."""
    found = number(value, 0, 1, rule, name, todo)
    if found in (0, 1):
        raise BadArgument(rule, f"{name}{shown(value)}", todo)
    return found


def several(prompts: Any) -> list[Any]:
    """Prompts in a list, from whatever gives them one by one. Raises BadArgument where there are none, or it is one.

    >>> several(text for text in ("a", "b"))
    ['a', 'b']
    """
    one = isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable)
    found = [] if one or getattr(prompts, "ndim", 1) != 1 else list(prompts)
    if not found:
        raise BadArgument("Prompts are a list of some", shown(prompts), 'Give, for instance, ["The bridge is"].')
    return found


def one_of(value: Any, names: Sequence[str], what: str) -> str:
    """One of some names. Raises BadArgument."""
    if not isinstance(value, str) or value not in names:
        raise BadArgument(f"{what} is one of {', '.join(names)}", shown(value), "Choose one of them.")
    return value


def shown(value: Any) -> str:
    """A value for a message: short, and of what kind it is.

    >>> shown("3"), shown(2)
    ("'3', a str", '2, an int')
    """
    text, kind = repr(value), type(value).__name__
    kind = f"an {kind}" if kind[0] in "aeiouAEIO" else f"a {kind}"
    return kind if len(text) > 60 or "\n" in text else text if value is None else f"{text}, {kind}"


MAKES = {
    "LM": "Make one with sc.load or sc.LM.",
    "Run": "Make one with sc.freeze(lm, prompt).",
    "Operator": "Make one with run.operator().",
    "SVD": "Make one with sc.svd(op).",
}
"""Where objects of ours come from."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A public function that raises BadArgument where an argument is of a kind that its annotations do not name.

    Numbers by themselves, prompts and tensors of a shape are left to the function, which has rules for them. Where it
    takes a list, it gets one of a generator, a set, an array or a table's column too.
    """
    signature, hints = inspect.signature(function), dict[str, Any]()

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for name, given in bound.arguments.items():
            if name not in hints:
                hints[name] = _hint(function, signature.parameters[name])
            value = bound.arguments[name] = _in_a_list(given, hints[name])
            if not _fits(value, hints[name]):
                kinds = _kinds(hints[name])
                todo = next((MAKES[k.__name__] for k in kinds if getattr(k, "__name__", "") in MAKES), "Give one.")
                what = " or ".join(dict.fromkeys(map(_named, kinds)))
                raise BadArgument(f"{function.__name__} takes {what} as {name}", shown(given), todo)
        return function(*bound.args, **bound.kwargs)

    return call


def _hint(function: Any, parameter: inspect.Parameter) -> Any:
    """The kinds of an argument; Any where the function judges it itself."""
    hint = parameter.annotation
    if isinstance(hint, str):
        try:
            hint = eval(hint, function.__globals__)  # an annotation of our own source
        except NameError:  # which is known to type checkers alone
            return Any
    kinds = _kinds(hint)
    alone = [k for k in kinds if k not in (NoneType, int, float, SupportsIndex, SupportsFloat)]
    judged = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    prompt = any(get_origin(k) is Sequence and "Mapping" in repr(k) for k in kinds)  # or a list of some
    return hint if alone and not prompt and not judged and hint is not parameter.empty else Any


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (NoneType if hint is None else hint,)


def _in_a_list(value: Any, hint: Any) -> Any:
    """A list of what others give one by one, where a list is meant; a set's in order. Else the value as it is."""
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
    """Whether a value is of one kind."""
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
    if of is Iterable and getattr(value, "ndim", 1) == 0:  # which has the method, and can't
        return False
    of = getattr(of, "array_type", of)  # a tensor of some shape
    return not isinstance(of, type) or isinstance(value, of)


def _made(kind: Callable[[Any], object], value: Any) -> bool:
    """Whether a number can be made of a value, which of most arrays and tensors it can't."""
    try:
        kind(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
    return True


def _named(kind: Any) -> str:
    """A kind in words."""
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
