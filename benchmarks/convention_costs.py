"""What do live gates, patterns and norms cost? Four kinds of work, as ratios to `gate`, which freezes all of these.

Under each convention, in one process, this measures freezing the prompt with its certificate, J in full, contributions
of all tokens from one reference, and `sc.layers` (top 4). Each convention takes turns with `gate`; a ratio compares the
fastest of several turns. Times are CPU seconds, because Python and products both take time. "counted" are J's own
operations, which torch counts in one backward pass.

    python benchmarks/convention_costs.py [--models MODEL ...] [--turns N] [--tokens N] [--no-layers]
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode
from trained_models import models

import secant as sc

PROMPT = "The bridge out of Marin is the"
CONVENTIONS = ("half", "halves", "secant")


def works(lm: sc.LM, ids: list[int], runs: dict[str, sc.Run], layers: bool) -> dict[str, Callable[[str], object]]:
    """The kinds of work, each a function of the convention."""
    found: dict[str, Callable[[str], object]] = {
        "freeze": lambda name: sc.freeze(lm, ids, convention=name),
        "J in full": lambda name: runs[name].operator().dense(),
        "contributions": lambda name: sc.attribute(sc.freeze(lm, ids, convention=name), parts=False, references=1),
    }
    return found | ({"layers": lambda name: sc.layers(runs[name], k=4)} if layers else {})


def counted(op: sc.Operator) -> int:
    """The operations of one product with Jᵀ."""
    with FlopCounterMode(display=False) as counter:
        _ = op.T @ torch.ones(op.shape[0], dtype=op.bias.dtype)
    return counter.get_total_flops()


def took(work: Callable[[str], object], convention: str) -> float:
    """CPU seconds."""
    start = time.process_time()
    work(convention)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, help="repeat the prompt to this many tokens")
    parser.add_argument("--no-layers", action="store_true")
    args = parser.parse_args()
    for name, place in models(args.models):
        lm = sc.load(place, dtype="float32")
        ids = lm.encode(PROMPT)
        if args.tokens:
            ids = (ids * args.tokens)[: args.tokens]
        runs = {c: sc.freeze(lm, ids, convention=c) for c in ("gate", *CONVENTIONS)}
        counts = [counted(run.operator()) for run in runs.values()]
        print(f"\n{name}, {len(ids)} tokens\n{'':16}{'gate':>10}" + "".join(f"{c:>10}" for c in CONVENTIONS))
        for what, work in works(lm, ids, runs, not args.no_layers).items():
            least, ratios = float("inf"), list[float]()
            for convention in CONVENTIONS:
                pairs = [[took(work, c) for c in ("gate", convention)] for _ in range(args.turns)]
                frozen, live = (min(column) for column in zip(*pairs, strict=True))
                least, ratios = min(least, frozen), [*ratios, live / frozen]
            print(f"{what:16}{least:9.2f}s" + "".join(f"{ratio:10.2f}" for ratio in ratios))
            if what == "J in full":
                print(f"{'  counted':26}" + "".join(f"{count / counts[0]:10.2f}" for count in counts[1:]))


if __name__ == "__main__":
    main()
