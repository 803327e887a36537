"""Claim: for every family in the paper the frozen network is exact: to 1e-13 in float64, to 5e-6 in float32.

Prints the largest errors over eager and sdpa attention and over gate, up and half, for the small random models of the
tests (tests/families.py), next to the ordinary Jacobian's error; and whether every recorded pass equals the plain one
bit for bit.

    python benchmarks/exactness.py
"""

import argparse
import sys
from pathlib import Path

import torch

import secant as sc

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from families import PAPER, model_of, prompt


def worst(family: str, dtype: torch.dtype, precision: str | None = None) -> tuple[float, float, float, bool]:
    """The largest errors of reconstruction and affinity, the smallest of the ordinary Jacobian, and forward_equal."""
    certificates = [
        sc.freeze(lm, prompt(), convention=convention, precision=precision, ordinary=True).certificate
        for attention in ("eager", "sdpa")
        for lm in [model_of(family, attention, dtype)]
        for convention in ("gate", "up", "half")
    ]
    return (
        max(c.reconstruction for c in certificates),
        max(c.affinity for c in certificates),
        min(c.ordinary for c in certificates if c.ordinary is not None),
        all(c.forward_equal for c in certificates),
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    kinds = ((torch.float64, None), (torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "float32"))
    print(f"{'family':<13}{'dtype':<10}{'system in':<10}{'reconstruction':>15}{'affinity':>10}{'ordinary J':>12}  pass")
    for family in PAPER:
        for dtype, precision in kinds:
            reconstruction, affinity, ordinary, equal = worst(family, dtype, precision)
            name = str(dtype).removeprefix("torch.")
            where = f"{family:<13}{name:<10}{precision or name:<10}"
            errors = f"{reconstruction:>15.1e}{affinity:>10.1e}{ordinary:>12.2f}"
            print(f"{where}{errors}  {'bit-equal' if equal else 'differs'}")


if __name__ == "__main__":
    main()
