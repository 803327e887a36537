"""The tokenizer of a model: the tokens of a text, and a text for each token, which differs between tokens.

A token that is one byte is written as a byte, like <0xE8>, if the byte is not a character by itself, or if its
character has a token of its own.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from secant.errors import BadPrompt, ModelRefused
from secant.foreign import explained

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A byte that is a token, as sentencepiece writes it."""

PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = {chr(b): b for b in PRINTED} | {
    chr(0x100 + i): b for i, b in enumerate(sorted({*range(256)} - set(PRINTED)))
}  # fmt: skip
"""The byte that each character of a byte-level token stands for (A. Radford et al., 2019)."""

NEVER_IN_VOCABULARY = "\U0010fffd"
"""A character that no vocabulary contains."""

REPAIR = "Correct the tokenizer, or give token ids."


def as_id(value: Any) -> int | None:
    """An integer of any integer type as an int; None for other values.

    Args:
        value: The value.

    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)
    except Exception:  # an array of several elements has the method too
        return None


@dataclass(frozen=True)
class Encoded:
    """A tokenizer's output for a text.

    Attributes:
        ids: The token ids.
        spans: The characters that each token covers, as (start, end); None if the tokenizer does not report them.
        added: Whether each token is a special one that every text gets.

    """

    ids: list[int]
    spans: list[tuple[int, int]] | None
    added: list[bool]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A model's tokenizer, if it has one; any error of the tokenizer becomes ModelRefused.

    Attributes:
        tokenizer: The tokenizer.
        name: The model's name, for messages.

    """

    tokenizer: Any = field(repr=False)
    name: str
    _kept: dict[str, bool] = field(default_factory=dict, repr=False)
    _read: dict[int, str] = field(default_factory=dict, repr=False)  # texts that were looked up

    def called(self, text: str, special: bool = False) -> Encoded:
        """The tokenizer's output for a text, with its types checked.

        Args:
            text: The text.
            special: Whether to add the special tokens of every text.

        Raises:
            BadPrompt: The text is not valid Unicode.
            ModelRefused: The tokenizer fails.

        """
        _check_unicode(text)
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        with explained(ModelRefused, "A tokenizer must turn a text into token ids", REPAIR):
            out = self.tokenizer(
                text, add_special_tokens=special, return_special_tokens_mask=fast, return_offsets_mapping=fast
            )
            ids = [operator.index(i) for i in out["input_ids"]]
            spans = [(int(lo), int(hi)) for lo, hi in out["offset_mapping"]] if fast else None
            added = [bool(mask) for mask in out["special_tokens_mask"]] if fast else [False] * len(ids)
            if {len(ids)} != {len(added), len(ids if spans is None else spans)}:
                raise ValueError("different numbers of ids and offsets")
        return Encoded(ids, spans, added)

    def templated(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], str]:
        """The ids and the text of messages in the model's chat template.

        Args:
            messages: Messages with role and content.

        Raises:
            BadPrompt: The chat template does not accept them.

        """
        given = [dict(m) for m in messages]
        _check_unicode("".join(m["role"] + m["content"] for m in messages))
        with explained(
            BadPrompt, "Chat messages must suit the model's chat template", "Change them, or give the prompt as text.",
            "an error in the template",
        ):  # fmt: skip
            apply = self.tokenizer.apply_chat_template
            out = apply(given, add_generation_prompt=True, return_dict=True)
            ids = [operator.index(i) for i in out["input_ids"]]
            return ids, str(apply(given, add_generation_prompt=True, tokenize=False))

    def keeps(self, character: str) -> bool:
        """Whether a character has tokens of its own."""
        if character not in self._kept:
            ids = self.called(character).ids
            said = "" if not ids else self.decoded(ids)
            named = REPLACEMENT not in said or character == REPLACEMENT
            own = bool(said.strip()) or any(self.piece(i) == character for i in ids)
            self._kept[character] = bool(self.unknown & set(ids)) or (named and own)
        return self._kept[character]

    def has_unknown(self, text: str) -> bool:
        """Whether encoding a text by itself requires an unknown token."""
        return not self.unknown.isdisjoint(self.called(text).ids)

    @cached_property
    def unknown(self) -> frozenset[int]:
        """The unknown tokens: those that the tokenizer declares, and those that only its backend uses."""
        with explained(ModelRefused, "A tokenizer must know its own tokens", REPAIR):
            declared = as_id(getattr(self.tokenizer, "unk_token_id", None))
        found = set() if declared is None else {declared}
        backend = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "model", None)
        if backend is not None:
            try:
                pieces = [piece.id for piece in backend.tokenize(NEVER_IN_VOCABULARY)]
            except Exception:  # a backend without an unknown token raises at such a text
                pieces = []
            if len(pieces) == 1 and self.piece(pieces[0]) != NEVER_IN_VOCABULARY:
                found |= set(pieces)
        return frozenset(found)

    def texts(self, tokens: Iterable[int]) -> list[str]:
        """The text of each token, with its leading space; bytes that are not a character are written like <0xE8>.

        Args:
            tokens: Their ids.

        Raises:
            ModelRefused: The tokenizer fails.

        """
        if self.tokenizer is None:
            return [str(token) for token in tokens]
        known, names = self.unknown, {self.piece(i) for i in self.unknown}
        with explained(ModelRefused, "A tokenizer must write its tokens as text", REPAIR):
            found = []
            for token in tokens:
                if token not in self._read:
                    piece = self._piece(token)
                    # a row of the model without a token; slow tokenizers give it the name of their unknown token
                    unnamed = piece is None or (piece in names and token not in known)
                    self._read[token] = f"<{token}>" if unnamed or piece is None else self._text(token, piece)
                found.append(self._read[token])
            return found

    def _text(self, token: int, piece: str | bytes) -> str:
        """The text of a token whose name in the vocabulary is `piece`."""
        if isinstance(piece, str) and BYTE.fullmatch(piece):
            return piece  # not the character, which may have a token of its own
        shown = self._decoded([token])
        if isinstance(piece, bytes) or REPLACEMENT in shown:
            return _of_bytes(piece)
        if len(piece) == len(shown) + 1 and self._spaced(token, shown):
            return " " + shown
        return shown or piece

    def decoded(self, ids: Sequence[int], plain: bool = False) -> str:
        """The text of several tokens together.

        Args:
            ids: Their ids.
            plain: Whether to leave special tokens out.

        Raises:
            ModelRefused: The tokenizer fails.

        """
        with explained(ModelRefused, "A tokenizer must write its tokens as text", REPAIR):
            return self._decoded(ids, plain)

    def _decoded(self, ids: Sequence[int], plain: bool = False) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=plain, clean_up_tokenization_spaces=False))

    def piece(self, token: int) -> str | bytes | None:
        """The token's name in the vocabulary; None for a row of the model without a token. Raises ModelRefused."""
        with explained(ModelRefused, "A tokenizer must name its tokens", REPAIR):
            return self._piece(token)

    def _piece(self, token: int) -> str | bytes | None:
        try:
            return self.tokenizer.convert_ids_to_tokens(token)
        except Exception:
            if token < self._named:
                raise
            return None  # beyond its end

    @cached_property
    def _named(self) -> int:
        """The number of tokens that the tokenizer reports."""
        return len(self.tokenizer)

    def _spaced(self, token: int, shown: str) -> bool:
        """Whether a token begins with a space that the tokenizer omits at the start of a text."""
        if self._start is None:
            return False
        first, start = self._start
        return self._decoded([first, token]) == f"{start} {shown}"

    @cached_property
    def _start(self) -> tuple[int, str] | None:
        """A token that other tokens can follow, and its text."""
        for token in range(min(self._named, 10_000)):
            shown = self._decoded([token])
            if shown.isalpha() and shown.isascii() and self._decoded([token, token]).startswith(shown):
                return token, shown
        return None


def _check_unicode(text: str) -> None:
    """Raises BadPrompt if a text contains half a character, such as a single surrogate."""
    try:
        text.encode()
    except UnicodeError as error:
        raise BadPrompt("A prompt must be Unicode text", "bytes that are not", "Give it as UTF-8.") from error


def _of_bytes(piece: str | bytes) -> str:
    """The text of a token whose bytes are not whole characters; the bytes outside of characters are written like
    <0xE8>.
    """
    if isinstance(piece, str):
        if not all(c in BYTES for c in piece):
            return piece
        piece = bytes(BYTES[c] for c in piece)
    read = piece.decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in read)
