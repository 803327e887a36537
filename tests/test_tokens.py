"""Tokens named by their text, and prompts: ids represent the given text exactly, or an error names what is wrong."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from families import model_of, prompt
from helpers import real
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

import secant as sc
from secant.analyses.screening import looked_up
from secant.errors import BadPrompt, ModelRefused
from secant.foreign import explained, quiet
from secant.model.encoding import encode
from secant.model.tokens import BYTES
from secant.steering.generate import continued, text_of, weighed

ROWS = 400
SYMBOLS = {byte: character for character, byte in BYTES.items()}


@pytest.fixture(scope="module")
def bare() -> sc.LM:
    """A model without a tokenizer."""
    return model_of("llama", vocab_size=ROWS)


@pytest.fixture
def of(bare: sc.LM) -> Callable[..., sc.LM]:
    """The model with a tokenizer."""

    def made(model: Any, normalizer: Any = None, split: Any = None, decoder: Any = None, **how: Any) -> sc.LM:
        backend = Tokenizer(model)
        for name, part in (("normalizer", normalizer), ("pre_tokenizer", split), ("decoder", decoder)):
            if part is not None:
                setattr(backend, name, part)
        return replace(bare, tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend, **how))

    return made


def vocabulary(*pieces: str) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces)}


def sentencepiece(of: Callable[..., sc.LM]) -> sc.LM:
    """As Llama's: a byte for each character that has no token, a space put before every text."""
    pieces = vocabulary("<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", ".", "▁▁", "▁a", "·", "&")
    model = models.BPE(pieces, [("▁", "a"), ("▁", "▁")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return of(model, normalizer, decoder=decoders.Sequence(parts), unk_token="<unk>")


def byte_level(of: Callable[..., sc.LM], *without: int) -> sc.LM:
    """As GPT-2's, of some bytes, a token each, and of è, a space before a half of it, and ¢."""
    symbols = [SYMBOLS[b] for b in range(256) if b not in without]
    first, second = (SYMBOLS[b] for b in "è".encode())
    merges = [(first, second), (SYMBOLS[0x20], first), (SYMBOLS[0xC2], SYMBOLS[0xA2])]
    made = [a + b for a, b in merges if {a, b} <= set(symbols)]
    model = models.BPE(vocabulary(*symbols, *made), [m for m in merges if m[0] + m[1] in made])
    level = {"add_prefix_space": False, "use_regex": False}
    return of(model, split=pre_tokenizers.ByteLevel(**level), decoder=decoders.ByteLevel())


# ---------------------------------------------------------------------------------------- texts of tokens


def test_a_byte_is_not_the_character_that_it_looks_like(of: Callable[..., sc.LM]) -> None:
    lm = sentencepiece(of)
    names = lm.tokenizer.get_vocab()
    assert lm.text(names["<0x2E>"]) == "<0x2E>"
    assert lm.token(".") == names["."] != lm.token("<0x2E>") == names["<0x2E>"]
    assert lm.token("\n") == names["<0x0A>"]  # what the tokenizer writes it as
    assert [lm.text(names[piece]) for piece in ("▁", "▁▁", "▁a", "a")] == [" ", "  ", " a", "a"]
    assert len(set(lm.texts)) == ROWS
    assert lm.texts[-1] == f"<{ROWS - 1}>"


def test_bytes_of_no_character_are_shown_as_bytes(of: Callable[..., sc.LM]) -> None:
    lm = byte_level(of)
    names = lm.tokenizer.get_vocab()
    assert [lm.text(i) for i in lm.encode("世è")] == ["<0xE4>", "<0xB8>", "<0x96>", "è"]
    assert lm.text(names[SYMBOLS[0x20] + SYMBOLS[0xC3]]) == " <0xC3>"
    assert lm.text(names[SYMBOLS[0xA2]]) == "<0xA2>"  # the piece is called ¢
    assert lm.token("¢") == names[SYMBOLS[0xC2] + SYMBOLS[0xA2]]
    assert lm.token("<0xA2>") == names[SYMBOLS[0xA2]]
    assert len(set(lm.texts)) == ROWS


def test_a_replacement_character_stays_one(of: Callable[..., sc.LM]) -> None:
    lm = of(models.WordLevel(vocabulary("a", "\ufffd"), unk_token="a"))
    assert lm.texts[:2] == ["a", "\ufffd"]


def test_of_tokens_that_read_the_same_the_tokenizer_chooses(of: Callable[..., sc.LM]) -> None:
    """As of tokens that end a word, and do not."""
    pieces = vocabulary("a", "b", "b</w>", "ab", "ab</w>", "a</w>")
    model = models.BPE(pieces, [("a", "b"), ("a", "b</w>")], end_of_word_suffix="</w>")
    lm = of(model, decoder=decoders.Replace("</w>", ""))
    assert lm.vocabulary["ab"] == [3, 4]
    assert lm.token("ab") == 4
    assert lm.token("#3") == 3


def test_where_it_does_not_both_are_named(of: Callable[..., sc.LM]) -> None:
    lm = of(models.WordLevel(vocabulary("x1", "x2", "y"), unk_token="y"), decoder=decoders.Replace(Regex("[0-9]"), ""))
    assert lm.vocabulary["x"] == [0, 1]
    with pytest.raises(BadPrompt, match=r"got 'x', which is two: 'x' \(#0\) and 'x' \(#1\)\. Give .* its id"):
        lm.token("x")
    assert (lm.token("#0"), lm.token("#1"), lm.token("y")) == (0, 1, 2)
    assert lm.spelled("x") == [0, 1]
    assert lm.spelled("#1") == [1]


def test_a_dot_that_stands_for_a_space_may_be_a_dot(of: Callable[..., sc.LM]) -> None:
    lm = sentencepiece(of)
    names = lm.tokenizer.get_vocab()
    assert lm.token("·a") == lm.token(" a") == names["▁a"]
    with pytest.raises(BadPrompt, match=rf"which is two: '·' \(#{names['·']}\) and ' ' \(#{names['▁']}\)"):
        lm.token("·")


def test_a_number_sign_is_an_id(of: Callable[..., sc.LM]) -> None:
    lm = of(models.WordLevel(vocabulary("#1", "x"), unk_token="x"))
    assert lm.token("#1") == 1
    assert lm.token("#0") == 0
    for bad in (f"#{ROWS}", -1, ROWS, 2**70, True, np.array([1, 2])):
        with pytest.raises(BadPrompt, match=f"Token ids are 0 to {ROWS - 1}; got "):
            lm.token(bad)
    for bad in (-1, ROWS):
        with pytest.raises(BadPrompt, match="Token ids are"):
            lm.text(bad)


def test_every_text_of_a_trained_model_is_one_token() -> None:
    lm = sc.load(str(real("stories260K")))
    assert len(set(lm.texts)) == lm.size
    run = sc.freeze(lm, "Once upon a time, there was a little girl named Lily")
    a = sc.attribute(run, ".", baseline="none")
    assert (a.target, round(a.logit, 1)) == (".", 15.8)
    assert lm.token("<0x2E>") == 49
    assert looked_up(lm, ["."]) == ({".": [426]}, [])
    assert lm.spelled(".") == [426]
    (direction,) = lm.unembedding[49][:, None].double()[None]
    best = sc.decode(lm, direction, "output", top=lm.size, keep=lambda text: text != "<0x2E>")[0]
    assert {word.id for word in best} == set(range(lm.size)) - {49}


class Slow(PreTrainedTokenizer):
    """A tokenizer in Python: a token for each character, of those that it knows, none for some."""

    def __init__(self, known: str = "abc d", gone: str = "", **kwargs: Any) -> None:
        self.known, self.gone = ["<unk>", *known], gone
        super().__init__(unk_token="<unk>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self.known)

    def get_vocab(self) -> dict[str, int]:
        return {**{piece: i for i, piece in enumerate(self.known)}, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [c for c in text if c not in self.gone]

    def _convert_token_to_id(self, token: str) -> int:
        return self.known.index(token) if token in self.known else 0

    def _convert_id_to_token(self, index: int) -> str:
        return self.known[index] if index < len(self.known) else "<unk>"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def test_a_tokenizer_without_offsets(bare: sc.LM) -> None:
    lm = replace(bare, tokenizer=Slow(gone="€\u0301"))
    assert lm.encode("ab <unk>c") == [1, 2, 4, 0, 3]
    assert lm.spans("abc") is None
    assert lm.texts[:3] == ["<unk>", "a", "b"]
    assert lm.texts[10] == "<10>"  # which it calls <unk>
    with pytest.raises(BadPrompt, match=r"Every word must be in the model's vocabulary; got 'axb'\."):
        lm.encode("ab <unk> axb c")
    with pytest.raises(BadPrompt, match=r"in a token; got '€', which the tokenizer drops"):
        lm.encode("a €b")
    assert lm.token("a") == 1
    with pytest.raises(BadPrompt, match="one token of the vocabulary; got 'x'"):
        lm.token("x")


# -------------------------------------------------------------------------------- prompts as they were typed


def test_characters_that_a_tokenizer_drops_are_named(of: Callable[..., sc.LM]) -> None:
    lm = of(models.BPE(vocabulary(*"42 inKl"), []))
    assert lm.encode("42 in Kln") == [0, 1, 2, 3, 4, 2, 5, 6, 4]
    with pytest.raises(BadPrompt, match=r"must be in a token; got '€', 'ö', which the tokenizer drops"):
        lm.encode("42 € in Köln")
    with pytest.raises(BadPrompt, match=r"got U\+0301, which the tokenizer drops"):
        lm.encode("Kln\u0301")
    with pytest.raises(BadPrompt, match="one token of the vocabulary; got 'K€'"):
        lm.token("K€")


@pytest.mark.parametrize("missing", [0xE2, 0x82, 0xAC])
def test_bytes_that_a_tokenizer_drops_are_of_a_character(of: Callable[..., sc.LM], missing: int) -> None:
    lm = byte_level(of, missing)
    assert lm.encode("42 è")
    with pytest.raises(BadPrompt, match=r"got '€', which the tokenizer drops"):
        lm.encode("42 € è")


def bert(of: Callable[..., sc.LM]) -> sc.LM:
    pieces = vocabulary("[UNK]", "[CLS]", "cafe", "hello", "a", "##b", "x")
    lm = of(
        models.WordPiece(pieces, unk_token="[UNK]"), normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(), unk_token="[UNK]",
    )  # fmt: skip
    lm.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A", special_tokens=[("[CLS]", 1)]
    )
    return lm


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("he\x07llo x", r"got U\+0007, "), ("x a\u200db", r"got U\+200D, "), ("x \ufffd", "got '\ufffd', "),
        ("x \u0301 x", r"got U\+0301, "), ("\u0301", r"got U\+0301, "),
    ],
)  # fmt: skip
def test_what_a_normalizer_removes_is_named(of: Callable[..., sc.LM], text: str, named: str) -> None:
    with pytest.raises(BadPrompt, match=named):
        bert(of).encode(text)


def test_what_a_normalizer_writes_otherwise_is_the_models_own(of: Callable[..., sc.LM]) -> None:
    lm = bert(of)
    assert lm.encode("Café  X") == lm.encode("cafe\u0301 x") == lm.encode("cafe x\n") == [1, 2, 6]
    assert [lm.text(i) for i in lm.encode("ab")] == ["[CLS]", "a", "##b"]
    quotes = of(models.BPE(vocabulary("a", '"', "`"), []), normalizers.Replace("``", '"'))
    assert quotes.encode("a``a``") == [0, 1, 0, 1]
    whole = of(models.BPE(vocabulary("é", "a", "한", "ガ"), []), normalizers.NFKC())
    assert whole.encode("e\u0301a\u1112\u1161\u11abｶﾞ") == [0, 1, 2, 3]


def test_what_is_cut_away_between_tokens_is_named(of: Callable[..., sc.LM]) -> None:
    lm = of(models.WordLevel(vocabulary("a", "b"), unk_token="a"), split=pre_tokenizers.CharDelimiterSplit("_"))
    with pytest.raises(BadPrompt, match="got '_', which the tokenizer drops"):
        lm.encode("b_b")
    for context in ("(?<=b)-+(?=b)", "(?<=b)--(?=b)"):  # alone it would stay
        lm = of(models.BPE(vocabulary("a", "b", "-"), []), split=pre_tokenizers.Split(Regex(context), "removed"))
        assert lm.encode("a-a") == [0, 2, 0]
        with pytest.raises(BadPrompt, match="got '-', which the tokenizer drops"):
            lm.encode("a-b--b")


def test_an_unknown_token_is_only_one_that_was_typed(lm: sc.LM) -> None:
    assert lm.encode("The <unk> in Marin").count(1) == 1
    for text in ("The <unk> in Golem is", "The Golem in <unk> is", "Golem <unk>"):
        with pytest.raises(BadPrompt, match=r"Every word must be in the model's vocabulary; got 'Golem'\."):
            lm.encode(text)


def test_an_unknown_token_that_is_not_declared(of: Callable[..., sc.LM]) -> None:
    lm = of(models.Unigram([("?", 0.0), ("a", -1.0), ("b", -1.0)], unk_id=0))
    assert lm.tokenizer.unk_token is None
    assert lm.encode("ab") == [1, 2]
    assert lm.encode("a?") == [1, 0]
    with pytest.raises(BadPrompt, match=r"vocabulary; got 'x'\."):
        lm.encode("a xb?")


@pytest.mark.parametrize(
    "model",
    [
        models.BPE(vocabulary("a"), [], unk_token="<none>"), models.WordLevel(vocabulary("a"), unk_token="<none>"),
        models.Unigram([("a", -1.0)]),
    ],
)  # fmt: skip
def test_an_unknown_token_outside_the_vocabulary(of: Callable[..., sc.LM], model: Any) -> None:
    lm = of(model)
    assert lm.encode("a") == [0]
    with pytest.raises(ModelRefused, match="must turn a text into token ids; got an error in its own code, "):
        lm.encode("x")


def test_an_unknown_token_outside_the_embedding(of: Callable[..., sc.LM]) -> None:
    lm = of(models.WordLevel({"a": 0, "<unk>": ROWS + 3}, unk_token="<unk>"), unk_token="<unk>")
    with pytest.raises(BadPrompt, match="vocabulary; got 'x'"):
        lm.encode("x")
    with pytest.raises(BadPrompt, match=f"ids are 0 to {ROWS - 1}; got {ROWS + 3}"):
        lm.encode("<unk>")


@pytest.mark.parametrize("text", ["\ud800", "a \udcff b"])
def test_half_a_character(of: Callable[..., sc.LM], lm: sc.LM, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm.tokenizer, "chat_template", "{{ messages[0]['content'] }}")
    for given in (text, [{"role": "user", "content": text}]):
        with pytest.raises(BadPrompt, match="must be Unicode text"):
            lm.encode(given)
    with pytest.raises(BadPrompt):
        lm.token(text)


# ------------------------------------------------------------------------------------------ prompts of ids


@pytest.mark.parametrize(
    "given",
    [(3, 4), range(3, 5), iter([3, 4]), np.array([3, 4]), np.array([[3, 4]]), torch.tensor([[3, 4]]), pd.Series([3, 4]),
     [np.int8(3), torch.tensor(4)], torch.tensor([3, 4], dtype=torch.uint8), pd.Index([3, 4])],
)  # fmt: skip
def test_ids_of_many_types(bare: sc.LM, given: Any) -> None:
    assert encode(bare.tokens, given) == [3, 4]


@pytest.mark.parametrize(
    "given",
    [[1.5], [1, 2.0], [True], [1, True], [1, "a"], [1, None], [None], b"ab", bytearray(b"a"), memoryview(b"ab"), {1, 2},
     {"input_ids": [1]}, np.array([1.0]), np.array([True]), np.array([[1, 2], [3, 4]]), torch.tensor([1.5]),
     torch.tensor([True]), torch.ones(2, 1, dtype=torch.long), torch.ones(1, 1, 1, dtype=torch.long), [[1, 2]],
     [np.array([1, 2])], 5, None, object(), pd.DataFrame({0: [1]}), torch.ones(2, device="meta")],
)  # fmt: skip
def test_ids_that_are_none(bare: sc.LM, of: Callable[..., sc.LM], given: Any) -> None:
    for lm in (bare, of(models.BPE(vocabulary("a"), []))):
        with pytest.raises(BadPrompt, match="; got ") as caught:
            encode(lm.tokens, given)
        assert "\n" not in str(caught.value)
    for outside in (-1, ROWS, 2**70):
        with pytest.raises(BadPrompt, match=f"Token ids are 0 to {ROWS - 1}; got {outside}"):
            bare.encode([1, outside])


# --------------------------------------------------------------------------- what others' code raises and gives


class Odd:
    """A tokenizer that does as it is told, not as it should."""

    is_fast = False
    unk_token_id: Any = None
    chat_template = "{{ messages }}"

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {"call": {"input_ids": [1]}, "decode": "a", "piece": "a", "len": 9, **answers}

    def _answer(self, name: str) -> Any:
        answer = self.answers[name]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def __call__(self, text: str, **kwargs: Any) -> Any:
        return self._answer("call")

    def decode(self, ids: list[int], **kwargs: Any) -> Any:
        return self._answer("decode")

    def convert_ids_to_tokens(self, token: int) -> Any:
        return self._answer("piece")

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> Any:
        return self._answer("template")

    def __len__(self) -> int:
        return self._answer("len")


class PanicException(BaseException):
    """As what tokenizers' Rust raises."""


ERRORS = [ValueError("so"), KeyError("x"), RuntimeError(), AssertionError(), PanicException("bounds"), SystemExit(3)]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("part", ["call", "decode", "piece"])
def test_whatever_a_tokenizer_raises(bare: sc.LM, part: str, error: BaseException) -> None:
    lm = replace(bare, tokenizer=Odd(**{part: error}))
    with pytest.raises(
        ModelRefused, match=f"got an error in its own code, {type(error).__name__}.* Correct the tokenizer"
    ):
        (lm.encode("a"), lm.text(1))


@pytest.mark.parametrize(
    "given", [{}, {"input_ids": None}, {"input_ids": [1.5]}, {"input_ids": [[1]]}, {"input_ids": ["a"]}, None, [1]]
)
def test_whatever_a_tokenizer_gives(bare: sc.LM, given: Any) -> None:
    with pytest.raises(ModelRefused, match="must turn a text into token ids"):
        replace(bare, tokenizer=Odd(call=given)).encode("a")
    for outside in (-1, ROWS, 2**70):
        with pytest.raises(BadPrompt, match=f"Token ids are 0 to {ROWS - 1}; got {outside}"):
            replace(bare, tokenizer=Odd(call={"input_ids": [outside]})).encode("a")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BadPrompt("A rule", "that", "Do.")], ids=repr)
def test_what_is_ours_stays_what_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)), explained(ModelRefused, "A rule", "Do."):
        raise error


CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
USER = {"role": "user", "content": " aa "}


@pytest.fixture
def chatting(of: Callable[..., sc.LM]) -> Callable[[str], sc.LM]:
    def made(template: str) -> sc.LM:
        lm = of(models.BPE(vocabulary(*"abcdefghijklmnopqrstuvwxyz:[]{}',()\n \\"), []))
        lm.tokenizer.chat_template = template
        return lm

    return made


def test_chat_messages(chatting: Callable[[str], sc.LM]) -> None:
    lm = chatting(CHAT)
    assert lm.encode([USER, USER]) == lm.encode("user: aa\nuser: aa\n")
    assert lm.encode([{"role": "wizard", "content": ""}]) == lm.encode("wizard: \n")
    with pytest.raises(BadPrompt, match=r"got '€', which the tokenizer drops"):
        lm.encode([USER, {"role": "user", "content": "a €"}])


@pytest.mark.parametrize(
    "template", ["{{ messages | tojson }}", "{% for m in messages %}{{ m['content'] | tojson }}{% endfor %}"]
)
def test_templates_that_write_messages_as_json(of: Callable[..., sc.LM], template: str) -> None:
    tokens = of(models.BPE(vocabulary(*'abcdefghijklmnopqrstuvwxyz:[]{},()\n \\"é'), [])).tokens
    tokens.tokenizer.chat_template = template
    said = [{"role": "user", "content": 'a "b" \\ é\nc'}, {"role": "assistant", "content": 'd "e"'}]
    written = [said] if template == "{{ messages | tojson }}" else [message["content"] for message in said]
    text = "".join(json.dumps(part, ensure_ascii=False) for part in written)
    assert encode(tokens, said) == encode(tokens, text)
    tokens.tokenizer.chat_template = "{{ messages[0] | tojson }}"
    with pytest.raises(BadPrompt, match="without message 1, of role 'assistant'"):
        encode(tokens, said)
    with pytest.raises(BadPrompt, match="without message 0"):  # one of two that are the same
        encode(tokens, [said[0], said[0]])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "error in the template, TemplateError: Roles must alternate"),
        ("{% for m in messages %}", "error in the template, TemplateSyntaxError"), ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[7]['content'] }}", "UndefinedError"),
        ("{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}{% endif %}{% endfor %}",
         r"must contain every message unchanged; got a prompt without message 0, of role 'user'"),
        ("{{ messages[0]['content'] }}", "without message 0"),  # one of two that are the same
        ("{% for m in messages %}{% for p in m.content %}{{ p['text'] }}{% endfor %}{% endfor %}", "without message 0"),
    ],
)  # fmt: skip
def test_templates_that_do_not_write_the_messages(chatting: Callable[[str], sc.LM], template: str, said: str) -> None:
    with pytest.raises(BadPrompt, match=said) as caught:
        chatting(template).encode([USER, USER])
    assert "\n" not in str(caught.value)


def test_reasoning_of_earlier_turns_that_a_template_leaves_out(of: Callable[..., sc.LM]) -> None:
    lm = of(models.BPE(vocabulary(*"abcdefghijklmnopqrstuvwxyz:<>/\n "), []))
    lm.tokenizer.chat_template = CHAT.replace("m['content']", "m['content'].split('</think>')[-1]")
    answer = {"role": "assistant", "content": "<think>\nwhich one\n</think>\n\nbb"}
    assert lm.encode([USER, answer, USER]) == lm.encode("user: aa\nassistant: bb\nuser: aa\n")
    with pytest.raises(BadPrompt, match="without message 1, of role 'user'"):  # what a user writes is no reasoning
        lm.encode([USER, {**answer, "role": "user"}])
    with pytest.raises(BadPrompt, match="without message 1"):  # nor what comes after other text
        lm.encode([USER, {**answer, "content": "cc " + answer["content"]}])


def test_messages_name_a_few_of_what_is_not_known(of: Callable[..., sc.LM]) -> None:
    strange = "".join(chr(0x4E00 + i) for i in range(2000))
    for unk in ({}, {"unk_token": "?"}):
        lm = of(models.BPE(vocabulary(*"?ab"), [], **unk), **unk)
        with pytest.raises(BadPrompt) as caught:
            lm.encode(f"a {strange} b")
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "message",
    [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "user", "content": None},
     {"role": None, "content": "a"}, {"role": "user", "content": 3}, {"role": ["user"], "content": "a"}],
)  # fmt: skip
def test_messages_that_are_no_text(chatting: Callable[[str], sc.LM], message: Any) -> None:
    with pytest.raises(BadPrompt, match=r"A message's (role|content) is a text; got .* in message 1\."):
        encode(chatting(CHAT).tokens, [USER, message])


@pytest.mark.parametrize("answer", [*ERRORS, None, [1], {"input_ids": ["x"]}], ids=repr)
def test_whatever_a_template_call_does(bare: sc.LM, answer: Any) -> None:
    with pytest.raises(BadPrompt, match="Chat messages must suit the model's chat template"):
        replace(bare, tokenizer=Odd(template=answer)).encode([USER])


# ------------------------------------------------------------------------------------------------- logging


def test_logging_is_kept_back_in_one_thread_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A global switch, put back by each thread as it found it, is left off."""
    log, inside, go = logging.getLogger("some.library"), threading.Barrier(5), threading.Event()

    def work(number: int) -> None:
        with quiet():
            log.error("chatter %d", number)
            inside.wait(10)
            go.wait(10)
            with quiet():
                pass
            log.error("more chatter %d", number)
        log.error("after %d", number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    log.error("the user's own")
    go.set()
    for thread in threads:
        thread.join(10)
    log.error("later")
    assert logging.root.manager.disable == 0
    said = [record.getMessage() for record in caplog.records]
    assert sorted(said) == ["after 0", "after 1", "after 2", "after 3", "later", "the user's own"]


# ----------------------------------------------------------------------- a head of another size than the embedding


def with_head(rows: int) -> sc.LM:
    """A model whose head has another number of rows than the 97 of its embedding."""
    model = model_of("llama").model
    torch.manual_seed(1)
    model.lm_head = nn.Linear(32, rows, bias=False).double().eval()
    return sc.LM(model, None, "headed")


@pytest.fixture(scope="module", params=[130, 60])
def headed(request: pytest.FixtureRequest) -> sc.LM:
    """More, and fewer."""
    return with_head(request.param)


def test_a_head_of_another_size(headed: sc.LM) -> None:
    lm, ids, rows = headed, prompt(), headed.unembedding.shape[0]
    assert (lm.size, lm.outputs, len(lm.texts)) == (97, rows, max(97, rows))
    e = sc.explain(lm, ids, k=2, layers=True)
    run = e.run
    assert len(run.logits[-1]) == rows
    assert sc.attribute(run, rows - 1, baseline="none").total == pytest.approx(run.logits[-1, rows - 1].item())
    assert run.operator(target="logits", tokens=[str(rows - 1)]).shape[0] == 1
    for bad in (rows, str(rows), f"#{rows}"):
        with pytest.raises(BadPrompt):
            sc.attribute(run, bad)
    odd = {"keep": lambda text: int(text) % 2 == 1, "top": 1000}
    for side, vectors in (("output", e.svds[0].U), ("input", e.svds[0].V)):
        best = sc.decode(lm, vectors, side, **odd)[0]
        assert {word.id for word in best} == set(range(1, rows if side == "output" else 97, 2))
        assert len(sc.null(lm, side, samples=2, **odd).words[0]) == len(best)
    assert len(sc.largest(lm, run.operator(), "rows", count=2).table) == 16
    assert len(sc.ablate(run, 2).to_pandas(top=1000)) == rows
    assert len(e.layers.first_seen(rows - 1)) > 0
    assert sc.follow(run, 2).ended == "steps"


def test_what_goes_in_has_an_embedding_and_what_comes_out_a_row_of_the_head(headed: sc.LM) -> None:
    run, rows = sc.freeze(headed, prompt()), headed.outputs
    for token in (96, "96"):
        assert sc.ablate(run, 2, by=token).real.shape == (rows,)
        assert run.next(token).ids[-1] == 96
    for bad in (97, "97", "#97"):
        for call in (lambda bad=bad: sc.ablate(run, 2, by=bad), lambda bad=bad: run.next(bad)):
            with pytest.raises(BadPrompt):
                call()


def test_screening_with_a_head_of_another_size(headed: sc.LM) -> None:
    found = sc.screen(headed, [prompt()], [str(headed.outputs - 1), "96"], samples=20, top=4)
    assert found.lexicon[str(headed.outputs - 1)] == [headed.outputs - 1]
    assert found.unknown == ([] if headed.outputs == 130 else ["96"])
    assert headed.spelled("59") == [59]
    if headed.outputs == 60:
        with pytest.raises(BadPrompt):
            headed.spelled("96")


def test_a_token_without_an_embedding_ends_a_continuation() -> None:
    lm = with_head(130)
    lm.model.lm_head.weight.data[120] = sc.freeze(lm, prompt()).hidden[-1] * 100
    run = sc.freeze(lm, prompt())
    assert run.prediction[0].id == 120
    steps = sc.follow(run, 5)
    assert (len(steps.steps), steps.ended) == (1, "token without an embedding")
    (ended, other) = continued(lm, [prompt(), prompt(seed=2)], 5)
    assert ended == [120]
    assert other[0] < 97
    assert 1 < len(other) <= 5
    (said,) = weighed(lm, [prompt()], [[120]])
    assert said.surprise == pytest.approx(-torch.log_softmax(run.logits[-1], 0)[120].item())
    with pytest.raises(BadPrompt, match="Token ids are 0 to 96; got 120"):
        run.next()


def test_a_continuation_says_what_the_tokenizer_does_not_name(of: Callable[..., sc.LM]) -> None:
    lm = of(models.BPE(vocabulary("a", "b"), []), decoder=decoders.Fuse())
    assert text_of(lm, [0, 1, 300, 0]) == "ab<300>a"
