"""Claim: for all layers and three points, `sc.layers` computes the top-8 SVD of each token's block 3 times (8 layers,
T 11) and 10 times (24 layers, T 6) as fast as one `torch.autograd.functional.jacobian(vectorize=True)` for each point
and one sklearn `randomized_svd` for each token.

Llama layout, d 512, float32; points are read out through the final norm, as in the paper. Both ways are timed in one
run. `sc.layers` includes everything that it needs (finding the points, choosing the method). The other way takes the
Jacobian of the plain model from the embeddings, and scikit-learn's randomized SVD with its default settings.

    python benchmarks/layers.py [ROUNDS]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from random_models import llama
from sklearn.utils.extmath import randomized_svd
from transformers import LlamaForCausalLM

import secant as sc

D, FF, K = 512, 1376, 8
CASES = ((8, 11, 3.0), (24, 6, 10.0))


def one_by_one(model: LlamaForCausalLM, x: torch.Tensor) -> None:
    """A Jacobian for each layer and point, a randomized SVD for each token."""
    for layer in model.model.layers:
        for part in (layer, layer.self_attn, layer.mlp):

            def point(x: torch.Tensor, part: torch.nn.Module = part) -> torch.Tensor:
                seen: list[torch.Tensor] = []
                hook = part.register_forward_hook(
                    lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
                )
                model.model(inputs_embeds=x[None], use_cache=False)
                hook.remove()
                return model.model.norm(seen[0].reshape(-1, D)[-1])

            J = torch.autograd.functional.jacobian(point, x, vectorize=True)
            for t in range(len(x)):
                randomized_svd(J[:, t].numpy(), K, random_state=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=1)
    rounds = parser.parse_args().rounds
    for layers, T, claim in CASES:
        model = llama(D, FF, layers, 8)
        run = sc.freeze(sc.LM(model), list(range(1, T + 1)))

        def ours(run: sc.Run = run) -> sc.Layers:
            vars(run).pop("inside", None)  # what it keeps from one call to the next
            return sc.layers(run, K, spans=["cumulative"], all_tokens=False)

        sides: dict[str, Callable[[], object]] = {
            "sc.layers": ours,
            "one by one": partial(one_by_one, model, run.input),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                start = time.perf_counter()
                side()
                seconds[name].append(time.perf_counter() - start)
        median = {name: statistics.median(s) for name, s in seconds.items()}
        worst = max(f.residuals.max().item() / f.S[0].item() for depth in ours().depths for f in depth.tokens)
        print(f"d {D}, {layers} layers, T {T}, float32, {torch.get_num_threads()} threads, {rounds} rounds, medians")
        for name, s in median.items():
            print(f"  {name:<12}{s:8.2f} s  ({min(seconds[name]):.2f} to {max(seconds[name]):.2f})")
        print(
            f"one by one / sc.layers   {median['one by one'] / median['sc.layers']:.1f}  (claim: at least {claim:.0f})"
        )
        print(f"largest residual of a triplet, in σ₁: {worst:.0e}")


if __name__ == "__main__":
    main()
