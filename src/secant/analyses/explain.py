"""Why a model predicts what it does: the linear system of one prompt, token by token.

The final hidden state is y = Σ_t J_t x_t + b. `explain` returns, for each token, its exact contribution to the logit of
the predicted token, the norm ‖J_t x_t‖, the leading singular triplets of J_t, and the tokens that its singular vectors
decode to. `Explanation.evidence` returns what supports this: the sums over layers and heads, an image of J, the rebuilt
output, and what random directions decode to.
"""

from __future__ import annotations

from typing import SupportsIndex

import torch
from torch import Tensor

from secant.analyses.case import Case
from secant.analyses.continuation import Steps, follow
from secant.analyses.explanation import Explanation
from secant.analyses.origins import origin_named
from secant.analyses.targets import baseline_named
from secant.arguments import counted
from secant.errors import checked
from secant.linearize.conventions import Named
from secant.linearize.run import (
    freeze,
)
from secant.memory import Progress, peak, timed
from secant.model.lm import LM, Prompt
from secant.operators.decomposition import countable
from secant.stream.words import Null, Side


@checked
def explain(
    lm: LM,
    prompt: Prompt,
    *,
    target: str | SupportsIndex | None = None,
    versus: str | SupportsIndex | None = None,
    k: int = 4,
    top: int = 8,
    convention: Named | None = None,
    precision: str | torch.dtype | None = None,
    seed: int = 0,
    layers: bool = False,
    steps: int = 1,
    origin: str | Tensor | None = None,
    baseline: str = "vocabulary",
    max_memory: float | str | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Returns a prompt's linear system, token by token: exact contributions, spectra and top tokens.

    Args:
        lm: The model.
        prompt: A text, token ids or chat messages.
        target: The token whose logit is explained, by its text or id; by default the predicted one.
        versus: A token whose logit is subtracted: the difference is what contributions sum to. The lens follows the
            target, and a continuation its own predictions.
        k: The number of singular triplets of each token's block.
        top: The number of top tokens of each singular vector.
        convention: Which exact affine map replaces each operation, as in `freeze`; by default "gate" for spectra and
            "secant" for contributions.
        precision: The type in which the frozen network is evaluated, at least the model's own, which is the default.
        seed: The seed of the random input that affinity is measured at, of solvers, and of random directions.
        layers: Whether every layer is decomposed too, as in `secant.layers`.
        steps: How many tokens of the model's continuation to decompose, as in `follow`. 1 is only the prediction.
        origin: What contributions are measured from, as in `attribute`.
        baseline: What logits are measured from, likewise.
        max_memory: Bytes to work in, or a size such as "4GiB"; by default half of the free memory.
        progress: Called as `progress(what, done, all)` during the work.

    Raises:
        BadPrompt: The prompt is empty, too long, or not in the vocabulary.
        BadArgument: Another argument is out of range.
        NotExact: The frozen network does not reproduce the model within tolerance.
        SecantError: Any other error of `freeze`, `svd`, `layers` and `follow`.

    """
    return explained(
        lm, prompt, target=target, versus=versus, k=k, top=top, convention=convention, precision=precision, seed=seed,
        layers=layers, steps=steps, origin=origin, baseline=baseline, max_memory=max_memory, progress=progress,
        nulls={}, beside=True,
    )  # fmt: skip


def explained(
    lm: LM,
    prompt: Prompt,
    *,
    k: int,
    top: int,
    convention: Named | None,
    precision: str | torch.dtype | None,
    seed: int,
    max_memory: float | str | None,
    progress: Progress | None,
    nulls: dict[Side, Null],
    beside: bool,
    target: str | SupportsIndex | None = None,
    versus: str | SupportsIndex | None = None,
    layers: bool = False,
    steps: int = 1,
    origin: str | Tensor | None = None,
    baseline: str = "vocabulary",
) -> Explanation:
    """Returns what `explain` does, with random directions that prompts of one model share.

    Args:
        lm: As in `explain`, like all arguments but `nulls`.
        prompt: The prompt.
        k: The number of singular triplets of each token's block.
        top: The number of top tokens of each singular vector.
        convention: Which exact affine map replaces each operation.
        precision: The type in which the frozen network is evaluated.
        seed: The seed of all random numbers.
        max_memory: Bytes to work in, or a size.
        progress: Called as `progress(what, done, all)` during the work.
        nulls: What random directions decode to, by side; missing ones are added.
        beside: Whether other conventions, deletions and the lens are computed now, instead of on first use.
        target: The token whose logit is explained.
        versus: A token whose logit is subtracted.
        layers: Whether every layer is decomposed too.
        steps: How many tokens of the model's continuation to decompose.
        origin: What contributions are measured from.
        baseline: What logits are measured from.

    """
    seconds: dict[str, float] = {}
    top = counted("top", top)
    steps = counted("steps", steps)
    if isinstance(origin, str):
        origin_named(origin)
    baseline_named(baseline)
    with timed("freezing", seconds, progress):
        case = case_of(
            lm, prompt, target=target, versus=versus, k=k, top=top, convention=convention, precision=precision,
            seed=seed, origin=origin, baseline=baseline, nulls=nulls,
        )  # fmt: skip
    if layers:  # before anything is computed
        case.run.found_layers("Leave out the layers.")
    with case.working(max_memory, progress):
        with timed("contributions", seconds, progress):
            _ = case.attribution()
        with timed("spectra", seconds):
            svds = case.blocks
        with timed("words", seconds, progress):
            _ = case.words(svds, "output"), case.words(svds, "input")
        with timed("terms", seconds):
            _ = case.norms, case.written
        if beside:
            with timed("sensitivity", seconds):
                _ = case.sensitivity
            with timed("lens", seconds):
                _ = case.lens
            with timed("largest", seconds, progress):
                _ = case.largest
        if layers:
            with timed("layers", seconds):
                _ = case.every_layer
        continuation = None
        if steps != 1:
            with timed("steps", seconds):
                continuation = follow(case.run, steps, origin=origin, baseline=baseline, progress=progress)
    return of_case(case, layers=layers, steps=continuation, seconds=seconds)


def case_of(
    lm: LM,
    prompt: Prompt,
    *,
    target: str | SupportsIndex | None,
    versus: str | SupportsIndex | None = None,
    k: int,
    top: int,
    convention: Named | None,
    precision: str | torch.dtype | None,
    seed: int,
    origin: str | Tensor | None,
    baseline: str,
    nulls: dict[Side, Null],
) -> Case:
    """Returns the case of a prompt, which freezes it and computes nothing else.

    Args:
        lm: As in `explain`, like all arguments but `nulls`.
        prompt: The prompt.
        target: The token whose logit is explained.
        versus: A token whose logit is subtracted.
        k: The number of singular triplets of each token's block.
        top: The number of top tokens of each singular vector.
        convention: Which exact affine map replaces each operation.
        precision: The type in which the frozen network is evaluated.
        seed: The seed of all random numbers.
        origin: What contributions are measured from.
        baseline: What logits are measured from.
        nulls: What random directions decode to, by side; missing ones are added.

    """
    aim, over = (None if token is None else lm.token(token) for token in (target, versus))
    run = freeze(lm, prompt, convention=convention, precision=precision, top=max(top, 10), seed=seed)
    kept = countable(run.operator(), k, per_token=True)
    return Case(run, kept, top, seed, nulls=nulls, origin=origin, baseline=baseline, target=aim, over=over)


def of_case(
    case: Case, *, layers: bool = False, steps: Steps | None = None, seconds: dict[str, float] | None = None
) -> Explanation:
    """Returns the explanation of a case, after computing what the case has not computed yet.

    Args:
        case: The case.
        layers: Whether it has every layer.
        steps: The model's continuation.
        seconds: The time that each stage took, in seconds.

    """
    svds = case.blocks
    outputs, inputs = case.words(svds, "output"), case.words(svds, "input")
    return Explanation(
        case.run, case.attribution(), svds, outputs, inputs, case.norms, case.written, *case.sinks, case,
        case.every_layer if layers else None, steps, seconds or {}, peak(case.run.lm.device),
    )  # fmt: skip
