"""The work of a study: shards of its prompts, and the worker that computes the rows of one, wherever it runs.

A row depends on the model, the prompt and the settings, and on nothing else: not on the engine, on how many workers
there are, or on what was computed before it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save

from secant.analyses.case import Case
from secant.errors import OutputFailed, SecantError, TooLarge
from secant.linearize.run import Run, freeze, precision_of
from secant.memory import is_out_of_memory, limited, unannounced
from secant.model.lm import LM
from secant.model.loading import load
from secant.model.sources import ATLAS
from secant.model.weights import fingerprint
from secant.stream.decode import Null, Side
from secant.studies.analyses import ANALYSES, Settings
from secant.studies.prompts import Item


@dataclass(frozen=True)
class Source:
    """Where a model is from: what `secant.load` takes."""

    name: str
    dtype: str | None = None
    device: str | None = None
    attention: str | None = None
    allow_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def place(self) -> str:
        """A model's folder by its whole path, wherever a process works; a name on the hub, or of ours, as it is."""
        folder = Path(self.name).expanduser()
        return os.path.abspath(folder) if self.name != ATLAS and folder.is_dir() else self.name

    def load(self) -> LM:
        """The model. Raises what `secant.load` raises."""
        return load(
            self.name, dtype=self.dtype, device=self.device, attention=self.attention,
            allow_remote_code=self.allow_remote_code, allow_pickle=self.allow_pickle,
        )  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """Some prompts that follow each other; their rows are kept together."""

    number: int
    items: tuple[Item, ...]


@dataclass(frozen=True, eq=False)
class Computed:
    """The rows of a shard, by table, and of whose weights; `tensors`: what a safetensors file holds, if asked for."""

    number: int
    fingerprint: str
    tables: dict[str, pd.DataFrame] = field(repr=False)
    tensors: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Work:
    """What a worker needs to know. `label`: the model's name in the rows; `threads`: of its own, of the processor.

    `tensors`: also U, S and V of every block; `max_memory`: bytes to work in, or such as "4GiB".
    """

    source: Source
    label: str
    settings: Settings
    threads: int = 1
    tensors: bool = False
    max_memory: float | str | None = None

    def worker(self) -> Worker:
        """A worker with the model. Raises what `secant.load` raises."""
        return Worker(self, self.source.load())


def identified(lm: LM) -> str:
    """A digest of all that a model and its tokenizer make a prompt's rows of: weights, vocabulary, chat template."""
    tokenizer = lm.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        said = [backend.to_str(), getattr(tokenizer, "chat_template", None)]
    elif hasattr(tokenizer, "get_vocab"):
        said = [sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "chat_template", None)]
    else:
        said = []
    told = json.dumps([fingerprint(lm.model), lm.attention, *said], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()


class Worker:
    """Computes shards with a model that it keeps."""

    def __init__(self, work: Work, lm: LM) -> None:
        """Raises BadArgument where the precision is below the model's own."""
        precision_of(lm, work.settings.precision)
        self.work, self.lm, self.fingerprint = work, lm, identified(lm)
        self._nulls: dict[Side, Null] = {}

    def __call__(self, shard: Shard) -> Computed:
        """The rows of a shard, in the order of its prompts. A prompt that fails is a row that says why."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.work.threads)
        try:
            with unannounced(), limited(self.work.max_memory):
                alike = sorted(shard.items, key=lambda item: len(item.text()))  # memory is used again by the like
                found = {item.number: self._of(item) for item in alike}
        finally:
            torch.set_num_threads(threads)
        each = [found[item.number] for item in shard.items]
        names = dict.fromkeys(name for tables, _ in each for name in tables)
        tables = {name: _stacked([tables[name] for tables, _ in each if name in tables]) for name in names}
        tensors = {name: tensor for _, own in each for name, tensor in own.items()}
        return Computed(shard.number, self.fingerprint, tables, save(tensors) if self.work.tensors else None)

    def _of(self, item: Item) -> tuple[dict[str, pd.DataFrame], dict[str, torch.Tensor]]:
        """The tables of a prompt, with what it is and its certificate on each row; and its tensors."""
        try:
            run, tables, tensors = self._analysed(item)
        except OutputFailed:
            raise
        except Exception as error:
            return {"prompts": self._stamped(_failed(item, error), item, None)}, {}
        best = run.prediction[0]
        prompt = {
            "text": item.text(), "tokens": len(run.ids), "prediction": best.token, "prediction_id": best.id,
            "probability": best.probability, "logit": best.logit, "error": None, "reason": None,
        }  # fmt: skip
        every = {"prompts": pd.DataFrame([prompt]), **tables}
        return {name: self._stamped(table, item, run) for name, table in every.items()}, tensors

    def _analysed(self, item: Item) -> tuple[Run, dict[str, pd.DataFrame], dict[str, torch.Tensor]]:
        s = self.work.settings
        run = freeze(
            self.lm, item.prompt, convention=s.convention, precision=s.precision, seed=s.seed, top=1,
            ordinary="reconstruction" in s.analyses,
        )  # fmt: skip
        case = Case(run, s.k, s.top, s.seed, full="conventions" in s.analyses, nulls=self._nulls)
        tables: dict[str, pd.DataFrame] = {}
        for name in s.analyses:
            tables |= ANALYSES[name](case)
        return run, tables, self._tensors(item, case) if self.work.tensors else {}

    def _tensors(self, item: Item, case: Case) -> dict[str, torch.Tensor]:
        tensors = {f"{item.number}.whole.{name}": getattr(case.whole, name) for name in "USV"}
        for name in "USV":
            tensors[f"{item.number}.{name}"] = torch.stack([getattr(f, name) for f in case.blocks])
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}

    def _stamped(self, table: pd.DataFrame, item: Item, run: Run | None) -> pd.DataFrame:
        """Rows with the model, the prompt and the certificate that they are of."""
        c = None if run is None else run.certificate
        stamp: dict[str, Any] = {
            "model": self.work.label,
            "convention": self.work.settings.convention,
            "prompt": item.number,
            "category": item.category,
            "precision": self.work.settings.precision or str(self.lm.dtype).removeprefix("torch."),
            "run_forward_equal": None if c is None else c.forward_equal,
            "run_reconstruction": None if c is None else c.reconstruction,
            "run_affinity": None if c is None else c.affinity,
        }
        return pd.concat([pd.DataFrame([stamp] * len(table), index=table.index), table], axis=1)


def _failed(item: Item, error: Exception) -> pd.DataFrame:
    """The row of a prompt that failed."""
    if is_out_of_memory(error):
        error = TooLarge(
            "A prompt must fit in memory", " ".join(str(error).split())[:160] or "none left", "Shorten it."
        )
    said = str(error) if isinstance(error, SecantError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
    nothing = dict.fromkeys(["prediction", "prediction_id", "probability", "logit"])
    return pd.DataFrame(
        [{"text": item.text(), "tokens": None, **nothing, "error": type(error).__name__, "reason": said}]
    )


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows of several tables, with numbers that are missing somewhere."""
    return pd.concat([table.astype(object) for table in tables], ignore_index=True)
