"""Continuations of prompts, and their perplexity under the model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from secant.arguments import COUNTS
from secant.errors import BadArgument, BadPrompt, ModelRefused, integer, seeded
from secant.foreign import explained, quiet
from secant.linearize.untouched import untouched
from secant.memory import stopping_point
from secant.model.hooks import observing_inputs
from secant.model.lm import LM, Prompt
from secant.numeric import relative, wide
from secant.results.schema import Column

CONTINUATION = Column("continuation", str, "what was generated")
PERPLEXITY = Column("perplexity", float, "perplexity of the continuation, under the unsteered model", "perplexity")
TOKENS = Column("tokens", int, "how many tokens were generated", "tokens")

RUNS = "A model must run on the prompts and their continuations"
BATCH = 64
"""The largest number of prompts in a batch."""

OURS: dict[str, Any] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "length_penalty"), 1),
    **dict.fromkeys(("early_stopping", "return_dict_in_generate", "is_assistant", "low_memory"), False),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores", "output_logits"), False),
    **dict.fromkeys(("diversity_penalty", "penalty_alpha", "max_time", "compile_config", "prefill_chunk_size")),
    **dict.fromkeys(("cache_implementation", "cache_config", "max_cache_len", "continuous_batching_config")),
    **dict.fromkeys(("use_mtp", "speculation_type", "prompt_lookup_num_tokens", "max_matching_ngram_size")),
    **dict.fromkeys(("assistant_early_exit", "assistant_ensemble_weight")),
    "use_cache": True,
    "disable_compile": True,
}
"""Settings of search, caching and return values. These replace the ones in a model's generation config."""

ITS_OWN = (
    "min_length", "min_new_tokens", "eos_token_id", "bos_token_id", "forced_bos_token_id", "forced_eos_token_id",
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "repetition_penalty",
    "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "remove_invalid_values", "renormalize_logits", "watermarking_config",
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
"""Settings of token probabilities and of the end of a text. These follow the model's generation config."""

BY_POSITION = (
    "min_length", "sequence_bias", "bad_words_ids", "repetition_penalty", "encoder_repetition_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "forced_bos_token_id", "watermarking_config",
)  # fmt: skip
"""The settings that depend on earlier tokens, among which generate would count padding."""

GIVEN = ("max_length", "max_new_tokens", "do_sample", "pad_token_id")
"""The settings that each call gives."""

IDLE = (
    "decoder_start_token_id", "num_assistant_tokens", "num_assistant_tokens_schedule", "transformers_version",
    "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind",
)  # fmt: skip
"""The settings that have no effect without an encoder or an assistant."""

RULE = "A model must generate with the settings of its generation config"
TODO = "Correct its generation_config.json."


@dataclass(frozen=True)
class Continuation:
    """What a model generated after a prompt.

    Attributes:
        ids: The ids of its tokens, up to the one that ends the text.
        text: Its text.
        surprise: The negative logarithm of its probability.

    """

    ids: tuple[int, ...]
    text: str
    surprise: float

    @property
    def perplexity(self) -> float:
        """The perplexity per token."""
        return perplexity([self])


def perplexity(continuations: Sequence[Continuation]) -> float:
    """The perplexity of several continuations together, including the tokens that end them.

    Args:
        continuations: The continuations.

    """
    mean = sum(c.surprise for c in continuations) / sum(len(c.ids) for c in continuations)
    return math.exp(mean) if mean < 709 else math.inf


def encoded(lm: LM, prompts: Sequence[Prompt], tokens: int) -> list[list[int]]:
    """The tokens of prompts, after checking that the model can continue them.

    Args:
        lm: The model.
        prompts: The prompts.
        tokens: How many tokens must fit after each prompt.

    Raises:
        BadArgument: The model can't generate, or `tokens` is not valid.
        BadPrompt: A prompt is not valid, or too long.
        ModelRefused: The generation config requests something other than one continuation.

    """
    if not hasattr(lm.model, "generate"):
        raise BadArgument(
            "Continuing a text requires a model with a method generate",
            type(lm.model).__name__,
            "Load it as a causal LM.",
        )
    _check_settings(lm)
    tokens = integer(tokens, 1, lm.context or 2**31, COUNTS["tokens"].rule, "tokens = ")
    rows = [lm.encode(prompt) for prompt in prompts]
    if lm.context is not None and (longest := max(map(len, rows))) + tokens > lm.context:
        raise BadPrompt(
            f"A prompt and its continuation have at most the model's context of {lm.context} tokens",
            f"{longest} and {tokens}", "Shorten them.",
        )  # fmt: skip
    return rows


def unreadable(lm: LM) -> set[int]:
    """The tokens that a model can output but not read: the head has more rows than the embedding.

    A text ends at such a token.

    Args:
        lm: The model.

    """
    return set(range(lm.size, lm.outputs))


def _check_settings(lm: LM) -> None:
    """Raises ModelRefused if the generation config has a setting that is neither followed nor replaced."""
    known = {*OURS, *ITS_OWN, *GIVEN, *IDLE}
    for name, value in _settings(lm).items():
        if name not in known and (value is True or value not in (None, False, 1, [], {})):
            raise ModelRefused(
                "A continuation is greedy or sampled from the model's own probabilities",
                f"{name} = {value!r} in its generation config", "Remove it from generation_config.json.",
            )  # fmt: skip


def _settings(lm: LM) -> dict[str, Any]:
    """All generation settings that transformers knows, with the model's values."""
    config = getattr(lm.model, "generation_config", None)
    return (
        {} if config is None else {name: getattr(config, name, None) for name in vars(type(config)()) if name[0] != "_"}
    )


def batches(lm: LM, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Group prompts into batches.

    Prompts of different lengths share a batch if padding is measured not to change the logits. If the model has
    unreadable tokens, each prompt is a batch: generate would feed such a token back while other prompts continue.

    Args:
        lm: The model.
        rows: The tokens of the prompts.

    Returns:
        The indices of the prompts in each batch.

    """
    if unreadable(lm):
        return [[i] for i in range(len(rows))]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    groups: dict[int, list[int]] = {}
    shortest, longest = rows[order[0]], rows[order[-1]]
    padded = len(shortest) == len(longest) or (not _by_position(lm) and _pads(lm, shortest, longest))
    for i in order:
        groups.setdefault(0 if padded else len(rows[i]), []).append(i)
    return [group[lo : lo + BATCH] for group in groups.values() for lo in range(0, len(group), BATCH)]


def continued(
    lm: LM,
    rows: Sequence[Sequence[int]],
    tokens: int,
    *,
    sample: bool = False,
    seed: int = 0,
    groups: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Continue prompts with `lm.model.generate`.

    The settings in ITS_OWN are those of the model's generation config, and OURS replaces the rest. The state of torch's
    random number generators is restored.

    Args:
        lm: The model.
        rows: The tokens of the prompts, as `encoded` returns them.
        tokens: The maximum length of a continuation.
        sample: Sample tokens instead of taking the likeliest.
        seed: The seed of the samples.
        groups: The batches; by default those of `batches`.

    Returns:
        The tokens of each continuation, up to the one that ends it.

    Raises:
        BadArgument: The seed is not valid.
        ModelRefused: generate fails with the model's settings.

    """
    ends, found, seed = lm.ends, [[0]] * len(rows), seeded(seed)
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for group in batches(lm, rows) if groups is None else groups:
            out = _generated(lm, [rows[i] for i in group], max_new_tokens=tokens, do_sample=sample)
            for i, ids in zip(group, out.tolist(), strict=True):
                new = ids[-(out.shape[1] - max(len(rows[j]) for j in group)) :]
                last = next((n for n, token in enumerate(new) if token in ends), len(new) - 1)
                found[i] = new[: last + 1]
    return found


def weighed(
    lm: LM, rows: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], batch: int = 16
) -> list[Continuation]:
    """Measure the surprise of continuations under the model as it is now.

    Only texts of equal length share a batch, because the length may change rotary positions.

    Args:
        lm: The model.
        rows: The tokens of the prompts.
        continuations: The tokens of their continuations.
        batch: The batch size.

    Raises:
        ModelRefused: The model fails on a text.

    """
    by_length = defaultdict[int, list[int]](list)
    for i, (row, new) in enumerate(zip(rows, continuations, strict=True)):
        by_length[len(row) + len(new)].append(i)
    found: dict[int, Continuation] = {}
    for same in by_length.values():
        for lo in range(0, len(same), batch):
            some = same[lo : lo + batch]
            ids = torch.tensor([[*rows[i], *continuations[i][:-1]] for i in some])  # the last token is not an input
            refusing = explained(ModelRefused, RUNS, "Correct the model's code.")
            with torch.no_grad(), untouched(lm.model), refusing:
                logits = lm.model(input_ids=ids.to(lm.device), use_cache=False).logits
            for i, own in zip(some, logits, strict=True):
                row, new = rows[i], continuations[i]
                of = torch.log_softmax(wide(own[len(row) - 1 : len(row) + len(new) - 1]), -1)
                chosen = of.gather(1, torch.tensor(new, device=of.device)[:, None])
                found[i] = Continuation(tuple(new), added(lm, row, new), -chosen.sum().item())
    return [found[i] for i in range(len(rows))]


def text_of(lm: LM, ids: Sequence[int]) -> str:
    """The text of tokens, without special tokens; without a tokenizer, their ids.

    Args:
        lm: The model.
        ids: The tokens. One that the tokenizer does not know appears as <12>.

    """
    if lm.tokenizer is None:
        return " ".join(map(str, ids))
    parts = [(named, list(own)) for named, own in groupby(ids, lambda i: lm.tokens.piece(i) is not None)]
    return "".join(lm.tokens.decoded(own, plain=True) if named else "".join(map(lm.text, own)) for named, own in parts)


def added(lm: LM, row: Sequence[int], new: Sequence[int]) -> str:
    """The text that tokens add to a prompt, including a leading space.

    Args:
        lm: The model.
        row: The tokens of the prompt.
        new: The tokens that follow.

    """
    whole, start = text_of(lm, [*row, *new]), text_of(lm, row)
    return whole[len(start) :] if whole.startswith(start) else text_of(lm, new)


def _generated(lm: LM, rows: Sequence[Sequence[int]], **how: Any) -> Any:
    """The output of generate for rows padded on the left."""
    longest, pad = max(map(len, rows)), _padding(lm)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=lm.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=lm.device)
    ours = {**{name: value for name, value in OURS.items() if name in _settings(lm)}, **how, "pad_token_id": pad}
    if more := unreadable(lm):
        ours["eos_token_id"] = sorted(lm.ends | more)
    unset = [name for name, value in ours.items() if value is None]  # a config would fill these in from the model's own
    kinds = {"generation_config": type(lm.model.generation_config)(**ours)} if _settings(lm) else ours
    each = observing_inputs([lm.model], lambda *_: stopping_point())
    with quiet(), explained(ModelRefused, RULE, TODO), untouched(lm.model), each:
        return lm.model.generate(ids, attention_mask=mask, **kinds, **dict.fromkeys(unset))


def _padding(lm: LM) -> int:
    """The token used as padding. It is masked, so any token that the embedding has will do."""
    pad = getattr(lm.tokenizer, "pad_token_id", None)
    return pad if pad is not None and pad < lm.size else min((i for i in lm.ends if i < lm.size), default=0)


def _by_position(lm: LM) -> bool:
    """Whether any setting makes the next token depend on earlier tokens, padding included."""
    settings = _settings(lm)
    return any(settings.get(name) not in (None, 0, 1, [], {}) for name in BY_POSITION)


def _pads(lm: LM, shortest: Sequence[int], longest: Sequence[int]) -> bool:
    """Whether the tokenizer pads, and padding the shortest prompt to the longest does not change its logits."""
    if getattr(lm.tokenizer, "pad_token_id", None) is None:
        return False
    how = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    alone, padded = (_generated(lm, rows, **how).logits[0][0] for rows in ([shortest], [shortest, longest]))
    return relative(padded, alone) <= torch.finfo(lm.dtype).eps ** 0.5
