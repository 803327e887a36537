"""What the worker computes for browsers: each kind of job is a row of `KINDS`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from secant.analyses import live
from secant.analyses.case import Case
from secant.analyses.explain import case_of, of_case
from secant.analyses.stages import STAGES
from secant.errors import BadArgument, BadPrompt, TooLarge
from secant.linearize.run import Run, freeze
from secant.memory import bytes_in_words, free, watched
from secant.model.lm import LM, Prompt
from secant.results.page import EXPLANATION, html
from secant.stream.words import Null, Side
from secant.workbench.asked import ABLATION, STEERING, WORD, Asked, Field, text
from secant.workbench.jobs import Job

CONCEPTS = 4
"""The number of concepts of steering that are kept for each model."""


@dataclass(eq=False)
class Model:
    """A model that users can choose, and what its runs share.

    Attributes:
        lm: The model.
        longest: The most tokens of a prompt.
        k: The number of singular triplets of each token's block.
        top: The number of top tokens of each direction.
        memory: Bytes to work in, or a size; by default half of the free memory.
        nulls: What random directions decode to, by side.
        concepts: The latest concepts of steering, by their texts.

    """

    lm: LM
    longest: int
    k: int = 4
    top: int = 8
    memory: str | None = None
    nulls: dict[Side, Null] = field(default_factory=dict)
    concepts: OrderedDict[str, Run] = field(default_factory=OrderedDict)

    def concept(self, given: str) -> Run:
        """Returns the run of a concept.

        Args:
            given: Its text.

        Raises:
            SecantError: As `freeze` does.

        """
        if given not in self.concepts:
            self.check(given)
            self.concepts[given] = freeze(self.lm, given)
        self.concepts.move_to_end(given)
        while len(self.concepts) > CONCEPTS:
            self.concepts.popitem(last=False)
        return self.concepts[given]

    def check(self, prompt: Prompt) -> None:
        """Raises BadPrompt if a prompt has more tokens than are allowed.

        Args:
            prompt: The prompt.

        """
        if (count := len(self.lm.encode(prompt))) > self.longest:
            raise BadPrompt(
                f"A prompt has at most {self.longest} tokens here", f"{count}",
                "Shorten it, or start secant serve with a larger --max-tokens.",
            )  # fmt: skip


@dataclass(eq=False)
class Work:
    """A run of the workbench: the request, and everything that is computed for it.

    Attributes:
        asked: The request.
        model: Its model.
        case: Its case, once the prompt is frozen.
        parts: The contents of each stage that is done.
        seconds: The time that each stage took.
        jobs: The job of each stage, by its name.

    """

    asked: Asked
    model: Model
    case: Case | None = None
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def prompt(self) -> Prompt:
        """The prompt in the form that the model takes: a text or chat messages."""
        return [{"role": "user", "content": self.asked.prompt}] if self.asked.chat else self.asked.prompt

    @property
    def frozen(self) -> Case:
        """Its case. Raises BadArgument if the prompt has not been frozen yet."""
        if self.case is None:
            raise BadArgument("A prompt is explained first", "a prompt without an answer yet", "Wait for its answer.")
        return self.case

    @contextmanager
    def working(self, job: Job) -> Iterator[Case]:
        """Reports a job's progress in the block, and refuses any part of its work that does not fit in memory.

        Args:
            job: The job.

        Yields:
            The case.

        """
        case = self.frozen
        with case.working(self.model.memory, job.progress), watched(self.watch(job), job.stop):
            yield case

    def watch(self, job: Job) -> Callable[[str, float, float], None]:
        """Returns a function that records the forecast of a job's work, and refuses work that does not fit.

        Args:
            job: The job.

        """

        def note(what: str, seconds: float, memory: float) -> None:
            job.check()
            job.estimate, job.memory = max(job.estimate or 0.0, seconds), max(job.memory or 0.0, memory)
            job.told()
            refuse(what, memory, self.model.lm)

        return note


def refuse(what: str, memory: float, lm: LM) -> None:
    """Raises TooLarge if work does not fit in the free memory.

    Args:
        what: The work.
        memory: The bytes that it is estimated to need.
        lm: The model, on whose device it runs.

    """
    if memory > (room := free(lm.device)):
        raise TooLarge(
            f"{what} must fit in memory", f"about {bytes_in_words(memory)}, with {bytes_in_words(room)} free",
            "Shorten the prompt, or close what else needs memory.",
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------- kinds


def stage(work: Work, job: Job, given: Mapping[str, Any]) -> Any:
    """Computes a stage.

    Args:
        work: The run.
        job: The job, whose name is the stage's.
        given: Not used.

    """
    if work.case is None:
        asked = work.asked
        work.model.check(work.prompt)
        with watched(work.watch(job), job.stop):
            work.case = case_of(
                work.model.lm, work.prompt, target=asked.target, k=work.model.k, top=work.model.top,
                convention=asked.convention, precision=None, seed=0, origin=None, baseline=asked.baseline,
                nulls=work.model.nulls,
            )  # fmt: skip
    with work.working(job) as case:
        work.parts[job.name] = STAGES[job.name].contents(case, work.seconds)
    return {"stage": job.name}


def versus(work: Work, job: Job, given: Mapping[str, Any]) -> Any:
    """Compares the target with another token; the page's stage `versus` then has it too.

    Args:
        work: The run.
        job: The job.
        given: `token`, its text or, like "#12", its id.

    """
    with work.working(job) as case:
        number = live.compared(case, given)
        work.parts["versus"] = STAGES["versus"].contents(case, work.seconds)
        return {"stage": "versus", "number": number}


def ablation(work: Work, job: Job, given: Mapping[str, Any]) -> Any:
    """Ablates a token, part or head, in the frozen network and in the model itself.

    Args:
        work: The run.
        job: The job.
        given: `what`, `by` and `position`, as in `ablate`.

    """
    with work.working(job) as case:
        return live.ablated(case, given)


def steering(work: Work, job: Job, given: Mapping[str, Any]) -> Any:
    """Continues the prompt with the model steered and unsteered.

    Args:
        work: The run.
        job: The job.
        given: `concept`, `layer`, `strength`, `form` and `tokens`, as in `secant steer`.

    """
    with watched(work.watch(job), job.stop):
        return live.steered(work.model.lm, work.prompt, work.model.concept(given["concept"]), given)


def page(work: Work, job: Job, given: Mapping[str, Any]) -> Any:
    """Writes the offline page, with all that `secant explain --layers --out` puts in it.

    Args:
        work: The run.
        job: The job.
        given: Not used.

    """
    with work.working(job) as case:
        layers = bool(case.run.inside.layers)
        return html(EXPLANATION, of_case(case, layers=layers, seconds=work.seconds).contents())


KINDS: dict[str, tuple[Callable[[Work, Job, Mapping[str, Any]], Any], Mapping[str, Field]]] = {
    "stage": (stage, {}),
    "versus": (versus, {"token": text(WORD)}),
    "ablation": (ablation, ABLATION),
    "steering": (steering, STEERING),
    "page": (page, {}),
}
"""Each kind of job: its function, and the fields of a request for it."""
