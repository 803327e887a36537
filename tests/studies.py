"""Folders of synthetic studies, with numbers whose statistics are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from secant.studies.analyses import WRITERS
from secant.studies.folder import write_manifest
from secant.studies.identity import Identity

Subject = tuple[str, str]


def study(
    folder: Path,
    prompts: int = 12,
    subjects: Sequence[Subject] = (("small", "gate"), ("small", "half"), ("large", "gate")),
    categories: Sequence[str | None] = ("facts", "counts"),
    failing: Sequence[int] = (3,),
    tokens: int = 4,
    seed: int = 0,
    leave_out: Sequence[str] = (),
    texts: Sequence[str] | None = None,
) -> dict[str, pd.DataFrame]:
    """Write a study with all tables, but those left out, and return them; prompts of some numbers have failed."""
    rng = np.random.default_rng(seed)
    tables: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("prompts", "reconstructions", "singular_values", "stable_ranks", "layers", "first_seen",
                              "coupling", "contributions", "words", "conventions")
    }  # fmt: skip
    for model, convention in subjects:
        depth = {"small": 3, "large": 5}.get(model, 4)
        for number in range(prompts):
            stamp = {
                "model": model, "convention": convention, "prompt": number,
                "category": categories[number % len(categories)] if categories else None, "precision": "float32",
                "run_forward_equal": True, "run_reconstruction": float(rng.uniform(1e-8, 1e-6)),
                "run_affinity": float(rng.uniform(1e-8, 1e-6)),
            }  # fmt: skip
            text = texts[number] if texts else f"prompt {number}"
            about = {"text": text, "tokens": tokens, "prediction": " word", "prediction_id": 7, "probability": 0.5,
                     "logit": 3.0, "reason": None, "error": None}  # fmt: skip
            if number in failing:
                gone = dict.fromkeys(("run_forward_equal", "run_reconstruction", "run_affinity"))
                empty = dict.fromkeys(("prediction", "prediction_id", "probability", "logit"))
                why = {"reason": "Every word must be known; got 'x'. Use others.", "error": "BadPrompt"}
                tables["prompts"].append({**stamp, **gone, **about, **empty, **why})
                continue
            tables["prompts"].append({**stamp, **about})

            def add(table: str, /, stamp: dict[str, Any] = stamp, **row: Any) -> None:
                tables[table].append({**stamp, **row})

            add("reconstructions", reconstruction=stamp["run_reconstruction"], ordinary=float(rng.uniform(0.8, 1.5)),
                bias=float(rng.uniform(0, 0.1)))  # fmt: skip
            for t in [*range(tokens), None]:
                token = None if t is None else f" t{t}"
                add("stable_ranks", position=t, token=token,
                    stable_rank=1.0 if t == 0 else float(rng.lognormal(1, 0.5)), frobenius=1.0)  # fmt: skip
                for i in range(3):
                    sigma = 5.0 * float(rng.uniform(0.5, 0.9)) ** i
                    add("singular_values", position=t, token=token, vector=i, block=i, sigma=sigma,
                        normalized=sigma / 5.0, residual=0.0)  # fmt: skip
                for side in ("output",) if t is None else ("output", "input"):
                    for i in range(2):
                        for rank in range(4):
                            word = int(rng.integers(0, 12))
                            add("words", position=t, token=token, vector=i, block=i, sigma=1.0, side=side, rank=rank,
                                word=f" w{word}", id=word, score=1.0, z=0.0, predicted=word == 7,
                                own=word == t)  # fmt: skip
                if convention == "half":
                    add("conventions", other="gate", position=t, distance=float(rng.uniform(0.5, 1)),
                        cosine=float(rng.uniform(0, 1)))  # fmt: skip
            for part in ("residual", "attn"):
                for span in ("cumulative", "layerwise"):
                    for t in [*range(tokens), None]:
                        for layer in range(depth):
                            rank = float(rng.lognormal(2 - layer / depth, 0.3))
                            add("layers", layer=layer, part=part, span=span, position=t, token=None, stable_rank=rank,
                                frobenius=1.0, sigma_0=1.0, reconstruction=0.0)  # fmt: skip
                        first = int(rng.integers(0, depth + 1))
                        add("first_seen", part=part, span=span, position=t, layer=first if first < depth else None,
                            layer_count=depth)  # fmt: skip
            for layer in range(depth - 1):
                add("coupling", layer=layer, next=layer + 1, mismatch=(layer + 1) / depth)
            for t in range(tokens):
                add("contributions", kind="token", name=f" t{t}", position=t, layer=None, head=None,
                    contribution=float(rng.normal(1, 1)), all_paths=0.0)  # fmt: skip
            if model == "large":
                add("contributions", kind="constant", name="norm", contribution=float(rng.normal()), all_paths=0.0)
            add("contributions", kind="embed", name="embed", contribution=float(rng.normal()), all_paths=0.0)
            for layer in range(depth):
                for part in ("attn", "mlp"):
                    add("contributions", kind="layer", name=f"layers.{layer}.{part}", layer=layer,
                        contribution=float(rng.normal(1, 1)), all_paths=0.0)  # fmt: skip
                add("contributions", kind="head", name=f"layers.{layer}.attn.heads.0", layer=layer, head=0,
                    contribution=float(rng.normal(1, 1)), all_paths=0.0)  # fmt: skip
    (folder / "tables").mkdir(parents=True)
    identity = Identity(
        versions={}, models=[{"label": model} for model in dict.fromkeys(model for model, _ in subjects)],
        conventions=list(dict.fromkeys(convention for _, convention in subjects)), precision=None,
        analyses=sorted({names[0] for table, names in WRITERS.items() if table not in leave_out}), k=3,
        top=4, seed=seed, threads=1, tensors=False, prompts=prompts, digest="", shard=prompts,
    )  # fmt: skip
    (folder / "study.json").write_text(json.dumps(asdict(identity)))
    for name in identity.names:
        (folder / "shards" / name).mkdir(parents=True)
    whole = {"position": "Int64", "layer": "Int64", "head": "Int64", "prediction_id": "Int64"}
    found = {}
    for name, rows in tables.items():
        if name in leave_out or not rows:
            continue
        table = pd.DataFrame(rows)
        table = table.astype({column: kind for column, kind in whole.items() if column in table})
        table["category"] = table["category"].astype("string")
        if name == "prompts":
            table = table.astype({"run_forward_equal": "boolean", "reason": "string", "error": "string"})
        table.to_parquet(folder / "tables" / f"{name}.parquet", row_group_size=64)
        found[name] = table
    write_manifest(folder / "tables")
    return found
