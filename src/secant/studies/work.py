"""The work of a study: shards of its prompts, and the worker that computes the rows of one, wherever it runs.

A row depends on the model, the prompt and the settings, and on nothing else: not on the engine, on how many workers
there are, or on what was computed before it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save

from secant.analyses.case import Case
from secant.errors import OutputFailed, SecantError, TooLarge, is_out_of_memory
from secant.linearize.run import CONVENTION, ITS_LOGIT, MODEL, PROBABILITY, RELATIVE, Run, freeze, precision_of
from secant.memory import limited, unannounced
from secant.model.lm import LM
from secant.model.loading import load
from secant.model.sources import ATLAS
from secant.model.weights import fingerprint
from secant.results.schema import Column, Table
from secant.stream.decode import Null, Side
from secant.studies.analyses import ANALYSES, Settings
from secant.studies.prompts import Item

PROMPT_KEYS = (
    MODEL.but(meaning="the model's name in the study"),
    CONVENTION,
    Column("prompt", int, "the prompt's number in the study, from 0"),
    Column("category", str, "the prompt's category; missing where it has none", missing=True),
)
"""What a row of a study is of."""

STAMP = (
    *PROMPT_KEYS,
    Column("precision", str, "the type in which the linear system was evaluated"),
    Column(
        "run_forward_equal", bool,
        "certificate: whether the recorded pass is the plain model's, bit for bit; missing if it failed", missing=True,
    ),
    Column("run_reconstruction", float, "certificate: ‖J x + b - y‖ / ‖y‖", RELATIVE),
    Column("run_affinity", float, "certificate: how far the frozen network is from affine at a random input", RELATIVE),
)  # fmt: skip
"""What every row of a study starts with: what it is of, and its certificate."""

PROMPTS = Table(
    "prompts",
    "a prompt, with one model and convention",
    (
        Column("text", str, "the prompt"),
        Column("tokens", int, "how many tokens it has; missing if it failed", "tokens", missing=True),
        Column("prediction", str, "the predicted token's text", missing=True, show="token"),
        Column("prediction_id", int, "its id in the vocabulary", missing=True),
        PROBABILITY,
        ITS_LOGIT,
        Column("error", str, "the kind of error, if it failed", missing=True),
        Column("reason", str, "what the error says; missing if it went well", missing=True),
    ),
)

SCHEMA: dict[str, Table] = {
    table.name: table.but(before=STAMP)
    for table in (PROMPTS, *(table for analysis in ANALYSES.values() for table in analysis.writes))
}
"""Every table of a study by its name, as it is written."""


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
        stacked = {name: [tables[name] for tables, _ in each if name in tables] for name in names}
        tables = {name: pd.concat(frames, ignore_index=True) for name, frames in stacked.items()}
        tensors = {name: tensor for _, own in each for name, tensor in own.items()}
        return Computed(shard.number, self.fingerprint, tables, save(tensors) if self.work.tensors else None)

    def _of(self, item: Item) -> tuple[dict[str, pd.DataFrame], dict[str, torch.Tensor]]:
        """The tables of a prompt, with what it is and its certificate on each row; and its tensors."""
        run: Run | None
        try:
            run, tables, tensors = self._analysed(item)
        except OutputFailed:
            raise
        except Exception as error:
            run, tables, tensors, prompt = None, {}, {}, _failed(item, error)
        else:
            best = run.prediction[0]
            prompt = (item.text(), len(run.ids), best.token, best.id, best.probability, best.logit, None, None)
        every = {PROMPTS.name: PROMPTS.frame([prompt]), **tables}
        return {name: self._stamped(name, table, item, run) for name, table in every.items()}, tensors

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

    def _stamped(self, name: str, table: pd.DataFrame, item: Item, run: Run | None) -> pd.DataFrame:
        """Rows of a table with the model, the prompt and the certificate that they are of."""
        c = None if run is None else run.certificate
        precision = self.work.settings.precision or str(self.lm.dtype).removeprefix("torch.")
        checked = (None,) * 3 if c is None else (c.forward_equal, c.reconstruction, c.affinity)
        stamp = (self.work.label, self.work.settings.convention, item.number, item.category, precision, *checked)
        values = dict(zip((column.name for column in STAMP), stamp, strict=True))
        return SCHEMA[name].frame(table.assign(**values))


def _failed(item: Item, error: Exception) -> tuple[Any, ...]:
    """The row of a prompt that failed."""
    if is_out_of_memory(error):
        error = TooLarge(
            "A prompt must fit in memory", " ".join(str(error).split())[:160] or "none left", "Shorten it."
        )
    said = str(error) if isinstance(error, SecantError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
    return (item.text(), *[None] * 5, type(error).__name__, said)
