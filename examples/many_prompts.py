"""A study of two kinds of questions under two conventions: rows with certificates, and averages with intervals.

python examples/many_prompts.py
"""

import tempfile
from pathlib import Path

import pandas as pd

import secant as sc

prompts = pd.DataFrame(
    [("capital", f"The capital of {country} is") for country in ("France", "Japan", "Kenya", "Chile")]
    + [("bridge", f"The bridge out of {place} is the") for place in ("Marin", "Sydney", "Venice")],
    columns=["category", "prompt"],
)

with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "study"
    # finished shards are saved: if the study ends early, the same call resumes it
    study = sc.study(prompts, "atlas", out=out, convention=["gate", "half"], shard=4, threads=1)
    assert not len(study.failed)
    assert (study.to_pandas()["run_reconstruction"] < 1e-5).all()  # each row has its run's certificate

    top = study.to_pandas("words")
    first = top[(top["vector"] == 0) & (top["side"] == "output") & top["position"].notna()]
    written = first[first["predicted"]].groupby("convention")["prompt"].nunique()
    print(f"prompts, of {len(prompts)}, in which some token's block writes the prediction: {written.to_dict()}")

    summary = sc.summarize(out)
    ranks = summary.ranks[summary.ranks["position"].isna() & summary.ranks["category"].notna()]
    print(ranks[["convention", "category", "n", "mean", "low", "high"]].round(1).to_string(index=False))

# one prompt under both conventions: how much of U₀ and V₀ depends on what is frozen
comparison = sc.compare(prompts["prompt"][4], [sc.load("atlas")], conventions=("gate", "half"))
print(comparison.models[["convention", "prediction", "probability", "stable_rank"]].round(3).to_string(index=False))
