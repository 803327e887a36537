"""Claim: a study of short prompts is at least 1.5 times as fast as a loop over `sc.explain` with the same results,
including the start of processes and the files. Ray with two workers is about as fast as two processes. Memory does not
grow with the number of prompts.

Questions on Atlas, float32. The loop uses all threads; the study uses processes of one thread, as many as the command
starts.

    python benchmarks/study.py [PROMPTS]
"""

import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from prompts import questions

import secant as sc
from secant.memory import bytes_in_words, peak
from secant.studies.local import default_workers
from secant.studies.prompts import Item


def loop(items: list[Item]) -> float:
    """Seconds."""
    lm = sc.load("atlas")
    sc.explain(lm, items[0].text())  # warms up
    start = time.perf_counter()
    for item in items:
        sc.explain(lm, item.text()).to_pandas()
    return time.perf_counter() - start


def study(items: list[Item], **how: object) -> float:
    """Seconds, including the start of processes and the files."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = sc.study(items, "atlas", out=Path(folder) / "study", threads=1, **how)
        took = time.perf_counter() - start
        assert not len(found.failed)
    return took


def memory(count: int) -> int:
    """Peak memory in bytes of a process that studies this many prompts."""
    out = subprocess.run([sys.executable, __file__, "peak", str(count)], check=True, capture_output=True, text=True)
    return int(out.stdout.split()[-1])


def main(count: int) -> None:
    import torch

    items = questions(count)
    workers = default_workers("atlas", count)
    print(f"{count} questions on Atlas, float32, {torch.get_num_threads()} threads; prompts a second")
    plain = loop(items)
    print(f"  loop over sc.explain, all threads    {count / plain:6.2f}")
    took = {"one process, one thread": study(items), f"{workers} processes": study(items, workers=workers)}
    if find_spec("ray"):
        took["Ray, two workers"] = study(items, engine="ray", workers=2)
    for name, seconds in took.items():
        print(f"  study, {name:<29} {count / seconds:6.2f}")
    print(f"study / loop                 {plain / took[f'{workers} processes']:.2f}  (claim: at least 1.5)")
    if find_spec("ray"):
        two = took["2 processes"] if workers == 2 else study(items, workers=2)
        print(f"Ray / two processes          {two / took['Ray, two workers']:.2f}")
    few, many = memory(count // 8), memory(count)
    print(f"memory at its peak, {count // 8} and {count} prompts: {bytes_in_words(few)}, {bytes_in_words(many)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        study(questions(int(sys.argv[2])))
        print(peak(sc.load("atlas").device))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 256)
