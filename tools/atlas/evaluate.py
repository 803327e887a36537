"""What a model knows of the held-out list: is the right next token first? `evaluate.py --help` says how to run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any

import pandas as pd
import torch
import typer

import secant as sc

from corpus import Question, read_questions

BARS = {"fact": 0.95, "two-step": 0.60, "copying": 0.90}
"""The minimum share of right next tokens in each split for Atlas to ship."""

BATCH = 256


@torch.no_grad()
def answered(model: Any, tokenizer: Any, questions: Sequence[Question]) -> pd.DataFrame:
    """A row for each question: split, relation, prompt, said, and whether its `first` token or the `whole` is right."""
    rows = [
        (number, tokenizer(q.prompt)["input_ids"], tokenizer(answer)["input_ids"])
        for number, q in enumerate(questions)
        for answer in q.answers
    ]
    rows.sort(key=lambda row: len(row[1]) + len(row[2]))
    first, whole, said = [False] * len(questions), [False] * len(questions), [0] * len(questions)
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        width = max(len(prompt) + len(answer) for _, prompt, answer in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        for row, (_, prompt, answer) in enumerate(batch):
            ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        best = model(input_ids=ids.to(model.device)).logits.argmax(-1).tolist()  # right-padded, and attention is causal
        for (number, prompt, answer), tokens in zip(batch, best, strict=True):
            told = tokens[len(prompt) - 1 : len(prompt) + len(answer) - 1]
            said[number] = told[0]
            first[number] |= told[0] == answer[0]
            whole[number] |= told == answer
    return pd.DataFrame(
        {
            "split": [q.split for q in questions],
            "relation": [q.relation for q in questions],
            "prompt": [q.prompt for q in questions],
            "said": tokenizer.batch_decode([[token] for token in said]),
            "first": first,
            "whole": whole,
        }
    )


def shares(answers: pd.DataFrame, of: str = "first") -> dict[str, float]:
    """The share of right answers by split; copying includes every pattern of made-up words."""
    split = answers["split"].where(answers["split"] != "context", "copying")
    split = split.where(answers["relation"] != "count", "counting")
    return answers.groupby(split)[of].mean().to_dict()


def sampled(questions: Sequence[Question], number: int | None, seed: int = 0) -> list[Question]:
    """This number of questions of every split, or all."""
    if number is None:
        return list(questions)
    groups: dict[str, list[Question]] = {}
    for q in questions:
        groups.setdefault(q.split, []).append(q)
    return [q for group in groups.values() for q in Random(seed).sample(group, min(number, len(group)))]


def main(
    model: Annotated[str, typer.Argument(help="A folder; by default the Atlas that ships with the package.")] = "atlas",
    sample: Annotated[int | None, typer.Option(help="Only this many questions of each split.")] = None,
    wrong: Annotated[Path | None, typer.Option(help="Write the questions answered wrongly to this CSV.")] = None,
) -> None:
    """Print the share of right next tokens by split and relation; exit code 2 if a share is under its bar."""
    lm = sc.load(model)
    answers = answered(lm.model, lm.tokenizer, sampled(read_questions(), sample))
    by = answers.groupby(["split", "relation"])[["first", "whole"]].agg(["mean", "size"])
    print(by.drop(columns=("whole", "size")).to_string(float_format="{:.3f}".format))
    for name, share in shares(answers).items():
        bar = BARS.get(name)
        print(f"{name:15s} {share:.3f}" + (f"  (at least {bar})" if bar else ""))
    if wrong is not None:
        answers[~answers["first"]].to_csv(wrong, index=False)
    if any(shares(answers)[name] < bar for name, bar in BARS.items()):
        raise typer.Exit(2)


if __name__ == "__main__":
    typer.run(main)
