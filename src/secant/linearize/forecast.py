"""Estimate the time and memory that freezing a long prompt takes, by freezing its first tokens.

Memory is counted on the tape: the outputs that a backward pass keeps, the frozen coefficients, and the gradients of
slices. The gradient of a slice is as large as the sliced tensor, and such gradients fragment the heap if a model
processes its tokens one by one. Prompts of two lengths determine the linear and the quadratic term in the number of
tokens; T x T tensors cause the quadratic one. The estimated time is eight times that of an eighth of the prompt, plus
that of attention's products, which grows with T².
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

MIN_TOKENS = 256
"""Shorter prompts are frozen without an estimate."""

GRAPH_BYTES, COEFFICIENT_BYTES = 1.5, 1.1
"""Peak bytes per byte of the steps' outputs, and per byte of the coefficients; tests/test_forecast.py measures both."""

ATTENTION_PASSES = 20
"""How often attention's products are computed while a prompt is frozen."""


def memory(recording: Recording, dtype: torch.dtype) -> float:
    """Returns the estimated peak memory in bytes of freezing this recording's prompt."""
    tape, size = recording.tape, max(4, dtype.itemsize)  # half-precision models cast up inside
    path = tape.path(recording.steps.values())
    kept = sum(math.prod(step.shape) for step in path)
    sliced = sum(_whole(tape.steps, step) for step in path)
    return size * (GRAPH_BYTES * kept + sliced) + COEFFICIENT_BYTES * tape.nbytes


def _whole(steps: Sequence[Step], step: Step) -> int:
    """Elements of the tensor that a step slices, or 0 if the step is not a slice."""
    row = ROWS.get(step.function)
    if step.form is not None or row is None or not row.view or not step.parents or step.parents[0] < 0:
        return 0
    whole = math.prod(steps[step.parents[0]].shape)
    return whole if math.prod(step.shape) < whole else 0


def _attention(recording: Recording) -> float:
    """Floating-point operations of one pass's products with attention patterns."""
    shapes = [step.shape for step in recording.tape.steps if step.attends]
    return sum(4.0 * math.prod(shape) * len(recording.ids) for shape in shapes)


def announce_cost(ids: Sequence[int], frozen: Callable[[Sequence[int]], Recording], dtype: torch.dtype) -> None:
    """Announce the estimated time and memory of freezing a long prompt, if they are large.

    A sixteenth of the prompt is frozen first. An eighth follows, unless the sixteenth shows that the cost is small.

    Args:
        ids: The prompt's tokens.
        frozen: Freezes a shorter prompt and returns its recording.
        dtype: The model's type.
    """
    T = len(ids)
    counts: list[float] = []
    if T < MIN_TOKENS:
        return
    for n in (T // 16, T // 8):
        start = time.perf_counter()
        try:
            recording = frozen(ids[:n])
        except SecantError:
            return  # the model refuses this length, or the whole prompt raises the same error
        seconds, counts = time.perf_counter() - start, [*counts, memory(recording, dtype) / n]  # bytes per token
        device = recording.values["norm"].device
        if not is_large(seconds * 64, counts[0] * 16 * T, device):
            return
    linear = seconds * T / n
    quadratic = _attention(recording) * (T / n) ** 2 * ATTENTION_PASSES / multiplications(device, dtype)
    growth = (counts[1] - counts[0]) / (T // 8 - T // 16)  # increase of the bytes per token, per additional token
    announce(f"Freezing {T} tokens", linear + quadratic, T * (counts[1] + growth * (T - n)), device)
