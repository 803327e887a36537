"""What runs on a cluster's other machines: workers, and the tally of where they died.

Ray Data starts a worker again for ever where it dies, with the shard that it died at. So each says to the tally what it
begins, and a shard that too many died at is refused in place of begun. Nothing here imports torch until that is said:
who dies of it is counted too.
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
    """One of Ray's actors, beside the workers: what each is at, and how many died there."""

    def __init__(self) -> None:
        self._at: dict[Any, int | None] = {}
        self._lost: Counter[int | None] = Counter()

    def begins(self, hand: Any, number: int | None) -> int:
        """A worker begins a shard, or None: to load. How many died there; one that was at something died of that."""
        if hand in self._at:
            self._lost[self._at[hand]] += 1
        self._at[hand] = number
        return self._lost[number]

    def ends(self, hand: Any) -> None:
        """A worker has done what it began."""
        self._lost.pop(self._at.pop(hand, None), None)

    def at_work(self) -> list[Any]:
        """The workers that are at something."""
        return list(self._at)


class Hand:
    """A worker, in one of Ray Data's actors. What it raises is a result as well: Ray Data would hide its class."""

    def __init__(self, work: bytes, tally: Any, tries: int) -> None:
        self._work, self._tally, self._tries = work, tally, tries
        self._worker: Callable[[Shard], Computed] | None = None

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        """Of a batch of one shard: its rows or what was raised, how many workers died on the way, and the versions."""
        (packed,) = batch["shard"]
        started = died = 0
        result: Computed | Exception
        try:
            if self._worker is None:
                started = self._note("begins", None)
                bear(started, self._tries, None)
                self._worker = pickle.loads(self._work).worker()
                self._note("ends")
            shard = pickle.loads(packed)
            died = self._note("begins", shard.number)
            bear(died, self._tries, shard)
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


def bear(times: int, tries: int, shard: Shard | None) -> None:
    """Raises TooLarge or SecantError where so many workers died at a shard, or before any, that no other is to try."""
    if times < tries:
        return
    if shard is None:
        raise SecantError(
            "A worker starts and loads the model", f"{times} that died at that",
            "Each machine needs this secant, the model, and memory for it.",
        )  # fmt: skip
    raise TooLarge(
        "Workers must have room for a model and a prompt each",
        f"{times} that died at prompts from number {shard.items[0].number}",
        "Use fewer workers to a machine, a smaller dtype or max_memory; what was finished is kept.",
    )
