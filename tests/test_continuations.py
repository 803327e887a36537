"""Continuations: each setting of a model's generation config is followed, replaced, or refused by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from families import model_of, prompt as ids_of_a_prompt
from transformers import GenerationConfig

import secant as sc
from secant.errors import BadArgument, ModelRefused
from secant.steering.generate import BY_POSITION, GIVEN, IDLE, ITS_OWN, OURS, Continuation, continued, encoded, weighed

PROMPTS = ["The bridge out of Marin is the", "In London people cross the"]

SEARCHES = {
    "num_beams": 3, "num_return_sequences": 2, "penalty_alpha": 0.6, "prompt_lookup_num_tokens": 3,
    "return_dict_in_generate": True, "output_scores": True, "max_time": 1e-9, "max_length": 3, "do_sample": True,
    "cache_implementation": "static", "use_cache": False, "length_penalty": -3.0, "early_stopping": "never",
    "diversity_penalty": 2.0, "num_beam_groups": 2, "max_new_tokens": 1, "assistant_early_exit": 2, "low_memory": True,
    "prefill_chunk_size": 2, "is_assistant": True,
}  # fmt: skip
REFUSED = {
    "stop_strings": ["the"], "guidance_scale": 1.5, "token_healing": True, "dola_layers": "low",
    "force_words_ids": [[[4]]], "constraints": ["x"],
}  # fmt: skip
FOLLOWED = {
    "repetition_penalty": 50.0, "suppress_tokens": [9, 10, 11, 12, 13], "forced_bos_token_id": 5, "min_new_tokens": 4,
    "no_repeat_ngram_size": 1, "bad_words_ids": [[8], [9], [10], [11], [12]], "forced_eos_token_id": 3,
    "encoder_repetition_penalty": 0.01, "renormalize_logits": True, "sequence_bias": [[[7], 50.0]],
}  # fmt: skip


@pytest.fixture
def own(lm: sc.LM) -> Iterator[sc.LM]:
    """The model with a generation config that a test may change."""
    before = lm.model.generation_config
    lm.model.generation_config = copy.deepcopy(before)
    yield lm
    lm.model.generation_config = before


def texts(lm: sc.LM, *prompts: str, **how: object) -> list[list[int]]:
    return continued(lm, encoded(lm, prompts or PROMPTS, 5), 5, **how)


def test_every_setting_that_transformers_has_is_followed_replaced_or_refused() -> None:
    known = [*OURS, *ITS_OWN, *GIVEN, *IDLE, *REFUSED]
    assert len(known) == len(set(known))
    assert {name for name in vars(GenerationConfig()) if name[0] != "_"} <= set(known)
    assert set(BY_POSITION) <= set(ITS_OWN)


@pytest.mark.parametrize("name", SEARCHES)
def test_how_generate_searches_is_ours(own: sc.LM, name: str) -> None:
    plain = texts(own)
    setattr(own.model.generation_config, name, SEARCHES[name])
    assert texts(own) == plain
    assert texts(own) == plain
    assert getattr(own.model.generation_config, name) == SEARCHES[name]


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_continuation_is_not_is_refused_by_name(own: sc.LM, name: str) -> None:
    setattr(own.model.generation_config, name, REFUSED[name])
    with pytest.raises(ModelRefused, match=f"greedy or sampled .* got {name} = "):
        encoded(own, PROMPTS, 5)


def test_a_setting_that_is_new_is_refused_by_name(own: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secant.steering.generate.ITS_OWN", tuple(name for name in ITS_OWN if name != "top_h"))
    encoded(own, PROMPTS, 5)
    own.model.generation_config.top_h = 0.5
    with pytest.raises(ModelRefused, match=r"got top_h = 0\.5"):
        encoded(own, PROMPTS, 5)


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_shapes_the_text_is_the_models(own: sc.LM, name: str) -> None:
    """As its own generate has it, and each prompt as if it were alone."""
    setattr(own.model.generation_config, name, FOLLOWED[name])
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([own.encode(prompt)])
        how = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 5, "pad_token_id": 0}
        expected.append(own.model.generate(ids, **how)[0, ids.shape[1] :].tolist())
    assert texts(own) == expected
    assert [texts(own, prompt)[0] for prompt in PROMPTS] == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", -1.0),
        ("suppress_tokens", "x"),
        ("bad_words_ids", [3]),
        ("min_new_tokens", "x"),
        ("exponential_decay_length_penalty", "x"),
        ("sequence_bias", 1.0),
    ],
)
def test_settings_that_generate_does_not_take_are_one_line(own: sc.LM, name: str, value: object) -> None:
    setattr(own.model.generation_config, name, value)
    with pytest.raises(ModelRefused, match="must generate with the settings of its generation config"):
        texts(own)


def test_samples_have_a_seed_like_any_other(lm: sc.LM) -> None:
    assert texts(lm, sample=True, seed=3) == texts(lm, sample=True, seed=3)
    for seed in (-1, 2**63, 1.5, "1", True):
        with pytest.raises(BadArgument, match="A seed is a whole number that is not negative"):
            texts(lm, sample=True, seed=seed)


def test_a_text_beyond_all_likelihood_has_an_infinite_perplexity() -> None:
    assert Continuation((1,), "a", 10_000.0).perplexity == math.inf


@pytest.mark.parametrize("ends", ["x", [None], [1.5], True, {"a": 1}])
def test_what_ends_a_text_is_ids(own: sc.LM, ends: object) -> None:
    own.model.generation_config.eos_token_id = ends
    with pytest.raises(ModelRefused, match="An end token is a token id, or several; got eos_token_id = "):
        texts(own)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_surprise_is_the_same_beside_a_longer_prompt(kind: str) -> None:
    """Both stretch positions by the length of what is run."""
    own = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "original_max_position_embeddings": 8}
    rope = {"rope_theta": 1e4, "rope_type": kind, "factor": 8.0, **(own if kind == "longrope" else {})}
    lm = model_of("llama", rope_parameters=rope, max_position_embeddings=64 if kind == "longrope" else 8)
    short, long = ids_of_a_prompt()[:3], ids_of_a_prompt() * 2
    rows, new = [short, long, short], [[8, 9], [8, 9], [9, 8]]
    alone = [weighed(lm, [row], [said])[0] for row, said in zip(rows, new, strict=True)]
    for one, together in zip(alone, weighed(lm, rows, new), strict=True):
        assert (one.ids, one.text) == (together.ids, together.text)
        assert one.surprise == pytest.approx(together.surprise, rel=1e-12)
