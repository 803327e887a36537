"""What a model goes on to say after prompts, and how likely it finds what was said."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from secant.errors import BadArgument, BadPrompt, ModelRefused, integer, seeded
from secant.foreign import explained, quiet
from secant.linearize.untouched import untouched
from secant.model.lm import LM, Prompt
from secant.numeric import relative, wide
from secant.results.schema import Column

CONTINUATION = Column("continuation", str, "what was generated")
PERPLEXITY = Column("perplexity", float, "perplexity of the continuation, under the unsteered model", "perplexity")
TOKENS = Column("tokens", int, "how many tokens were generated", "tokens")

RUNS = "A model that goes on must run at the prompts by itself"
TOGETHER = 64
"""Most prompts in a batch."""

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
"""How generate searches and what it returns: what a model's generation config says of it is replaced by this."""

ITS_OWN = (
    "min_length", "min_new_tokens", "eos_token_id", "bos_token_id", "forced_bos_token_id", "forced_eos_token_id",
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "repetition_penalty",
    "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "remove_invalid_values", "renormalize_logits", "watermarking_config",
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
"""How likely the next token is, and when a text ends: as the model's generation config says."""

BY_POSITION = (
    "min_length", "sequence_bias", "bad_words_ids", "repetition_penalty", "encoder_repetition_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "forced_bos_token_id", "watermarking_config",
)  # fmt: skip
"""Those that look at the tokens before, and would take padding for some."""

GIVEN = ("max_length", "max_new_tokens", "do_sample", "pad_token_id")
"""What each call says itself."""

IDLE = (
    "decoder_start_token_id", "num_assistant_tokens", "num_assistant_tokens_schedule", "transformers_version",
    "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind",
)  # fmt: skip
"""What means nothing without an encoder or an assistant."""

RULE = "A model generates with the settings of its generation config"
TODO = "Mend its generation_config.json."


@dataclass(frozen=True)
class Continuation:
    """What was generated after a prompt.

    Attributes:
        ids: Its tokens, up to the one that ends it.
        text: Their text.
        surprise: -log of its probability.

    """

    ids: tuple[int, ...]
    text: str
    surprise: float

    @property
    def perplexity(self) -> float:
        """Per token."""
        return perplexity([self])


def perplexity(continuations: Sequence[Continuation]) -> float:
    """Of all tokens of some continuations together, the one that ends each among them."""
    mean = sum(c.surprise for c in continuations) / sum(len(c.ids) for c in continuations)
    return math.exp(mean) if mean < 709 else math.inf


def encoded(lm: LM, prompts: Sequence[Prompt], tokens: int) -> list[list[int]]:
    """The tokens of prompts that so many can follow. Raises BadPrompt, BadArgument."""
    if not hasattr(lm.model, "generate"):
        raise BadArgument("A model that goes on has generate", type(lm.model).__name__, "Load it as a causal LM.")
    _check_settings(lm)
    tokens = integer(tokens, 1, lm.context or 2**31, "A continuation has some tokens", "tokens = ")
    rows = [lm.encode(prompt) for prompt in prompts]
    if lm.context is not None and (longest := max(map(len, rows))) + tokens > lm.context:
        raise BadPrompt(
            f"A prompt and its continuation have at most the model's context of {lm.context} tokens",
            f"{longest} and {tokens}", "Shorten them.",
        )  # fmt: skip
    return rows


def unheard(lm: LM) -> set[int]:
    """Tokens that a model can say and not hear, where its head has more rows than its embedding: nothing follows."""
    return set(range(lm.size, lm.outputs))


def _check_settings(lm: LM) -> None:
    """Raises ModelRefused where the generation config asks for what a continuation is not."""
    known = {*OURS, *ITS_OWN, *GIVEN, *IDLE}
    for name, value in _settings(lm).items():
        if name not in known and (value is True or value not in (None, False, 1, [], {})):
            raise ModelRefused(
                "A continuation is greedy, or drawn from the model's own probabilities",
                f"{name} = {value!r} in its generation config", "Take it out of generation_config.json.",
            )  # fmt: skip


def _settings(lm: LM) -> dict[str, Any]:
    """The settings of a model's generation that transformers knows, whether set or not."""
    config = getattr(lm.model, "generation_config", None)
    return (
        {} if config is None else {name: getattr(config, name, None) for name in vars(type(config)()) if name[0] != "_"}
    )


def batches(lm: LM, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Which prompts go through together: all lengths where padding is measured to change nothing, else equal ones.

    None do where a token may end one that nothing can follow: generate passes it on as long as others go on.
    """
    if unheard(lm):
        return [[i] for i in range(len(rows))]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    groups: dict[int, list[int]] = {}
    shortest, longest = rows[order[0]], rows[order[-1]]
    padded = len(shortest) == len(longest) or (not _by_position(lm) and _pads(lm, shortest, longest))
    for i in order:
        groups.setdefault(0 if padded else len(rows[i]), []).append(i)
    return [group[lo : lo + TOGETHER] for group in groups.values() for lo in range(0, len(group), TOGETHER)]


def continued(
    lm: LM,
    rows: Sequence[Sequence[int]],
    tokens: int,
    *,
    sample: bool = False,
    seed: int = 0,
    groups: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """What `lm.model.generate` gives after each prompt, greedily, or drawn with a seed; up to the token that ends it.

    Of the model's generation config, ITS_OWN are followed and OURS are not; `encoded` refuses what is neither.
    `groups`: the batches. The state of torch's own random numbers stays as it was. Raises BadArgument, ModelRefused
    where generate fails with the model's settings.
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
    lm: LM, rows: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], together: int = 16
) -> list[Continuation]:
    """Continuations with their surprise, given the prompts, under the model as it is now.

    Those of one length run together: rotary positions may be stretched by the length of what is run.
    """
    by_length = defaultdict[int, list[int]](list)
    for i, (row, new) in enumerate(zip(rows, continuations, strict=True)):
        by_length[len(row) + len(new)].append(i)
    found: dict[int, Continuation] = {}
    for same in by_length.values():
        for lo in range(0, len(same), together):
            some = same[lo : lo + together]
            ids = torch.tensor([[*rows[i], *continuations[i][:-1]] for i in some])  # nothing follows the last
            odd = explained(ModelRefused, RUNS, "Mend the model.")
            with torch.no_grad(), untouched(lm.model), odd:
                logits = lm.model(input_ids=ids.to(lm.device), use_cache=False).logits
            for i, own in zip(some, logits, strict=True):
                row, new = rows[i], continuations[i]
                of = torch.log_softmax(wide(own[len(row) - 1 : len(row) + len(new) - 1]), -1)
                chosen = of.gather(1, torch.tensor(new, device=of.device)[:, None])
                found[i] = Continuation(tuple(new), added(lm, row, new), -chosen.sum().item())
    return [found[i] for i in range(len(rows))]


def text_of(lm: LM, ids: Sequence[int]) -> str:
    """The text of some tokens, without special ones; of a model without a tokenizer their ids.

    A row that the tokenizer does not name is in it as <12>.
    """
    if lm.tokenizer is None:
        return " ".join(map(str, ids))
    parts = [(named, list(own)) for named, own in groupby(ids, lambda i: lm.tokens.piece(i) is not None)]
    return "".join(lm.tokens.decoded(own, plain=True) if named else "".join(map(lm.text, own)) for named, own in parts)


def added(lm: LM, row: Sequence[int], new: Sequence[int]) -> str:
    """The text that tokens add to a prompt's, with the space that it begins with."""
    whole, start = text_of(lm, [*row, *new]), text_of(lm, row)
    return whole[len(start) :] if whole.startswith(start) else text_of(lm, new)


def _generated(lm: LM, rows: Sequence[Sequence[int]], **how: Any) -> Any:
    """What generate gives for rows that are padded on the left."""
    longest, pad = max(map(len, rows)), _padding(lm)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=lm.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=lm.device)
    ours = {**{name: value for name, value in OURS.items() if name in _settings(lm)}, **how, "pad_token_id": pad}
    if more := unheard(lm):
        ours["eos_token_id"] = sorted(lm.ends | more)
    unset = [name for name, value in ours.items() if value is None]  # which a config would take from the model's own
    kinds = {"generation_config": type(lm.model.generation_config)(**ours)} if _settings(lm) else ours
    with quiet(), explained(ModelRefused, RULE, TODO), untouched(lm.model):
        return lm.model.generate(ids, attention_mask=mask, **kinds, **dict.fromkeys(unset))


def _padding(lm: LM) -> int:
    """A token to pad with, which is masked: one that the embedding has."""
    pad = getattr(lm.tokenizer, "pad_token_id", None)
    return pad if pad is not None and pad < lm.size else min((i for i in lm.ends if i < lm.size), default=0)


def _by_position(lm: LM) -> bool:
    """Whether what comes next depends on the tokens before by more than the model."""
    settings = _settings(lm)
    return any(settings.get(name) not in (None, 0, 1, [], {}) for name in BY_POSITION)


def _pads(lm: LM, shortest: Sequence[int], longest: Sequence[int]) -> bool:
    """Whether the tokenizer pads, and the shortest prompt gives the same logits beside the longest as alone."""
    if getattr(lm.tokenizer, "pad_token_id", None) is None:
        return False
    how = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    alone, beside = (_generated(lm, rows, **how).logits[0][0] for rows in ([shortest], [shortest, longest]))
    return relative(beside, alone) <= torch.finfo(lm.dtype).eps ** 0.5
