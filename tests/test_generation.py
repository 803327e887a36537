"""The model's own continuation, with each token decomposed by the operator of the pass that predicts it."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from families import model_of, prompt
from helpers import real

import secant as sc
from secant.errors import BadArgument, BadPrompt


def test_the_next_run_is_that_of_the_longer_prompt() -> None:
    lm = model_of("llama")
    run = sc.freeze(lm, prompt(), convention="half", ordinary=True, top=3, seed=5)
    after = run.next()
    again = sc.freeze(lm, [*prompt(), run.prediction[0].id], convention="half", ordinary=True, top=3, seed=5)
    assert after.ids == again.ids
    assert after.certificate == again.certificate
    assert len(after.prediction) == 3
    assert torch.equal(after.logits, again.logits)
    assert run.next(7).ids == [*prompt(), 7]
    with pytest.raises(BadPrompt, match="0 to"):
        run.next(10**6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_steps_are_the_models_own_generation(family: str) -> None:
    lm = model_of(family)
    lm.model.generation_config.eos_token_id = None
    steps = sc.follow(sc.freeze(lm, prompt()), 3, parts=True)
    with torch.no_grad():
        out = lm.model.generate(torch.tensor([prompt()]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert [step.prediction.id for step in steps.steps] == out[0, len(prompt()) :].tolist()
    assert steps.ended == "steps"
    table = steps.to_pandas()
    for number, step in enumerate(steps.steps):
        own = table[table["step"] == number]
        assert own[own["kind"].isin(["token", "constant"])]["contribution"].sum() == pytest.approx(
            step.attribution.logit
        )
        assert (own["kind"] == "token").sum() == len(prompt()) + number
        assert step.certificate.reconstruction <= 1e-12
    shares = steps.shares()
    assert shares.shape == (3, len(prompt()) + 2)
    assert shares.isna().sum(axis=1).tolist() == [2, 1, 0]


def test_it_ends_where_the_text_does() -> None:
    lm = model_of("gpt2")
    first = sc.freeze(lm, prompt()).prediction[0].id
    lm.model.generation_config.eos_token_id = [first]
    steps = sc.follow(sc.freeze(lm, prompt()), 5)
    assert steps.ended == "end of text"
    assert len(steps.steps) == 1


def test_it_ends_where_the_context_does() -> None:
    lm = model_of("gpt2", n_positions=len(prompt()) + 1)
    lm.model.generation_config.eos_token_id = None
    steps = sc.follow(sc.freeze(lm, prompt()), 5)
    assert steps.ended == "context"
    assert len(steps.steps) == 2
    with pytest.raises(BadPrompt, match="context"):
        sc.freeze(lm, prompt()).next().next()
    with pytest.raises(BadArgument, match="at least one step"):
        sc.follow(sc.freeze(lm, prompt()), 0)


def test_an_explanation_with_steps(explanation: sc.Explanation) -> None:
    lm = sc.load("atlas")
    e = sc.explain(lm, "The capital of France is", k=1, top=1, steps=2)
    assert e.steps is not None
    assert e.steps.text.startswith(" Paris .") or e.steps.text.startswith(" Paris.")
    rows = pd.DataFrame(e.to_dict()["steps"])
    assert rows["generated"].iloc[0] == " Paris"
    assert explanation.steps is None


def test_the_text_is_what_the_tokenizer_makes_of_it() -> None:
    lm = sc.load(real("craftgpt"))
    steps = sc.follow(sc.freeze(lm, "[inst] do you like music? [/inst]"), 5)
    ids = [step.prediction.id for step in steps.steps]
    assert steps.text.split() == lm.tokenizer.decode(ids).split()
    assert " i " in steps.text


@pytest.mark.parametrize("how", [{"seed": -1}, {"seed": 2**70}, {"top": 0}, {"tolerance": float("nan")}])
def test_arguments_are_said_to_be_wrong_as_such(how: dict) -> None:
    with pytest.raises(BadArgument):
        sc.freeze(model_of("gpt2"), prompt(), **how)
