"""Claim: memory grows linearly with the prompt: for the top 8 of the whole operator at T 512, 1024, 2048, 4096 (Llama
layout, d 256, 4 layers, float32), the peak grows at most 2.3 times for each doubling. At 512 the result is that of J.

The peak is that of the process, less its memory with the model loaded; it includes recording, replay and SVD. The T x T
pattern of each head and layer is never kept: secant keeps queries and keys, and recomputes blocks of the pattern's
rows.

    python benchmarks/long.py [T ...]
"""

import argparse
import time
from typing import NamedTuple

import torch
from processes import increase, separately
from random_models import llama

import secant as sc

LENGTHS = (512, 1024, 2048, 4096)


class Taken(NamedTuple):
    """The increase of memory at the peak in bytes, seconds, passes, and the error of the singular values against J."""

    memory: int
    seconds: float
    passes: int
    off: float


def taken(T: int, check: bool) -> Taken:
    """What the top 8 take at a length. J is formed only for a check; otherwise the error is 0."""
    lm = sc.LM(llama(256, 704, 4, 4, longest=8192))
    sc.svd(sc.freeze(lm, list(range(1, 33))).operator(), 8, solver="krylov")  # what is loaded once
    with increase() as more:
        start = time.perf_counter()
        op = sc.freeze(lm, [i % 999 + 1 for i in range(T)]).operator()
        f = sc.svd(op, 8, solver="krylov")
        seconds = time.perf_counter() - start
    off = ((f.S - torch.linalg.svdvals(op.dense().flatten(1))[:8]).abs().max() / f.S[0]).item() if check else 0.0
    return Taken(more(), seconds, f.passes, off)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lengths", nargs="*", type=int, metavar="T", help=f"by default {', '.join(map(str, LENGTHS))}")
    args = parser.parse_args()
    last = None
    print(f"d 256, 4 layers, top 8 of the whole operator, float32, {torch.get_num_threads()} threads")
    print("     T   peak MiB  times     s  passes")
    for T in args.lengths or LENGTHS:
        peak, seconds, passes, off = separately(taken, T, T == 512)
        times = "" if last is None else f"{peak / last:.2f}"
        print(f"{T:6} {peak / 2**20:10.0f}  {times:>5} {seconds:5.0f}  {passes:6}", flush=True)
        if T == 512:
            print(f"       singular values differ from those of J by {off:.0e} of the largest")
        last = peak
    print("(claim: at most 2.3 times for each doubling)")


if __name__ == "__main__":
    main()
