"""The work of a study: shards of prompts, and the worker that computes the rows of a shard.

A row depends on the model, the prompt and the settings only. It does not depend on the engine, on the number of
workers, or on what was computed before.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save

from secant.analyses.case import Case
from secant.errors import OutputFailed, SecantError, TooLarge, is_out_of_memory
from secant.linearize.run import Run, freeze, precision_of
from secant.memory import limited, unannounced
from secant.model.lm import LM
from secant.model.loading import load
from secant.model.sources import ATLAS
from secant.model.weights import fingerprint
from secant.results.columns import CONVENTION, ITS_LOGIT, MODEL, PROBABILITY, RELATIVE
from secant.results.schema import Column, Table
from secant.stream.words import Null, Side
from secant.studies.analyses import ANALYSES, Settings
from secant.studies.prompts import Item

PROMPT_KEYS = (
    MODEL.but(meaning="the model's name in the study"),
    CONVENTION,
    Column("prompt", int, "the prompt's number in the study, from 0"),
    Column("category", str, "the prompt's category; missing where it has none", missing=True),
)
"""The columns that identify the prompt of a row."""

ROW_START = (
    *PROMPT_KEYS,
    Column("precision", str, "the type in which the linear system was evaluated"),
    Column(
        "run_forward_equal", bool,
        "certificate: whether the recorded pass equals the plain one, bit for bit; missing if it failed", missing=True,
    ),
    Column("run_reconstruction", float, "certificate: ‖J x + b - y‖ / ‖y‖", RELATIVE),
    Column("run_affinity", float, "certificate: how far the frozen network is from affine at a random input", RELATIVE),
)  # fmt: skip
"""The columns that every row of a study starts with: its prompt and its certificate."""

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
        Column("reason", str, "the error's message; missing if the prompt did not fail", missing=True),
    ),
)

SCHEMA: dict[str, Table] = {
    table.name: table.but(before=ROW_START)
    for table in (PROMPTS, *(table for analysis in ANALYSES.values() for table in analysis.writes))
}
"""Every table of a study in its written form, by name."""


@dataclass(frozen=True)
class Source:
    """How to load a model. The attributes are the arguments of `secant.load`.

    Attributes:
        name: The model's folder or name.
        dtype: The type to load it in.
        device: The device to load it on.
        attention: The attention implementation.
        dequantize: Whether packed weights are replaced by plain ones.
        revision: The branch, tag or commit on the hub.
        subfolder: The model's folder inside the repository or folder.
        cache_dir: The folder of the hub's cache.
        offline: Whether models on the hub come from the cache only.
        allow_remote_code: Whether code in the model's folder may run.
        allow_pickle: Whether pickled weights may be read.

    """

    name: str
    dtype: str | None = None
    device: str | None = None
    attention: str | None = None
    dequantize: bool = False
    revision: str | None = None
    subfolder: str = ""
    cache_dir: str | None = None
    offline: bool = False
    allow_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def place(self) -> str:
        """The absolute path of the model's folder or file, valid in any process; or the name of a model on the hub."""
        path = Path(self.name).expanduser()
        return os.path.abspath(path) if self.name != ATLAS and path.exists() else self.name

    def load(self) -> LM:
        """Load the model.

        Raises:
            SecantError: As `secant.load` does.

        """
        return load(**asdict(self))


@dataclass(frozen=True)
class Shard:
    """Consecutive prompts whose rows are saved together.

    Attributes:
        number: The number of the shard, from 0.
        items: The prompts.

    """

    number: int
    items: tuple[Item, ...]


@dataclass(frozen=True, eq=False)
class Computed:
    """The rows of a shard.

    Attributes:
        number: The number of the shard.
        fingerprint: The digest of the model and tokenizer that they were computed with.
        tables: The rows by table.
        tensors: The content of a safetensors file with U, S and V, if they are kept.

    """

    number: int
    fingerprint: str
    tables: dict[str, pd.DataFrame] = field(repr=False)
    tensors: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Work:
    """What a worker computes, and with which model.

    Attributes:
        source: How to load the model.
        label: The model's name in the rows.
        settings: The settings of the study.
        threads: How many CPU threads the worker has.
        tensors: Whether U, S and V of every block are kept.
        max_memory: The memory that may be used, in bytes or as a text such as "4GiB".

    """

    source: Source
    label: str
    settings: Settings
    threads: int = 1
    tensors: bool = False
    max_memory: float | str | None = None

    def worker(self) -> Worker:
        """Load the model for a worker.

        Raises:
            SecantError: As `secant.load` does.

        """
        return Worker(self, self.source.load())


def identified(lm: LM) -> str:
    """A digest of a model and its tokenizer: weights, attention, vocabulary and chat template.

    Args:
        lm: The model.

    """
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
    """Computes shards with one model."""

    def __init__(self, work: Work, lm: LM) -> None:
        """Make a worker.

        Args:
            work: What it computes.
            lm: The model.

        Raises:
            BadArgument: The precision is narrower than the model's own type.

        """
        precision_of(lm, work.settings.precision)
        self.work, self.lm, self.fingerprint = work, lm, identified(lm)
        self._nulls: dict[Side, Null] = {}

    def __call__(self, shard: Shard) -> Computed:
        """Compute a shard.

        Args:
            shard: The shard.

        Returns:
            Its rows, in the order of its prompts. A prompt that fails has a row with the reason.

        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.work.threads)
        try:
            with unannounced(), limited(self.work.max_memory):
                by_length = sorted(shard.items, key=lambda item: len(item.text()))  # so that similar sizes reuse memory
                found = {item.number: self._of(item) for item in by_length}
        finally:
            torch.set_num_threads(threads)
        each = [found[item.number] for item in shard.items]
        names = dict.fromkeys(name for tables, _ in each for name in tables)
        stacked = {name: [tables[name] for tables, _ in each if name in tables] for name in names}
        tables = {name: pd.concat(frames, ignore_index=True) for name, frames in stacked.items()}
        tensors = {name: tensor for _, own in each for name, tensor in own.items()}
        return Computed(shard.number, self.fingerprint, tables, save(tensors) if self.work.tensors else None)

    def _of(self, item: Item) -> tuple[dict[str, pd.DataFrame], dict[str, torch.Tensor]]:
        """The tables of a prompt, with ROW_START in each row, and its tensors."""
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
        return {name: self._with_start(name, table, item, run) for name, table in every.items()}, tensors

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

    def _with_start(self, name: str, table: pd.DataFrame, item: Item, run: Run | None) -> pd.DataFrame:
        """Rows of a table with the columns of ROW_START in front."""
        c = None if run is None else run.certificate
        precision = self.work.settings.precision or str(self.lm.dtype).removeprefix("torch.")
        certified = (None,) * 3 if c is None else (c.forward_equal, c.reconstruction, c.affinity)
        start = (self.work.label, self.work.settings.convention, item.number, item.category, precision, *certified)
        values = dict(zip((column.name for column in ROW_START), start, strict=True))
        return SCHEMA[name].frame(table.assign(**values))


def _failed(item: Item, error: Exception) -> tuple[Any, ...]:
    """The row of a prompt that failed."""
    if is_out_of_memory(error):
        error = TooLarge(
            "A prompt must fit in memory", " ".join(str(error).split())[:160] or "none left", "Shorten it."
        )
    said = str(error) if isinstance(error, SecantError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
    return (item.text(), *[None] * 5, type(error).__name__, said)
