"""Atlas' tokenizer: byte-level BPE, in which every word includes the space before it, even the first word."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from facts import facts, sentence, templates

VOCABULARY = 4096
CONTEXT = 256
"""The longest prompt."""

END = "<|endoftext|>"
PLACES = ("bridge", "river", "mountain", "landmark")


def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, trained on every fact in every template; places count fourfold, because few facts name them."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token=END, model_max_length=CONTEXT)


def _texts() -> Iterator[str]:
    for fact in facts():
        for template in templates()[fact.relation]:
            yield from [sentence(template, fact.subject, fact.answers[0]).text] * (4 if fact.relation in PLACES else 1)
