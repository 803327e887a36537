"""How many prompts an hour? Counted operations divided by an assumed speed, next to measurements on this machine.

J has d rows, and a row is a product Jᵀu: a backward pass through the network, 2·P·T operations for P weights of its
matrices and T tokens. Forming J for a prompt takes 2·P·T·d operations, once for each convention. The number of prompts
an hour is 3600 times the speed, divided by these operations.

- Estimated: models of real sizes on one H200, at a stated share of its dense peak. None of this is measured.
- Measured (--calibrate): J of small models in Llama's layout with random weights, on this machine with one thread, next
  to the formula at the speed of large matrix products, measured in the same run. The ratio is the formula's error.

    python benchmarks/scale.py [--calibrate]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import torch
from random_models import llama

import secant as sc

TOKENS = 16
PEAK = {"float32": 67e12, "bfloat16": 989e12}
"""Dense operations per second of one H200, from its data sheet: float32 without tensor cores; bfloat16 with them."""
SHARE = {"float32": 0.5, "bfloat16": 0.25}
"""The assumed share of PEAK: float32 products reach much of it; in bfloat16 the work between products matters more."""
MEMORY = 141e9


@dataclass(frozen=True)
class Shape:
    """A model in Llama's layout: width, inner width, layers, heads and heads of keys."""

    name: str
    d: int
    inner: int
    layers: int
    heads: int
    kv: int
    vocabulary: int = 128256

    @property
    def weights(self) -> float:
        """The weights of the matrices between embeddings and head, by which a pass multiplies."""
        d, head = self.d, self.d // self.heads
        return self.layers * (2 * d * d + 2 * d * head * self.kv + 3 * d * self.inner)

    @property
    def all_weights(self) -> float:
        """All weights, including embeddings and head."""
        return self.weights + 2 * self.vocabulary * self.d

    def operations(self, T: int) -> float:
        """The operations of J: all rows, one convention."""
        return 2 * self.weights * T * self.d


REAL = (
    Shape("0.5B", 1024, 4096, 24, 16, 8),
    Shape("1B", 2048, 8192, 16, 32, 8),
    Shape("3B", 3072, 8192, 28, 24, 8),
    Shape("8B", 4096, 14336, 32, 32, 8),
    Shape("14B", 5120, 17408, 40, 40, 8),
    Shape("32B", 5120, 25600, 64, 40, 8),
    Shape("70B", 8192, 28672, 80, 64, 8),
)
SMALL = (
    Shape("d 128", 128, 512, 4, 2, 1, 1000),
    Shape("d 256", 256, 1024, 6, 4, 2, 1000),
    Shape("d 512", 512, 2048, 8, 8, 4, 1000),
)


def estimated() -> None:
    """The table of docs/how-to/clusters.md."""
    print(f"Estimates, none of them measured: one H200, T {TOKENS}, one convention, J in full.")
    print(f"Assumed: {', '.join(f'{s:.0%} of {PEAK[t] / 1e12:.0f} TFLOP/s in {t}' for t, s in SHARE.items())}.\n")
    print("| model | weights | operations for J | float32: prompts/h | bfloat16: prompts/h |")
    print("| --- | --- | --- | --- | --- |")
    for shape in REAL:
        cells = []
        for dtype, size in (("float32", 4), ("bfloat16", 2)):
            fits = shape.all_weights * size < 0.8 * MEMORY
            an_hour = 3600 * SHARE[dtype] * PEAK[dtype] / shape.operations(TOKENS)
            cells.append(f"{rounded(an_hour)} (estimate)" if fits else "does not fit on one")
        print(
            f"| {shape.name} | {shape.all_weights / 1e9:.1f}e9 | {shape.operations(TOKENS):.1e} | {' | '.join(cells)} |"
        )


def rounded(number: float) -> str:
    """A number with two significant digits."""
    return f"{float(f'{number:.2g}'):,.0f}"


def calibrated() -> None:
    """Compare the formula with measured times on this machine."""
    torch.set_num_threads(1)
    where = f"one CPU thread, its own seconds, torch {torch.__version__}, {date.today().isoformat()}"
    print(f"\nMeasured: {where}, float32, T {TOKENS}\n")
    print("| model | weights in passes | speed of products | estimate | measured J | measured / estimate |")
    print("| --- | --- | --- | --- | --- | --- |")
    ratios = []
    for shape in SMALL:
        before = speed_of_products(shape)
        lm = sc.LM(llama(shape.d, shape.inner, shape.layers, shape.heads, kv=shape.kv), name=shape.name)
        op = sc.freeze(lm, list(range(1, TOKENS + 1))).operator()
        took = min(seconds_of(op.dense) for _ in range(3))
        speed = max(before, speed_of_products(shape))
        estimate = shape.operations(TOKENS) / speed
        ratios.append(took / estimate)
        print(
            f"| {shape.name}, {shape.layers} layers | {shape.weights / 1e6:.1f}e6 | {speed / 1e9:.0f} GFLOP/s |"
            f" {estimate:.2f} s | {took:.2f} s | {ratios[-1]:.2f} |",
            flush=True,
        )
    print(f"\nratio of the measured time to the estimate: {min(ratios):.2f} to {max(ratios):.2f}")


def speed_of_products(shape: Shape) -> float:
    """Operations per second of products as large as those in J's passes: rows of 256 vectors times the inner matrix."""
    rows, weight = torch.randn(256 * TOKENS, shape.d), torch.randn(shape.d, shape.inner)
    best = min(seconds_of(lambda: rows @ weight) for _ in range(10))
    return 2 * rows.numel() * shape.inner / best


def seconds_of(work: Callable[[], object]) -> float:
    """CPU seconds, because the machine may be shared."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrate", action="store_true")
    args = parser.parse_args()
    estimated()
    if args.calibrate:
        calibrated()


if __name__ == "__main__":
    main()
