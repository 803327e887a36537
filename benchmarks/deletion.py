"""Do attributions predict what happens when tokens are deleted? Means over prompts, with 95 % bootstrap intervals.

Tokens are deleted in the order of each method's scores, and the predicted token's logit is measured: comprehensiveness
(the loss without the best tokens, more is better), sufficiency (the loss with only these, less is better), area under
the curve of removal (less is better), Spearman's correlation with leave-one-out. The methods are secant's contributions
under each convention (one line if a model has no gated products), gradient x input, integrated gradients (captum, 32
steps), attention rollout, and a random order. Prompts that the model can't encode are left out and counted.

    python benchmarks/deletion.py [--model FOLDER] [--prompts facts|chat|sql|FILE] [--count 120] [--markdown]
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from faithfulness import interval
from prompts import SETS

import secant as sc
from secant.errors import BadPrompt

OTHERS = ("gradient x input", "integrated gradients", "attention rollout", "random")
MEASURES = ("comprehensiveness", "sufficiency", "area", "correlation")


def measured(lm: sc.LM, prompt: str, seed: int) -> pd.DataFrame:
    """A row for each method and value at one prompt."""
    run = sc.freeze(lm, prompt, convention="gate")
    target = run.prediction[0].id
    scores = {}
    for convention in ("gate", "up", "half"):
        held = run if convention == "gate" else sc.freeze(lm, prompt, convention=convention)
        scores[f"secant, {convention}"] = (
            sc.attribute(held, target, baseline="none", parts=False).of("token")["contribution"].tolist()
        )
    if np.allclose(scores["secant, gate"], scores["secant, up"], rtol=1e-3):
        scores = {"secant": scores["secant, gate"]}
    return sc.faithfulness(run, target, methods=OTHERS, scores=scores, seed=seed).table.assign(prompt=prompt)


def cell(values: pd.Series) -> str:
    """The mean and its 95 % bootstrap interval, as text; NaN are left out."""
    mean, low, high = interval(values.to_numpy(float))
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--prompts", default="facts")
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--markdown", action="store_true")
    a = parser.parse_args()
    lm = sc.load(a.model, attention="eager")
    every = SETS[a.prompts](a.count) if a.prompts in SETS else Path(a.prompts).read_text().splitlines()[: a.count]
    tables, unread = [], 0
    for number, prompt in enumerate(every):
        try:
            tables.append(measured(lm, prompt, seed=number))
        except BadPrompt:
            unread += 1
    rows = pd.concat(tables)
    print(f"{lm.name}: {len(tables)} prompts, {unread} not encoded")
    for value in ("logit", "log-probability"):
        own = rows[rows["value"] == value].groupby("method", sort=False)
        head = [value, *MEASURES]
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head) if a.markdown else "\n" + "  ".join(head))
        for method, group in own:
            cells = [str(method), *(cell(group[measure]) for measure in MEASURES)]
            print(
                "| " + " | ".join(cells) + " |" if a.markdown else f"{cells[0]:24}" + "  ".join(cells[1:]), flush=True
            )


if __name__ == "__main__":
    main()
