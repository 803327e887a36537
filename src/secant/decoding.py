"""Directions as tokens: output directions through the head, input directions by cosine to the embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument
from secant.model import LM


@dataclass(frozen=True)
class Word:
    """A token that a direction stands for. The score is a logit at the output, a cosine at the input."""

    token: str
    id: int
    score: float


def decode(
    lm: LM, directions: Float[Tensor, "d k"] | Float[Tensor, " d"], side: Literal["output", "input"], top: int = 8
) -> list[list[Word]]:
    """The `top` tokens that each direction (a column) stands for, best first; equal scores in order of id.

    `side="output"`: by their logit W u, the head's weight times the direction. `side="input"`: by the cosine between
    the direction and their embedding; tokens whose embedding is zero have none and are left out.
    Raises BadArgument where the directions do not have the width of that side.
    """
    if side not in ("output", "input"):
        raise BadArgument("A side is output or input", repr(side), "Choose one of them.")
    table = lm.unembedding if side == "output" else lm.embedding
    columns = directions.detach().reshape(len(directions), -1)
    if len(columns) != table.shape[1]:
        raise BadArgument(
            f"Directions on the {side} side have {table.shape[1]} numbers", f"{len(columns)}", "Give them as columns."
        )
    wide = torch.promote_types(torch.promote_types(table.dtype, columns.dtype), torch.float32)
    table, columns = table.to(wide), columns.to(device=table.device, dtype=wide)
    scores = table @ columns
    if side == "input":
        norms = torch.linalg.vector_norm(table, dim=1)[:, None] * torch.linalg.vector_norm(columns, dim=0)
        scores = torch.where(norms > 0, scores / torch.where(norms > 0, norms, 1), -torch.inf)
    best, ids = scores.sort(dim=0, descending=True, stable=True)
    return [
        [
            Word(lm.text(i), i, s)
            for s, i in zip(best[:top, c].tolist(), ids[:top, c].tolist(), strict=True)
            if s > -torch.inf
        ]
        for c in range(columns.shape[1])
    ]
