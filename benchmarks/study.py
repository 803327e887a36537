"""Claim: a study of short prompts is at least 1.5 times as fast as a loop over `sc.explain` with the same results,
including the start of processes and the files. Ray with two workers is about as fast as two processes. Memory does not
grow with the number of prompts.

Questions on Atlas, float32. The loop uses all threads; the study uses processes of one thread, as many as the command
starts.

    python benchmarks/study.py [PROMPTS]
"""

import argparse
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from processes import separately
from prompts import questions

import secant as sc
from secant.memory import bytes_in_words, peak
from secant.studies.local import default_workers
from secant.studies.prompts import Item

MODEL = "atlas"


def loop(items: list[Item]) -> float:
    """Seconds."""
    lm = sc.load(MODEL)
    sc.explain(lm, items[0].text())  # warms up
    start = time.perf_counter()
    for item in items:
        sc.explain(lm, item.text()).to_pandas()
    return time.perf_counter() - start


def study(items: list[Item], workers: int | None = None, engine: Literal["local", "ray"] = "local") -> float:
    """Seconds, including the start of processes and the files."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = sc.study(items, MODEL, out=Path(folder) / "study", threads=1, workers=workers, engine=engine)
        took = time.perf_counter() - start
        assert not len(found.failed)
    return took


def memory(count: int, times: int) -> int:
    """The memory of this process at its peak, in bytes, after a study of this many prompts, each several times."""
    study([replace(item, number=number) for number, item in enumerate(questions(count) * times)])
    found = peak(torch.device("cpu"))
    assert found is not None, "this system does not count it"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="?", type=int, default=256)
    count = parser.parse_args().prompts
    items = questions(count)
    workers = default_workers(MODEL, count)
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
    once, again = (bytes_in_words(separately(memory, count // 8, times)) for times in (1, 8))
    print(f"memory at its peak, {count // 8} prompts and the same 8 times: {once}, {again}")


if __name__ == "__main__":
    main()
