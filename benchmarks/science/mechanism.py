"""Why do equally exact conventions have different Jacobians? How much of J exactness decides, and what is left.

J x = y - b at the prompt. Of all matrices with that property the smallest is F = (y - b) xᵀ / ‖x‖², which has rank
one; all exact J with the same b share it. The rest N = J - F has N x = 0, so exactness does not determine it.
Measured, under `gate`, `up` and `half`:

- forced: ‖F‖² / ‖J‖², the share of J that exactness decides.
- cosine: the cosine of N with that of `gate`.
- rank, and rank_mean: the stable rank of J, and of the mean of the J of `gate` and `up`.

    python benchmarks/science/mechanism.py [--models MODEL ...] [--prompts N] [--threads T] [--out FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path += [str(HERE.parent)]

import pandas as pd  # noqa: E402
from measure import Prompt, one_by_one  # noqa: E402

import secant as sc  # noqa: E402

RESULTS = HERE.parent / "results" / "mechanism.parquet"
CONVENTIONS = ("gate", "up", "half")


def stable_rank(J: Tensor) -> float:
    """‖J‖_F² / σ₁², from J Jᵀ."""
    return (J.square().sum() / torch.linalg.eigvalsh(J @ J.T)[-1]).item()


def system(lm: sc.LM, prompt: Prompt, convention: str) -> tuple[Tensor, Tensor, Tensor]:
    """J, the part that exactness decides, and the rest."""
    op = sc.freeze(lm, prompt.given, convention=convention, top=1).operator()
    J, x, moved = op.dense().flatten(1).double(), op.input.flatten().double(), (op.output - op.bias).double()
    forced = moved[:, None] * x / x.square().sum()
    return J, forced, J - forced


def measured(lm: sc.LM, prompt: Prompt) -> pd.DataFrame:
    """The rows of a prompt."""
    found, rest, whole = [], {}, {}
    for convention in CONVENTIONS:
        J, forced, rest[convention] = system(lm, prompt, convention)
        whole[convention] = J
        found.append((convention, "forced", (forced.square().sum() / J.square().sum()).item()))
        found.append((convention, "rank", stable_rank(J)))
    for convention in CONVENTIONS[1:]:
        cosine = torch.nn.functional.cosine_similarity(rest["gate"].flatten(), rest[convention].flatten(), dim=0)
        found.append((convention, "cosine", cosine.item()))
    found.append(("half", "rank_mean", stable_rank((whole["gate"] + whole["up"]) / 2)))
    dtype = str(lm.dtype).removeprefix("torch.")
    about = {"kind": prompt.kind, "text": prompt.text, "part": "mechanism", "precision": dtype, "at": "", "layer": None}
    return pd.DataFrame(found, columns=["convention", "measure", "value"]).assign(**about)


def main() -> None:
    one_by_one(__doc__, measured, 20, RESULTS)


if __name__ == "__main__":
    main()
