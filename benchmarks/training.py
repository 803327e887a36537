"""How do the spectra change while a model is trained? A study of Atlas' checkpoints.

Prompts are held-out questions, drawn evenly over the relations, under the paper's convention. The table has, for each
checkpoint: how often the predicted token begins an answer; its probability; the mean stable rank of the first and of
the other tokens' blocks, and of all tokens together; how often the prediction is among the top eight tokens of U₀ of
the last token, and a token among those of its own V₀; the layer of the highest layerwise stable rank; the mean coupling
of neighbouring layers (1 - mismatch). These are means over prompts. The same command resumes the study.

    make atlas CHECKPOINTS=1                                  # keeps the model every 100 steps, an hour on two cores
    python benchmarks/training.py build/atlas-checkpoints OUT [--prompts N] [--markdown]
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from first_study import show
from prompts import questions

import secant as sc

from corpus import read_questions

ANALYSES = ["reconstruction", "stable_rank", "words", "layers", "coupling"]
HEAD = (
    "checkpoint", "answers", "probability", "R, first token", "R, others", "R, all", "prediction in U₀, last",
    "own token in V₀", "highest layerwise R", "coupling",
)  # fmt: skip


def measured(study: sc.Study) -> pd.DataFrame:
    """A row for each checkpoint, in the order of training."""
    prompts, ranks, words = (study.to_pandas(name) for name in ("prompts", "stable_ranks", "words"))
    layers, coupling = study.to_pandas("layers"), study.to_pandas("coupling")
    answers = {question.prompt: question.answers for question in read_questions()}
    pairs = zip(prompts["prediction"], prompts["text"], strict=True)
    begins = [any(f"{a.strip()} ".startswith(said.strip() or "?") for a in answers[text]) for said, text in pairs]
    right = pd.Series(begins, prompts.index)
    first = words[words["vector"] == 0]
    written, read = first[first["side"] == "output"], first[first["side"] == "input"]
    last = written["position"] == written.groupby(["model", "prompt"])["position"].transform("max")
    own = layers[(layers["span"] == "layerwise") & (layers["part"] == "residual") & layers["position"].isna()]
    highest = own.loc[own.groupby(["model", "prompt"])["stable_rank"].idxmax()]

    def share(rows: pd.DataFrame, column: str, *keys: str) -> pd.Series:
        return rows.groupby(["model", *keys])[column].any().groupby("model").mean()

    def mean(rows: pd.DataFrame, column: str) -> pd.Series:
        return rows.groupby("model")[column].mean()

    found = (
        right.groupby(prompts["model"]).mean(), mean(prompts, "probability"),
        mean(ranks[ranks["position"] == 0], "stable_rank"), mean(ranks[ranks["position"] > 0], "stable_rank"),
        mean(ranks[ranks["position"].isna()], "stable_rank"), share(written[last], "predicted", "prompt"),
        share(read[read["position"].notna()], "own", "prompt", "position"), mean(highest, "layer"),
        1 - mean(coupling, "mismatch"),
    )  # fmt: skip
    order = prompts["model"].drop_duplicates()
    return pd.concat(found, axis=1).set_axis(HEAD[1:], axis=1).loc[order]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    models = [str(args.checkpoints / "checkpoint-*"), "atlas"]
    study = sc.study(questions(args.prompts), models, out=args.out, analyses=ANALYSES, threads=1, progress=show)
    print(file=sys.stderr)
    table = measured(study)
    formats = ["{:.0%}", "{:.2f}", *["{:.1f}"] * 3, "{:.0%}", "{:.0%}", "{:.1f}", "{:.2f}"]
    cells = [
        [str(name).removeprefix("checkpoint-"), *(f.format(v) for f, v in zip(formats, row, strict=True))]
        for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)
    ]
    if args.markdown:
        print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for row in cells if args.markdown else [HEAD, *cells]:
        print("| " + " | ".join(row) + " |" if args.markdown else "".join(f"{cell:>24}" for cell in row))


if __name__ == "__main__":
    main()
