"""Write the model card of a trained Atlas: `card.py FOLDER`. Every figure is measured here or read from the log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

import secant as sc

import concepts
from corpus import SEED, read_questions
from evaluate import BARS, answered, shares
from facts import HERE, facts, templates

CARD = HERE / "card.md"


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, its index first."""
    head = [frame.index.name or "", *frame.columns]
    lines = [head, ["---"] * len(head), *frame.itertuples(name=None)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def percent(frame: pd.DataFrame) -> pd.DataFrame:
    """Shares as percentages, in text."""
    return frame.map("{:.1%}".format)


def knows(answers: pd.DataFrame) -> pd.DataFrame:
    """The shares by split, the number of questions, and the required share."""
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
    card = CARD.read_text(encoding="utf-8").format(
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
