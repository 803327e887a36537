"""Do singular vectors decode to what the prompt is about? Counted over every held-out prompt of three relations.

`writes`: the predicted token is among the top eight decoded from U₀ of the last token's block. `reads`: the subject's
last token is among the top eight decoded from V₀ of that token's block. Each is compared with a random direction, and
with the same vector at a prompt about another subject, which has the relation but not the fact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.progress import track
from torch import Tensor

import secant as sc
from secant.stream.words import Side

from corpus import Question, read_questions

RELATIONS = ("capital", "language", "bridge")
TOP = 8
DIRECTIONS = ("", ", random direction", ", another subject")
MEASURES: dict[str, Side] = {"writes": "output", "reads": "input"}
"""The side on which each measure decodes."""


@dataclass(frozen=True)
class Found:
    """A prompt: whether its prediction is right; the directions; the tokens that these should decode to."""

    right: bool
    directions: dict[Side, Tensor]  # side -> (d,)
    tokens: dict[Side, int]  # side -> the token that the direction should decode to


def found(lm: sc.LM, question: Question) -> Found:
    """The leading singular vectors of a prompt."""
    run = sc.freeze(lm, question.prompt)
    blocks = sc.svd(run.operator().solidified(), 1, per_token=True)
    subject = _last_token(lm, question)
    predicted = run.prediction[0].id
    return Found(
        predicted in {lm.tokenizer(answer)["input_ids"][0] for answer in question.answers},
        {"output": blocks[-1].U[:, 0], "input": blocks[subject].V[:, 0]},
        {"output": predicted, "input": run.ids[subject]},
    )


def _last_token(lm: sc.LM, question: Question) -> int:
    """The position of the subject's last token, where the prompt names the subject last."""
    encoded = lm.tokenizer.backend_tokenizer.encode(question.prompt)
    where = question.prompt.lower().rindex(question.subject.lower()) + len(question.subject)
    return next(t for t, (_, end) in enumerate(encoded.offsets) if end >= where)


def measured(lm: sc.LM, limit: int | None = None) -> pd.DataFrame:
    """A row for each prompt: relation, prompt, right, and whether each direction decodes to its token."""
    rows = []
    for relation in RELATIONS:
        asked = [question for question in read_questions() if question.relation == relation][:limit]
        all_found = [found(lm, question) for question in track(asked, relation, transient=True)]
        for number, (question, own) in enumerate(zip(asked, all_found, strict=True)):
            row = {"relation": relation, "prompt": question.prompt, "right": own.right}
            generator = torch.Generator().manual_seed(number)
            for name, side in MEASURES.items():
                vector = own.directions[side]
                random = torch.randn(len(vector), generator=generator, dtype=vector.dtype)
                candidates = (vector, random, _other(asked, all_found, number).directions[side])
                for which, direction in zip(DIRECTIONS, candidates, strict=True):
                    decoded = sc.decode(lm, direction, side, TOP)[0]
                    row[name + which] = own.tokens[side] in {word.id for word in decoded}
            rows.append(row)
    return pd.DataFrame(rows)


def _other(asked: list[Question], all_found: list[Found], number: int) -> Found:
    """The nearest earlier prompt, in cyclic order, that asks about another subject."""
    subject = asked[number].subject
    return next(all_found[number - i] for i in range(1, len(asked)) if asked[number - i].subject != subject)


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """The share of prompts by relation and for all of them, and their number."""
    columns = [column for column in rows if column not in ("relation", "prompt")]
    by = rows.groupby("relation", sort=False)[columns].mean()
    by.loc["all"] = rows[columns].mean()
    by.insert(0, "prompts", [*rows.groupby("relation", sort=False).size(), len(rows)])
    return by


def main(
    model: Annotated[str, typer.Argument(help="A folder; by default the Atlas that ships with the package.")] = "atlas",
    limit: Annotated[int | None, typer.Option(min=3, help="Only so many prompts of each relation.")] = None,
) -> None:
    """Print in what share of prompts the leading singular vectors decode to the prediction and to the subject."""
    print(shares(measured(sc.load(model), limit)).T.to_string(float_format="{:.3f}".format))


if __name__ == "__main__":
    typer.run(main)
