"""What runs on the machines of a cluster: workers, and the tally of their deaths.

Ray Data restarts a dead worker without limit, at the shard at which it died. So each worker reports to the tally what
it begins, and refuses a shard at which too many have died. Torch is imported only after that report, so that a worker
that dies during the import is counted too.
"""

from __future__ import annotations

import pickle
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any

import pandas as pd

from secant.errors import SecantError, TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from secant.studies.work import Computed, Shard


class Tally:
    """A Ray actor that records what each worker is doing, and how many died at each shard."""

    def __init__(self) -> None:
        self._at: dict[Any, int | None] = {}
        self._lost: Counter[int | None] = Counter()

    def begins(self, hand: Any, number: int | None) -> int:
        """Record that a worker begins.

        A worker that begins while its last task is open has died at that task and was restarted.

        Args:
            hand: The worker.
            number: The number of its shard; None: it loads the model.

        Returns:
            How many workers have died at this task.

        """
        if hand in self._at:
            self._lost[self._at[hand]] += 1
        self._at[hand] = number
        return self._lost[number]

    def ends(self, hand: Any) -> None:
        """Record that a worker finished what it began.

        Args:
            hand: The worker.

        """
        self._lost.pop(self._at.pop(hand, None), None)

    def at_work(self) -> list[Any]:
        """The workers that are busy."""
        return list(self._at)


class ClusterWorker:
    """A worker, run by an actor of Ray Data. It returns errors as results, since Ray Data would hide their class."""

    def __init__(self, work: bytes, tally: Any, tries: int) -> None:
        self._work, self._tally, self._tries = work, tally, tries
        self._worker: Callable[[Shard], Computed] | None = None

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        """Compute a shard.

        Args:
            batch: One row with the shard.

        Returns:
            One row: the rows of the shard or the error, how many workers died before, and this worker's versions.

        """
        (packed,) = batch["shard"]
        started = died = 0
        result: Computed | Exception
        try:
            if self._worker is None:
                started = self._note("begins", None)
                check_deaths(started, self._tries, None)
                self._worker = pickle.loads(self._work).worker()
                self._note("ends")
            shard = pickle.loads(packed)
            died = self._note("begins", shard.number)
            check_deaths(died, self._tries, shard)
            result = self._worker(shard)
        except Exception as error:
            if not isinstance(error, SecantError):
                error.add_note(traceback.format_exc())
            result = error
        self._note("ends")
        from secant.model.lm import versions

        return pd.DataFrame({"result": [result], "lost": [started + died], "versions": [versions()]})

    def _note(self, what: str, *of: int | None) -> Any:
        import ray

        return ray.get(getattr(self._tally, what).remote(ray.get_runtime_context().current_actor, *of))


def check_deaths(times: int, tries: int, shard: Shard | None) -> None:
    """Check that a worker may still try a task at which others died.

    Args:
        times: How many workers died.
        tries: How many may die.
        shard: The shard; None: loading the model.

    Raises:
        SecantError: Too many workers died while loading the model.
        TooLarge: Too many died at the shard.

    """
    if times < tries:
        return
    if shard is None:
        raise SecantError(
            "A worker must be able to start and load the model", f"{times} that died while doing so",
            "Give each machine this version of secant, the model, and memory for it.",
        )  # fmt: skip
    raise TooLarge(
        "Workers must have room for a model and a prompt each",
        f"{times} that died at prompts from number {shard.items[0].number}",
        "Use fewer workers on each machine, a smaller dtype or max_memory; finished shards are kept.",
    )
