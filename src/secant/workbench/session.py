"""A session of the workbench: models, runs, and the one worker that computes for them.

One thread computes, so that a job has the whole machine, and no model runs twice at the same time. Jobs for which
somebody waits go first. If there are too many runs, the least recently used one is dropped.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from secant.analyses.stages import STAGES
from secant.errors import BadArgument, SecantError, is_out_of_memory, printable, quoted
from secant.memory import free
from secant.workbench.asked import Asked, checked_by
from secant.workbench.jobs import (
    ASKED,
    CANCELLED,
    DONE,
    FAILED,
    FIRST,
    LATER,
    OFFERED,
    RUNNING,
    WAITING,
    Cancelled,
    Job,
    Yielded,
)
from secant.workbench.tasks import KINDS, Model, Work, refuse

Message = dict[str, Any]

PATIENCE = 20.0
"""A stage that is estimated to take more seconds is computed on request only."""

OFTEN = 0.15
"""Seconds between two reports of a job's progress."""

KEPT_JOBS = 200
"""The number of ended jobs that are kept."""


class Busy(SecantError):
    """The queue is full."""


class Session:
    """Models, runs and jobs.

    Args:
        models: The models that users can choose, by name.
        runs: The most runs that are kept.
        queue: The most requested jobs that can wait.

    """

    def __init__(self, models: Mapping[str, Model], *, runs: int = 8, queue: int = 32) -> None:
        self.models, self._runs, self._queue = models, runs, queue
        self.works: OrderedDict[str, Work] = OrderedDict()
        self.jobs: OrderedDict[int, Job] = OrderedDict()
        self._waiting: list[Job] = []
        self._listeners: list[Callable[[Message], None]] = []
        self._ready = threading.Condition(threading.RLock())
        self._ended = False
        self._ratio: dict[tuple[str, str], float] = {}
        self._worker = threading.Thread(target=self._work, name="secant worker", daemon=True)

    def start(self) -> None:
        """Starts the worker."""
        self._worker.start()

    def end(self, patience: float = 2.0) -> None:
        """Cancels the current job, and ends the worker.

        Args:
            patience: Seconds to wait for the worker.

        """
        with self._ready:
            self._ended = True
            for job in self.jobs.values():
                job.stopped = True
            self._ready.notify_all()
        if self._worker.is_alive():
            self._worker.join(patience)

    # --------------------------------------------------------------------------------------------- requests

    def open(self, asked: Asked) -> str:
        """Explains a prompt: queues its stages, unless the run exists.

        Args:
            asked: The request.

        Returns:
            The run's id.

        Raises:
            BadArgument: There is no such model.
            Busy: The queue is full.

        """
        if asked.model not in self.models:
            names = ", ".join(self.models)
            raise BadArgument(f"Models here are {names}", quoted(asked.model), "Add others with secant serve --model.")
        with self._ready:
            work = self.works.get(asked.id) or Work(asked, self.models[asked.model])
            self.works[asked.id] = work
            self.works.move_to_end(asked.id)
            for name in STAGES:
                job = work.jobs.get(name)
                if job is None or job.state in (FAILED, CANCELLED):
                    priority = FIRST if name == "answer" else LATER
                    work.jobs[name] = self._enqueue(work, "stage", name, {}, priority)
            while len(self.works) > self._runs:
                self._forget(next(iter(self.works)))
        return asked.id

    def ask(self, run: str, kind: str, given: Any) -> Job:
        """Queues a requested job.

        Args:
            run: The run's id.
            kind: The kind of job: a row of `KINDS`.
            given: The fields of the request; for a stage only its `name`.

        Raises:
            BadArgument: The request is not valid.
            Busy: The queue is full.
            KeyError: There is no such run or kind.

        """
        with self._ready:
            work = self.works[run]
            self.works.move_to_end(run)
            if kind == "stage":
                name = checked_by({"name": lambda value, name: str(value)}, given, {})["name"]
                if name not in STAGES:
                    raise BadArgument(f"Stages are {', '.join(STAGES)}", quoted(name), "Choose one of them.")
                there = work.jobs.get(name)
                if there is not None and there.state in (DONE, RUNNING):
                    return there
                if there is not None and not there.over:
                    self._drop(there)
                work.jobs[name] = self._enqueue(work, kind, name, {}, ASKED)
                return work.jobs[name]
            checks = KINDS[kind][1]
            values = checked_by(checks, given, {"position": None} if "position" in checks else {})
            return self._enqueue(work, kind, kind, values, ASKED)

    def cancel(self, number: int) -> None:
        """Cancels a job: at once if it waits, and at the next stopping point of its work if it runs.

        Args:
            number: The job's number.

        Raises:
            KeyError: There is no such job.

        """
        with self._ready:
            job = self.jobs[number]
            job.stopped = True
            if job.state in (WAITING, OFFERED):
                self._drop(job)

    def listen(self, listener: Callable[[Message], None]) -> tuple[list[Message], Callable[[], None]]:
        """Reports every change of a job from now on.

        Args:
            listener: Called with the public state of a job, in any thread.

        Returns:
            The public states of all jobs so far, and a function that ends the reports.

        """
        with self._ready:
            self._listeners.append(listener)
            return [job.public() for job in self.jobs.values()], partial(self._listeners.remove, listener)

    # --------------------------------------------------------------------------------------------- jobs

    def _enqueue(self, work: Work, kind: str, name: str, given: Mapping[str, Any], priority: int) -> Job:
        if priority != LATER and sum(job.priority != LATER for job in self._waiting) >= self._queue:
            raise Busy(f"At most {self._queue} jobs wait", "one more", "Wait until some are done, or cancel them.")
        job = Job(work.asked.id, kind, name, lambda job: KINDS[kind][0](work, job, given), priority)
        self.jobs[job.id] = job
        self._waiting.append(job)
        for old in [j for j in self.jobs.values() if j.over and j is not work.jobs.get(j.name)][:-KEPT_JOBS]:
            del self.jobs[old.id]
        self._tell(job)
        self._ready.notify_all()
        return job

    def _drop(self, job: Job) -> None:
        """Cancels a job that waits."""
        if job in self._waiting:
            self._waiting.remove(job)
        job.end(CANCELLED)
        self._tell(job)

    def _forget(self, run: str) -> None:
        """Forgets a run, and cancels its jobs."""
        del self.works[run]
        for job in [job for job in self.jobs.values() if job.run == run]:
            job.stopped = True
            if job.state in (WAITING, OFFERED):
                self._drop(job)
            if job.over:
                del self.jobs[job.id]

    def _tell(self, job: Job) -> None:
        for listener in list(self._listeners):
            listener(job.public())

    def _next(self) -> Job | None:
        """The next job: one for which somebody waits, else the next stage of the newest run."""
        age = {run: -i for i, run in enumerate(self.works)}
        return min(self._waiting, key=lambda job: (job.priority, age.get(job.run, 0), job.id), default=None)

    def _work(self) -> None:
        """The worker's thread."""
        while True:
            with self._ready:
                while not self._ended and (job := self._next()) is None:
                    self._ready.wait()
                if self._ended:
                    return
                assert job is not None
                self._waiting.remove(job)
            self._do(job)

    def _do(self, job: Job) -> None:
        """Runs a job, and records its result or its error."""
        work = self.works.get(job.run)
        last = looked = 0.0

        def passed() -> None:
            nonlocal looked
            if (now := time.perf_counter()) - looked > OFTEN:
                looked = now
                self._make_way(job)

        def moved() -> None:
            nonlocal last
            self._make_way(job)
            if (now := time.perf_counter()) - last > OFTEN:
                last = now
                self._tell(job)

        job.told, job.moved, job.passed = lambda: self._tell(job), moved, passed
        try:
            job.check()
            if work is None or not self._expected(work, job):
                return
            job.begin()
            self._tell(job)
            raw = job.estimate
            job.result = job.work(job)
            job.end(DONE)
            self._learn(work, job, raw)
        except Yielded:
            with self._ready:
                job.state, job.done, job.of = WAITING, 0, 0
                self._waiting.append(job)
        except Cancelled:
            job.end(CANCELLED)
        except SecantError as error:
            job.end(FAILED, str(error))
        except Exception as error:  # the worker survives any error
            full = is_out_of_memory(error)
            said = "A run must fit in memory; got none left. Shorten the prompt." if full else _unexpected(error)
            job.end(FAILED, said)
        finally:
            if job.kind == "stage" and job.name == "answer" and job.state in (FAILED, CANCELLED) and work is not None:
                for other in work.jobs.values():
                    if other.state in (WAITING, OFFERED):
                        with self._ready:
                            self._drop(other)
            self._tell(job)

    def _make_way(self, job: Job) -> None:
        """Raises Yielded if somebody waits for another job, and nobody for this one, most of which is still to do."""
        if job.priority == LATER and job.early:
            with self._ready:
                if any(other.priority < LATER for other in self._waiting):
                    raise Yielded

    def _expected(self, work: Work, job: Job) -> bool:
        """Estimates a stage, and drops old runs if it needs their memory.

        Returns:
            Whether to run it now; it is only offered if it takes long and nobody requested it.
        """
        if job.kind != "stage" or work.case is None:
            return True
        forecast = STAGES[job.name].forecast(work.case)
        job.estimate = forecast.seconds * self._ratio.get((work.asked.model, job.name), 1.0)
        job.memory = forecast.memory
        if job.priority == LATER and job.estimate > PATIENCE:
            job.state = OFFERED
            return False
        with self._ready:
            while job.memory > free(work.model.lm.device) and len(self.works) > 1:
                self._forget(next(run for run in self.works if run != job.run))
        refuse(STAGES[job.name].label.capitalize(), job.memory, work.model.lm)
        return True

    def _learn(self, work: Work, job: Job, estimate: float | None) -> None:
        """Corrects later estimates by the time that a stage took."""
        if job.kind == "stage" and estimate and job.seconds:
            key = (work.asked.model, job.name)
            self._ratio[key] = self._ratio.get(key, 1.0) * job.seconds / estimate


def _unexpected(error: Exception) -> str:
    said = " ".join(str(error).split())
    return printable(f"An unexpected error; got {type(error).__name__}: {said[:300]}.")
