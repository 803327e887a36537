"""Real models: how long the parts of `secant explain --layers` take, next to the matrix products in them.

Claims, each a ratio of one run: J in full takes at most 1.15 times its matrix products, the top 4 of each token's block
at most J and 1 s, `sc.layers(run, k=4)` at most twice the products of a causal forward sweep, `freeze` and `attribute`
at most 1 s each.

The rate of matrix products is measured at the shapes of the model's own layers, just before the work that it is
compared with. Torch counts the operations of J in one backward pass. A causal forward sweep carries T d columns, and a
column of token t is zero before t, so it takes (T + 1) / 2 times the operations of J. The parts of `sc.layers` are
shares of its time, from cProfile. Times are the best of ROUNDS. On a shared machine, --cpu-time counts the CPU seconds
of this process; with one thread the ratios stay comparable. SmolLM2 and Gemma 3 run by default; a line names absent
models.

    python benchmarks/real.py [--models MODEL ...] [--device cuda] [--prompt TEXT] [--rounds ROUNDS] [--no-layers]
        [--cpu-time]
"""

import argparse
import cProfile
import math
import pstats
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from trained_models import REAL_MODELS, models

import secant as sc
from secant.memory import peak

PARTS = {
    "forward sweep": "forward", "layerwise operators": "layerwise", "SVDs": "leading", "readouts": "applied",
    "reconstruction": "_applied",
}  # fmt: skip
"""The functions of secant.stream and secant.operators whose cumulative times are shown."""

DIRECTIONS = 512
"""How many random directions are decoded."""

CLOCK = time.perf_counter
"""The clock that measures seconds."""


def synchronized(device: torch.device) -> float:
    """The time, after all work on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return CLOCK()


def best(work: Callable[[], Any], device: torch.device, rounds: int) -> tuple[float, Any]:
    """The shortest time of several rounds, and the last result."""
    least, result = math.inf, None
    for _ in range(rounds):
        start = synchronized(device)
        result = work()
        least = min(least, synchronized(device) - start)
    return least, result


def products_rate(lm: sc.LM, vectors: int, device: torch.device) -> float:
    """Operations per second of products of many vectors with the weights of one layer."""
    linear = [m for path, m in lm.model.named_modules() if isinstance(m, nn.Linear) and ".0." in path]
    shapes = {tuple(m.weight.shape) for m in linear if m is not lm.head}
    seconds = operations = 0.0
    for out, into in shapes:
        weight, rows = torch.randn(out, into).to(device, lm.dtype), torch.randn(vectors, out).to(device, lm.dtype)
        took, _ = best(partial(torch.mm, rows, weight), device, 5)
        seconds, operations = seconds + took, operations + 2.0 * vectors * out * into
    return operations / seconds


def row(what: str, seconds: float, note: str = "") -> None:
    """A line of the table."""
    print(f"| {what} | {seconds:.2f} s | {note} |", flush=True)


def measure(lm: sc.LM, name: str, args: argparse.Namespace) -> None:
    """All lines of one model."""
    device = lm.device
    floor = products_rate(lm, 256 * 8, device)
    frozen, run = best(lambda: sc.freeze(lm, args.prompt), device, args.rounds)
    op, T = run.operator(), len(run.tokens)
    with FlopCounterMode(display=False) as counter:
        op.T @ torch.ones_like(op.bias)
    formed = counter.get_total_flops() * op.shape[0]
    print(f"\n{name}: {T} tokens, {len(run.inside.layers)} layers, d {op.shape[0]}, {lm.dtype}, {device}")
    print(f"{floor / 1e9:.0f} GFLOP/s in matrix products; J has {formed / 1e12:.2f} TFLOP\n")
    print("| what | time | ratio, goal |\n| --- | --- | --- |")
    row("freeze", frozen, "goal: 1 s")
    seconds, _ = best(op.dense, device, args.rounds)
    rate = products_rate(lm, 256 * 8, device)
    row("J in full", seconds, f"{seconds * rate / formed:.2f} times its products, goal: 1.15")
    of_tokens, f = best(lambda: sc.svd(op, 4, per_token=True), device, args.rounds)
    row("top 4 of each token's block", of_tokens, f"J and {of_tokens - seconds:.2f} s, goal: J and 1 s")
    there = partial(sc.svd, op.solidified(), 4, per_token=True)
    row("the same, J in memory", best(there, device, args.rounds)[0])
    row("attribute", best(lambda: sc.attribute(run), device, args.rounds)[0], "goal: 1 s")
    U = torch.cat([g.U for g in f], 1)
    row(f"decode {U.shape[1]} directions", best(lambda: sc.decode(lm, U, "output"), device, args.rounds)[0])
    many = torch.randn(op.shape[0], DIRECTIONS, generator=torch.Generator().manual_seed(0)).to(device)
    seconds, _ = best(lambda: sc.decode(lm, many, "output"), device, args.rounds)
    products = 2.0 * lm.size * op.shape[0] * DIRECTIONS
    row(f"decode {DIRECTIONS} directions", seconds, f"{seconds * rate / products:.2f} times their products")
    del there
    if not args.no_layers:
        layers(lm, run, formed * (T + 1) / 2, args)
    if most := peak(device):
        print(f"\npeak memory {most / 2**30:.2f} GiB", flush=True)


def layers(lm: sc.LM, run: sc.Run, swept: float, args: argparse.Namespace) -> None:
    """The lines of `sc.layers`, in total and by its parts."""
    before = products_rate(lm, 256 * 8, lm.device)
    profile = cProfile.Profile(CLOCK)
    seconds, found = best(lambda: profile.runcall(sc.layers, run, 4), lm.device, 1)
    rate = (before + products_rate(lm, 256 * 8, lm.device)) / 2
    note = f"{seconds * rate / swept:.2f} times a causal sweep's products ({swept / 1e12:.2f} TFLOP), goal: 2"
    row("layers, top 4", seconds, note)
    entries: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for what, function in PARTS.items():
        own = [t[3] for (file, _, called), t in entries.items() if called == function and "secant" in file]
        share = max(own, default=0.0) / seconds
        row(f"- {what}", max(own, default=0.0), f"{share:.0%}")
    worst = max((g.residuals.max() / g.S[0]).item() for depth in found.depths for g in depth.tokens if g.S[0] > 0)
    print(f"\nlargest residual {worst:.0e} of σ₁, reconstruction {max(d.reconstruction for d in found.depths):.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], metavar="MODEL")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompt", default="The bridge out of Marin is the")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-layers", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    global CLOCK
    CLOCK = time.process_time if args.cpu_time else CLOCK
    for name, place in models(args.models, tuple(REAL_MODELS)):
        measure(sc.load(place, dtype="float32", device=args.device), name, args)


if __name__ == "__main__":
    main()
