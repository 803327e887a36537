"""Claim: memory grows linearly with the prompt: for the top 8 of the whole operator at T 512, 1024, 2048, 4096 (Llama
layout, d 256, 4 layers, float32), the peak grows at most 2.3 times for each doubling. At 512 the result is that of J.

The peak is that of the process, less its memory with the model loaded; it includes recording, replay and SVD. The T x T
pattern of each head and layer is never kept: secant keeps queries and keys, and recomputes blocks of the pattern's
rows.

    python benchmarks/long.py [T ...]
"""

import subprocess
import sys
import threading
import time

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import secant as sc

LENGTHS = (512, 1024, 2048, 4096)


def run(T: int, check: bool) -> None:
    """Print the peak in bytes, seconds, passes, and, if J is formed, the error of the singular values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=1000, max_position_embeddings=8192,
    )  # fmt: skip
    lm = sc.LM(LlamaForCausalLM(config).eval().requires_grad_(False))
    sc.svd(sc.freeze(lm, list(range(1, 33))).operator(), 8, solver="krylov")  # what is loaded once
    process, done = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    op = sc.freeze(lm, [i % 999 + 1 for i in range(T)]).operator()
    f = sc.svd(op, 8, solver="krylov")
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    off = ((f.S - torch.linalg.svdvals(op.dense().flatten(1))[:8]).abs().max() / f.S[0]).item() if check else 0.0
    print(most - before, seconds, f.passes, off)


def main(lengths: list[int]) -> None:
    last = None
    print(f"d 256, 4 layers, top 8 of the whole operator, float32, {torch.get_num_threads()} threads")
    print("     T   peak MiB  times     s  passes")
    for T in lengths:
        arguments = [sys.executable, __file__, "run", str(T)]
        out = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()[-4:]
        peak, seconds, passes, off = float(out[0]), float(out[1]), int(out[2]), float(out[3])
        times = "" if last is None else f"{peak / last:.2f}"
        print(f"{T:6} {peak / 2**20:10.0f}  {times:>5} {seconds:5.0f}  {passes:6}", flush=True)
        if T == 512:
            print(f"       singular values differ from those of J by {off:.0e} of the largest")
        last = peak
    print("(claim: at most 2.3 times for each doubling)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(int(sys.argv[2]), sys.argv[2] == "512")
    else:
        main([int(T) for T in sys.argv[1:]] or list(LENGTHS))
