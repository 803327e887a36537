"""What freezing a long prompt will take, told from its beginning, which is frozen first.

Memory is counted on the tape: what a backward pass keeps of each step on the way from the input, what is held, and the
gradients of slices, each as large as what it is a slice of, which fragment the heap where a model walks its tokens one
by one. The counts of two lengths give those of the whole: linear in the tokens, and quadratic where T x T numbers are
kept. Time is that of an eighth of the prompt, eight times, and the products of attention, which grow with T x T.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from secant.errors import SecantError
from secant.linearize.rules import ROWS
from secant.linearize.tape import Step
from secant.memory import announce, is_large, multiplications

if TYPE_CHECKING:
    from secant.linearize.network import Recording

LEAST = 256
"""Tokens from which on a prompt is long enough to ask."""

KEPT, HELD = 1.5, 1.1
"""Bytes at the peak for each byte of the steps' outputs, and of what they hold: tests/test_forecast.py measures it."""

PASSES = 20
"""Times that the products of attention are made while a prompt is frozen."""


def memory(recording: Recording, dtype: torch.dtype) -> float:
    """Bytes at the peak of freezing this recording's prompt."""
    tape, size = recording.tape, max(4, dtype.itemsize)  # in 16 bits, models cast up on the way
    path = tape.path(recording.steps.values())
    kept = sum(math.prod(step.shape) for step in path)
    sliced = sum(_whole(tape.steps, step) for step in path)
    return size * (KEPT * kept + sliced) + HELD * tape.nbytes


def _whole(steps: Sequence[Step], step: Step) -> int:
    """Numbers in what a step takes a slice of; 0 where it is no slice."""
    row = ROWS.get(step.function)
    if step.form is not None or row is None or not row.view or not step.parents or step.parents[0] < 0:
        return 0
    whole = math.prod(steps[step.parents[0]].shape)
    return whole if math.prod(step.shape) < whole else 0


def _attention(recording: Recording) -> float:
    """Floating-point operations of one pass's products with patterns."""
    shapes = [step.shape for step in recording.tape.steps if step.attends]
    return sum(4.0 * math.prod(shape) * len(recording.ids) for shape in shapes)


def foretell(ids: Sequence[int], frozen: Callable[[Sequence[int]], Recording], dtype: torch.dtype) -> None:
    """Announce what freezing a long prompt will take; `frozen` freezes a shorter one and gives its recording.

    A sixteenth of the prompt is frozen first, and an eighth where that alone does not show that it is little.
    """
    T = len(ids)
    counts: list[float] = []
    if T < LEAST:
        return
    for n in (T // 16, T // 8):
        start = time.perf_counter()
        try:
            recording = frozen(ids[:n])
        except SecantError:
            return  # a type that takes no such length, or an error that the whole prompt will have too
        seconds, counts = time.perf_counter() - start, [*counts, memory(recording, dtype) / n]  # bytes a token
        device = recording.values["norm"].device
        if not is_large(seconds * 64, counts[0] * 16 * T, device):
            return
    linear, quadratic = seconds * T / n, _attention(recording) * (T / n) ** 2 * PASSES / multiplications(device, dtype)
    growth = (counts[1] - counts[0]) / (T // 8 - T // 16)  # bytes a token, for each token more
    announce(f"Freezing {T} tokens", linear + quadratic, T * (counts[1] + growth * (T - n)), device)
