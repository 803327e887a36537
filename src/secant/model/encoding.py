"""Token ids of prompts, and of single tokens that are named by their text; a prompt is encoded in full or refused.

The tokens of a prompt are compared with its text. A tokenizer may normalise a text, for example to lower case. If it
drops characters, or has no token for them, the prompt is refused, and the error names them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secant.errors import BadPrompt, quoted, shown
from secant.foreign import explained, quiet
from secant.model.tokens import Encoded, Tokens, as_id

PROMPT = "A prompt is a text, token ids, or chat messages"
SPACE = "·"
"""How a space is shown in a token."""

BEFORE = ("", "a", "a ", ".", "\n")
"""Texts that are put before a text, to find out as which token the tokenizer writes it."""

MOST = 100
"""The most characters of a prompt that are tried one by one."""

NAMED = 5
"""The most unknown words or characters that a message names."""

THOUGHT = re.compile(r"\s*<think>.*</think>", re.DOTALL)
"""The reasoning at the start of an answer: chat templates of reasoning models omit it in earlier turns."""


def encode(tokens: Tokens, prompt: Any) -> list[int]:
    """Token ids of a text, of ids, or of chat messages through the tokenizer's chat template.

    Args:
        tokens: The tokenizer.
        prompt: A text, token ids, or chat messages.

    Raises:
        BadPrompt: The prompt is none of these, or the tokenizer does not encode all of it.
        ModelRefused: The tokenizer does not work.

    """
    elements = [] if isinstance(prompt, str) else listed(prompt)
    ids = [as_id(element) for element in elements]
    if not isinstance(prompt, str) and None not in ids:
        return [i for i in ids if i is not None]
    if any(i is not None for i in ids):
        raise BadPrompt(PROMPT, f"{quoted(elements[ids.index(None)])} among token ids", "Give whole numbers.")
    if tokens.tokenizer is None:
        raise BadPrompt("A prompt in text requires a tokenizer", "a model without one", "Give token ids.")
    return encoded(tokens, prompt).ids if isinstance(prompt, str) else _of_chat(tokens, elements)


def encoded(tokens: Tokens, text: str, special: bool = True) -> Encoded:
    """The tokens of a text, which contain all of it.

    Args:
        tokens: The tokenizer.
        text: The text.
        special: Whether to add the special tokens of every text.

    Raises:
        BadPrompt: A character of the text is in no token.
        ModelRefused: The tokenizer does not work.

    """
    if not text:
        return Encoded([], None, [])
    with quiet():
        found = tokens.called(text, special)
        _complete(tokens, text, found, special)
    return found


def _of_chat(tokens: Tokens, messages: Sequence[Any]) -> list[int]:
    """Token ids of messages through the chat template, which must contain every message."""
    for n, m in enumerate(messages):
        if not isinstance(m, Mapping) or not {"role", "content"} <= set(m):
            got = quoted(messages)
            raise BadPrompt(f"{PROMPT} with role and content", got, "Give each message both.")
        for part in ("role", "content"):
            if not isinstance(m[part], str):
                got = f"{m[part]!r}"[:60] + f" in message {n}"
                raise BadPrompt(f"A message's {part} is a text", got, "Write it as one.")
    if getattr(tokens.tokenizer, "chat_template", None) is None:
        raise BadPrompt("Chat messages require a chat template", f"{tokens.name} without one", "Give a text.")
    with quiet():
        ids, text = tokens.templated(messages)
        squeezed, wanted = _squeezed(text), [_said(m) for m in messages]
        for n, content in enumerate(wanted):
            if max(squeezed.count(form) for form in _forms(content)) < wanted.count(content):
                raise BadPrompt(
                    "A chat template must contain every message unchanged",
                    f"a prompt without message {n}, of role {messages[n]['role']!r}",
                    "Change its role or content, or give the prompt as text.",
                )
        found = tokens.called(text)
        if found.ids == ids:
            _complete(tokens, text, found)
        else:  # the tokenizer does not encode the template's text like other texts
            for m in messages:
                encoded(tokens, m["content"], special=False)
    return ids


def listed(prompt: Any) -> list[Any]:
    """The elements of a prompt that is not a text; the numbers of a tensor or array with one row.

    Args:
        prompt: The prompt.

    Raises:
        BadPrompt: It is not one sequence.

    """
    of_bytes = isinstance(prompt, bytes | bytearray | memoryview)
    if isinstance(prompt, Sequence | Iterator) and not of_bytes:
        return list(prompt)
    if of_bytes or not hasattr(prompt, "tolist") or not hasattr(prompt, "shape"):
        raise BadPrompt(PROMPT, shown(prompt), "Give one, ids and messages as a list.")
    shape = tuple(prompt.shape)
    if len(shape) > 2 or (len(shape) == 2 and shape[0] > 1):
        raise BadPrompt("A prompt is one sequence of ids", f"shape {shape}", "Give one row.")
    with explained(BadPrompt, PROMPT, "Give token ids as a list.", "an unreadable tensor"):
        found = prompt.tolist()
    return found if len(shape) == 1 else [found] if not shape else list(*found)


def _complete(tokens: Tokens, text: str, found: Encoded, special: bool = False) -> None:
    """Raises BadPrompt if the tokens of a text do not contain all of it."""
    if lost := _left_out(tokens, text) or _uncovered(tokens, text, found, special):
        raise BadPrompt(
            "Every character of a prompt must be in a token",
            ", ".join([*map(_named, dict.fromkeys(lost))][:NAMED]) + ", which the tokenizer drops",
            "Remove or replace it.",
        )
    if (unknown := _unknown_in(tokens, text, found)) is not None:
        raise BadPrompt(
            "Every word must be in the model's vocabulary",
            ", ".join(repr(word)[:60] for word in unknown[:NAMED]) or "spaces that are not",
            "Use words and spacing that the model knows, or give token ids from Python.",
        )


def _left_out(tokens: Tokens, text: str) -> list[str]:
    """Characters, or halves of characters, that the tokenizer drops."""
    units: list[str] = []
    for i, c in enumerate(text):
        units[-1:] = [units[-1] + c] if _joins(text, i) else [*units[-1:], c]
    lost = []
    for unit in dict.fromkeys(units):
        bad = [c for c in unit if not c.isspace() and not tokens.keeps(c)]
        whole = (unit, unicodedata.normalize("NFKC", unit))  # a letter and its accent, as two characters and as one
        lost += bad if len(unit) == 1 or not all(map(tokens.keeps, whole)) else []
    return lost


def _uncovered(tokens: Tokens, text: str, found: Encoded, special: bool) -> list[str]:
    """Characters that are in no token and without which the tokens are the same."""
    if found.spans is None:
        return []
    spans = [span for span, added in zip(found.spans, found.added, strict=True) if not added]
    covered = {place for lo, hi in spans for place in range(lo, hi)}
    bare = [i for i, c in enumerate(text) if i not in covered and not c.isspace() and not _joins(text, i)]

    def idle(places: Sequence[int]) -> bool:
        """Whether the text has the same tokens without these characters."""
        return tokens.called("".join(c for i, c in enumerate(text) if i not in places), special).ids == found.ids

    if bare and idle(bare):
        return [text[i] for i in bare]
    return [text[i] for i in bare[:MOST] if idle([i])]  # some merge with neighbours, such as two quotes into one


def _unknown_in(tokens: Tokens, text: str, found: Encoded) -> list[str] | None:
    """The stretches of a text that unknown tokens stand for; None if there are none, an empty list if they are spaces.

    Unknown tokens that are written out in the text do not count.
    """
    typed = [str(tokens.piece(i)) for i in tokens.unknown]
    if found.spans is not None:
        each = zip(found.ids, found.spans, found.added, strict=True)
        at = [text[lo:hi] for i, (lo, hi), added in each if i in tokens.unknown and not added]
        stretches = [stretch for stretch in at if stretch.strip() not in typed]
    else:
        parts = re.split("|".join(map(re.escape, typed)), text) if typed else []
        stretches = [part for part in parts if part.strip() and tokens.has_unknown(part)]
    if not stretches:
        return None
    words = dict.fromkeys(" ".join(stretches).split() or text.split())
    bad = [word for word in words if word not in typed and tokens.has_unknown(word)]
    return bad or [stretch for stretch in stretches if stretch.strip()]


def find(tokens: Tokens, text: str, vocabulary: Mapping[str, Sequence[int]], rows: int) -> int:
    """The id of the token that a text names.

    This is the token that reads like the text; a leading space may be missing or superfluous, as long as only one
    token fits. If several tokens read the same, it is the one that the tokenizer writes.

    Args:
        tokens: The tokenizer.
        text: The text of the token.
        vocabulary: The ids of each token text.
        rows: How many tokens may be named.

    Raises:
        BadPrompt: No token fits, or several do.

    """
    readings = list(dict.fromkeys([text, text.replace(SPACE, " ")]))
    fitting: dict[str, list[int]] = {}
    for reading in readings:
        bare = reading.removeprefix(" ")
        forms = [reading] if reading.startswith(" ") and reading in vocabulary else [bare, " " + bare]
        for form in forms:
            if ids := [i for i in vocabulary.get(form, ()) if i < rows]:
                fitting[form] = ids
    if not fitting:
        made = {i for reading in readings for i in written(tokens, reading) if i < rows}
        fitting = {text: sorted(made)} if made else {}
    elif len(fitting) == 1:
        ((form, ids),) = fitting.items()
        own = written(tokens, form) & set(ids) if len(ids) > 1 else set(ids)
        fitting = {form: sorted(own) if len(own) == 1 else ids}
    every = [(form, i) for form, ids in fitting.items() for i in ids]
    if len(every) == 1:
        return every[0][1]
    names = [f"{form!r} (#{i})" for form, i in every]
    count = {2: "two", 3: "three"}.get(len(names), str(len(names)))
    got = f"{text!r}, which is {count}: {', '.join(names[:-1])} and {names[-1]}" if names else repr(text)
    raise BadPrompt("A target is one token of the vocabulary", got, "Give its text with its space, or its id as #12.")


def written(tokens: Tokens, text: str) -> set[int]:
    """The tokens that the tokenizer encodes a text as, by itself or after another text."""
    if tokens.tokenizer is None:
        return set()
    try:
        encoded(tokens, text, special=False)
    except BadPrompt:
        return set()
    found = set()
    with quiet():
        for before in BEFORE:
            start = tokens.called(before).ids if before else []
            ids = tokens.called(before + text).ids
            if len(ids) == len(start) + 1 and ids[:-1] == start:
                found.add(ids[-1])
    return found - tokens.unknown


def _said(message: Mapping[str, str]) -> str:
    """The text that a chat template must contain of a message; for an answer, the text after its reasoning."""
    content = message["content"]
    return THOUGHT.sub("", content, count=1) if message["role"] == "assistant" else content


def _forms(content: str) -> set[str]:
    """A message as a chat template may write it, without spaces: as it is, or as JSON (`|tojson`)."""
    return {_squeezed(content), *(_squeezed(json.dumps(content, ensure_ascii=own)[1:-1]) for own in (False, True))}


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _joins(text: str, at: int) -> bool:
    """Whether a character combines with those before it, as an accent does with its letter."""
    starts = () if text[at].isascii() else range(max(0, at - 3), at)
    return any(len(unicodedata.normalize("NFKC", text[lo : at + 1])) == 1 for lo in starts)


def _named(character: str) -> str:
    """A character as messages name it; one that does not print is named by its number."""
    alone = character.isprintable() and not unicodedata.combining(character)
    return repr(character) if alone else f"U+{ord(character):04X}"
