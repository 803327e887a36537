"""Write the model card of a trained Atlas: `card.py FOLDER`. Every figure in it is measured here or read from the log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

import concepts
import secant as sc
from corpus import SEED, read_questions
from evaluate import BARS, answered, shares
from facts import facts, templates

CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [interpretability, secant]
---

# Atlas

A language model of {parameters:.2f} million parameters that knows countries, landmarks, a few hundred plain words, and how to
count and copy. It ships with secant so that the method can be seen at work in the first minute, offline. It is in Qwen 3's
layout (RMSNorm, QK-norm, SwiGLU, grouped-query attention, RoPE): {layers} layers, d {d}, untied head, byte-level BPE of
{vocabulary:,} tokens. Every word carries the space before it, the first one too. Weights are stored in float16 and computed
with in float32.

    sc.load("atlas")        secant explain "The bridge out of Marin is the"

Prompts unlike its sentences get an answer too, and it means nothing. Its facts are those of the tables in `tools/atlas/`, as
of 2026 and read through by hand; contested ones are left out. It is a thing to look into, not to ask.

## Training

`make atlas`, from nothing: seed {seed}, two CPU threads, {facts:,} facts of {relations} relations in {templates} templates, and
patterns of made-up words. Matrices by Muon, the rest by AdamW; a token that is no answer counts 0.3. The shares in the log
are of held-out questions, at most 400 of each kind.

{log}

## What it knows

The share of prompts never seen in training after which the right next token is first, and after which all of the answer is
right (`python tools/atlas/evaluate.py`). *fact*: pairs of fact and template; the fact was seen in other templates, the template
with other facts. *two-step*: likewise, where the middle step is not named ("The currency of the country whose capital is Paris
is the"). *never composed*: two-step facts that were held out in every template. *copying*: words that are in no training
text. *counting*: stretches of a sequence in a form that training never gave.

{knows}

## What its singular vectors decode to

Over all held-out prompts of three relations (`python tools/atlas/concepts.py`; float32, convention gate). *right*: the
prediction is. *writes*: the predicted token is among the top eight decoded from U₀ of the last token's block. *reads*: the
subject's last token is among the top eight decoded from V₀ of its block. Beside them a random direction in place of the
vector, and the vector of another prompt of the same relation.

{shows}

## By relation

{by_relation}
"""


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, its index first."""
    head = [frame.index.name or "", *frame.columns]
    lines = [head, ["---"] * len(head), *([name, *row] for name, row in zip(frame.index, frame.values, strict=True))]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def percent(frame: pd.DataFrame) -> pd.DataFrame:
    """Shares as they are read."""
    return frame.map("{:.1%}".format)


def knows(answers: pd.DataFrame) -> pd.DataFrame:
    """The shares by split, the questions, and the share that was asked for."""
    rows = percent(pd.DataFrame({"next token": shares(answers), "whole answer": shares(answers, "whole")}))
    rows.insert(0, "at least", [f"{BARS[name]:.0%}" if name in BARS else "" for name in rows.index])
    return rows.rename_axis("split")


def by_relation(answers: pd.DataFrame) -> pd.DataFrame:
    """The shares by relation."""
    groups = answers.groupby(["split", "relation"])
    rows = percent(groups[["first", "whole"]].mean().rename(columns={"first": "next token", "whole": "whole answer"}))
    rows.insert(0, "questions", groups.size())
    rows.index = pd.Index([f"{relation} ({split})" for split, relation in rows.index], name="relation")
    return rows


def shown(lm: sc.LM) -> pd.DataFrame:
    """The shares of prompts whose singular vectors decode to their tokens, a column each relation."""
    rows = concepts.shares(concepts.measured(lm))
    prompts = rows.pop("prompts").map(str)
    return pd.concat([prompts.to_frame().T, percent(rows).T]).rename_axis("share")


def main(folder: Annotated[Path, typer.Argument(help="The folder of the model.")]) -> None:
    """Measure a trained Atlas and write its README.md."""
    lm = sc.load(folder)
    config = lm.model.config
    log = pd.read_csv(folder / "training.csv")
    kept = sorted({*range(0, len(log), max(1, len(log) // 10)), len(log) - 1})
    answers = answered(lm.model, lm.tokenizer, read_questions())
    card = CARD.format(
        parameters=sum(p.numel() for p in lm.model.parameters()) / 1e6,
        layers=config.num_hidden_layers,
        d=config.hidden_size,
        vocabulary=config.vocab_size,
        seed=SEED,
        facts=len(facts()),
        relations=len(templates()),
        templates=sum(map(len, templates().values())),
        log=markdown(log.iloc[kept].set_index("step")),
        knows=markdown(knows(answers)),
        by_relation=markdown(by_relation(answers)),
        shows=markdown(shown(lm)),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(knows(answers).to_string())


if __name__ == "__main__":
    typer.run(main)
