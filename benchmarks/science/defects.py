"""Do the leading left singular vectors of frozen layers predict the direction of tokens of very large norm?

H. Wang, T. Zhang and M. Salzmann, "Demystifying Singular Defects in Large Language Models" (ICML 2025, arXiv
2502.07004): the norm of some tokens, mostly the first, explodes in one layer, along the leading left singular vector
of a linear approximation of that layer; the right singular vector triggers it. A frozen layer is not an approximation:
it is exact at its token. For each prompt, this takes the layerwise operator from the token's own stream to the residual
stream (the block J_t of the layer, under `gate`) at two positions, the first and the last. With its leading triplet σ,
u, v:

- norm: ‖h‖ after the layer; gain: ‖h‖ after the layer over ‖h‖ before it; sigma: σ.
- on_sink: |cos(u, s)|, where s is the first token's stream after the layer where its norm is largest. At the last
  position the layer is frozen at a token of ordinary norm, so that u predicts s.
- trigger: |cos(v, h)| with the token's own stream h before the layer.

    python benchmarks/science/defects.py [--models MODEL ...] [--prompts N] [--threads T] [--out FILE]
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
from trained_models import REAL_MODELS  # noqa: E402

import secant as sc  # noqa: E402
from secant.operators.decomposition import leading  # noqa: E402
from secant.stream.sweep import STREAM, before, layerwise  # noqa: E402

RESULTS = HERE.parent / "results" / "defects.parquet"


def cosine(a: Tensor, b: Tensor) -> float:
    """|cos| of two vectors."""
    return abs(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item())


def layers_at(run: sc.Run, position: int, sink: Tensor) -> list[dict[str, float]]:
    """The measures of each layer at a position."""
    inside, found = run.inside, []
    for i in range(len(inside.layers)):
        J = layerwise(inside, i, position)[STREAM][:, position]
        h, x = inside.value(f"layers.{i}")[position], inside.value(before(inside, i))[position]
        f = leading(J[None], h, 1)[0]
        found.append({
            "norm": h.norm().item(), "gain": (h.norm() / x.norm()).item(), "sigma": f.S[0].item(),
            "on_sink": cosine(f.U[:, 0], sink), "trigger": cosine(f.V[:, 0], x), "own": cosine(h, sink),
        })  # fmt: skip
    return found


def measured(lm: sc.LM, prompt: Prompt) -> pd.DataFrame:
    """The rows of a prompt."""
    ids = lm.encode(prompt.given)
    alone = sc.freeze(lm, ids[:1], top=1)  # the first token attends only to itself, so the others need not run
    streams = [alone.inside.value(f"layers.{i}")[0] for i in range(len(alone.inside.layers))]
    sink = max(streams, key=lambda h: h.norm().item())
    places = {"first": layers_at(alone, 0, sink)}
    if len(ids) > 1:
        places["last"] = layers_at(sc.freeze(lm, ids, top=1), len(ids) - 1, sink)
    rows = [
        {"measure": measure, "at": at, "layer": layer, "value": value}
        for at, layers in places.items()
        for layer, own in enumerate(layers)
        for measure, value in own.items()
    ]
    dtype = str(lm.dtype).removeprefix("torch.")
    about = {"kind": prompt.kind, "text": prompt.text, "part": "defects", "convention": "gate", "precision": dtype}
    return pd.DataFrame(rows).assign(**about)


def main() -> None:
    one_by_one(__doc__, measured, 30, RESULTS, list(REAL_MODELS))


if __name__ == "__main__":
    main()
