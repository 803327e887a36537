"""Claim: secant reads a GGUF file as llama.cpp does: 50 prompts have the same tokens, and the same next token.

llama.cpp multiplies packed blocks by activations that it rounds to 8 bits. So both the file and a copy with the same
weights in float32, with which llama.cpp computes in float32, are compared. This requires the package llama-cpp-python.

    python benchmarks/next_tokens.py [MODEL ...]  # names or GGUF files; by default both of `make models`
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from prompts import written
from trained_models import REAL_MODELS, models  # puts tests on the path

import secant as sc

COUNT = 50


def prompts() -> list[str]:
    """The prompts, from all kinds."""
    return [text for _, text in written()[:COUNT]]


def compare(lm: sc.LM, path: Path, prompts: list[str]) -> tuple[int, int, float, float]:
    """How many prompts have the same tokens and the same next token, and the median and largest difference of log p."""
    from llama_cpp import Llama

    other = Llama(str(path), n_ctx=128, n_batch=128, logits_all=True, verbose=False, n_threads=1)
    tokens = nexts = 0
    apart = []
    for prompt in prompts:
        ids = other.tokenize(prompt.encode(), special=True)
        tokens += ids == lm.encode(prompt)
        other.reset()
        other.eval(ids)
        theirs = torch.tensor(other.scores[len(ids) - 1]).double().log_softmax(0)
        ours = lm.logits(ids)[-1].double().log_softmax(0)
        nexts += int(theirs.argmax() == ours.argmax())
        apart.append(float((theirs - ours)[ours.topk(20).indices].abs().max()))
    return tokens, nexts, sorted(apart)[len(apart) // 2], max(apart)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    args = parser.parse_args()
    if find_spec("llama_cpp") is None:
        print("llama-cpp-python is not installed here: nothing was compared.")
        return
    from gguf_files import plain

    print(f"{'file':34}{'weights':>9}{'tokens':>9}{'next':>8}{'log p, median':>15}{'largest':>10}")
    for _, place in models(args.models, tuple(REAL_MODELS)):
        path = Path(place)
        lm = sc.load(path)
        with tempfile.TemporaryDirectory() as folder:
            for kind, file in (("packed", path), ("float32", plain(path, Path(folder) / "plain.gguf"))):
                tokens, nexts, median, largest = compare(lm, file, prompts())
                count = f"{tokens}/{COUNT}", f"{nexts}/{COUNT}"
                print(f"{path.name:34}{kind:>9}{count[0]:>9}{count[1]:>8}{median:>15.1e}{largest:>10.1e}", flush=True)


if __name__ == "__main__":
    main()
