"""Claim: forming J costs at most 1.2 times its matrix products, and is 1.4 times as fast as plain autograd.

Llama layout, d 512, 8 layers, T 8, float32. Three kinds of work take turns in one run: `op.dense()`; only the matrix
products of the frozen network's backward pass, at the same chunk size; and
`torch.autograd.functional.jacobian(vectorize=True)` of the plain model, which is a different J with as many elements.

    python benchmarks/dense.py [ROUNDS]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from random_models import llama
from transformers import LlamaForCausalLM

import secant as sc
from secant.operators.operator import CHUNK

D, FF, LAYERS, T = 512, 1376, 8, 8


def gemms_of(model: LlamaForCausalLM) -> Callable[[], None]:
    """Cotangents of all rows of J through down, up, output and value projections of every layer, chunk by chunk."""
    cotangents = torch.randn(CHUNK * T, D)

    def run() -> None:
        for _ in range(D // CHUNK):
            g = cotangents
            for layer in reversed(model.model.layers):
                inner = g @ layer.mlp.down_proj.weight
                g = inner @ layer.mlp.up_proj.weight
                g = (g @ layer.self_attn.o_proj.weight) @ layer.self_attn.v_proj.weight

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=7)
    rounds = parser.parse_args().rounds
    model = llama(D, FF, LAYERS, 8)
    run = sc.freeze(sc.LM(model), list(range(1, T + 1)))
    op = run.operator()

    def last(x: torch.Tensor) -> torch.Tensor:
        return model.model(inputs_embeds=x[None], use_cache=False).last_hidden_state[0, -1]

    sides: dict[str, Callable[[], object]] = {
        "op.dense()": op.dense,
        "the GEMMs alone": gemms_of(model),
        "functional.jacobian": lambda: torch.autograd.functional.jacobian(last, run.input, vectorize=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if i:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    ours = median["op.dense()"]
    print(f"d {D}, {LAYERS} layers, T {T}, float32, {torch.get_num_threads()} threads, {rounds} rounds, medians")
    for name, s in median.items():
        print(f"  {name:<22}{s:8.3f} s  ({min(seconds[name]):.3f} to {max(seconds[name]):.3f})")
    print(f"op.dense() / GEMMs alone           {ours / median['the GEMMs alone']:.2f}  (claim: at most 1.2)")
    print(f"functional.jacobian / op.dense()   {median['functional.jacobian'] / ours:.2f}  (claim: at least 1.40)")


if __name__ == "__main__":
    main()
