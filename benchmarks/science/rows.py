"""The rows of measurements: each is one number, by model, prompt, convention, precision, measure, place and layer.

A study's own tables are large. The repository keeps only what the claims require, a few dozen numbers for each prompt.
The place of a number at a token is the token's position; others have `together`, `first`, `later`, or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

import secant as sc
from secant.results.paths import replacing
from secant.studies.folder import SHARDS
from secant.studies.measures import decoded, emerged, overlaps
from secant.studies.prompts import Item

COLUMNS = ("model", "kind", "text", "part", "convention", "precision", "measure", "at", "layer", "value")
KEYS = ["prompt", "convention", "precision"]
FAILED = "failed"


@dataclass(frozen=True)
class Chance:
    """The top tokens of random directions, by side, with which decoded shares are compared."""

    words: dict[str, list[set[int]]]

    @classmethod
    def of(cls, lm: sc.LM, top: int, seed: int) -> Chance:
        """What random directions decode to in a model."""
        nulls = {side: sc.null(lm, side, top, seed=seed) for side in ("output", "input")}
        return cls({side: [{word.id for word in own} for own in null.words] for side, null in nulls.items()})

    def share(self, side: str, token: int) -> float:
        """The share of random directions that have a token among their top tokens."""
        return sum(token in own for own in self.words[side]) / len(self.words[side])


def read(file: Path) -> pd.DataFrame:
    """The rows of a file; none if there is no such file."""
    return pd.read_parquet(file) if file.exists() else pd.DataFrame(columns=COLUMNS)


def add(file: Path, new: pd.DataFrame) -> None:
    """Add rows to a file, which is complete at all times."""
    rows = pd.concat([old for old in (read(file), new) if len(old)], ignore_index=True)[list(COLUMNS)]
    rows["value"], rows["layer"] = rows["value"].astype("float32"), rows["layer"].astype("Int16")
    with replacing(file) as new_file:
        rows.to_parquet(new_file, compression="zstd", index=False)


def condensed(study: sc.Study, lm: sc.LM, items: Sequence[Item], texts: Sequence[str], chance: Chance) -> pd.DataFrame:
    """The rows of a study's finished prompts.

    Args:
        study: The study.
        lm: Its model.
        items: Its prompts.
        texts: The name of each prompt in the rows.
        chance: What random directions decode to.

    """
    prompts = study.to_pandas()
    failed = prompts["reason"].notna()
    found = [_rows(prompts[failed].assign(value=1.0), FAILED)]
    found += [_rows(prompts[~failed].assign(value=prompts[name]), name) for name in ("tokens", "probability")]
    tables = {name: study.to_pandas(name) for name in study.tables}
    ids = {item.number: lm.encode(item.prompt) for item in items if item.number in {*prompts[~failed]["prompt"]}}
    for name, own in tables.items():
        found += list(READERS[name](own)) if name in READERS else []
    if "words" in tables:
        found += list(_words(tables["words"], prompts[~failed], ids, chance))
    if study.identity.tensors and not failed.all():
        tensors = _tensors(study)
        found += list(_by_logit(tensors, lm, prompts[~failed], ids, study.identity.top))
        found += list(_turned(tensors, prompts["precision"].iloc[0]))
    rows = pd.concat([own for own in found if len(own)], ignore_index=True)
    names = {item.number: (item.category, text) for item, text in zip(items, texts, strict=True)}
    rows["kind"], rows["text"] = zip(*(names[n] for n in rows["prompt"]), strict=True)
    rows["precision"] = rows["precision"].fillna("")
    return rows


def _rows(table: pd.DataFrame, measure: str, at: Iterable[str] | str = "", layer: object = None) -> pd.DataFrame:
    """Rows with one measure, from a table with its value."""
    return table[[*KEYS, "value"]].assign(measure=measure, at=at, layer=layer)


def _places(table: pd.DataFrame) -> list[str]:
    return ["together" if pd.isna(t) else str(t) for t in table["position"]]


def _reconstructed(table: pd.DataFrame) -> Iterable[pd.DataFrame]:
    for name in ("reconstruction", "ordinary", "bias"):
        yield _rows(table.assign(value=table[name]), name)
    yield _rows(table.assign(value=table["run_affinity"]), "affinity")


def _ranks(table: pd.DataFrame) -> Iterable[pd.DataFrame]:
    for name in ("stable_rank", "frobenius"):
        yield _rows(table.assign(value=table[name]), name, _places(table))


def _depths(table: pd.DataFrame) -> Iterable[pd.DataFrame]:
    """Stable ranks of the residual stream by layer: all tokens together, the first, and the mean of the others."""
    stream = table[table["part"] == "residual"].rename(columns={"stable_rank": "value"})
    at = stream["position"].map(lambda t: "together" if pd.isna(t) else "later" if t else "first", na_action=None)
    mean = stream.assign(at=at).groupby([*KEYS, "span", "layer", "at"])["value"].mean().reset_index()
    for span, own in mean.groupby("span"):
        yield _rows(own, str(span), own["at"], own["layer"])


def _seen(table: pd.DataFrame) -> Iterable[pd.DataFrame]:
    """Whether and where the prediction becomes the top token of U₀ of all tokens together."""
    _, found = emerged(table[table["position"].isna()])
    start = table[KEYS].drop_duplicates()
    for name, own in found.groupby("measure"):
        yield _rows(own.merge(start, on=["prompt", "convention"]), str(name), "together")


READERS = {"reconstructions": _reconstructed, "stable_ranks": _ranks, "layers": _depths, "first_seen": _seen}
"""The function that reads the rows to keep from each table of a study."""


def _words(
    table: pd.DataFrame, prompts: pd.DataFrame, ids: Mapping[int, Sequence[int]], chance: Chance
) -> Iterable[pd.DataFrame]:
    """Measures of the top tokens of first vectors, and the same for random directions and for another prediction."""
    first, start = table[table["vector"] == 0], prompts[KEYS]
    for name, own in decoded(first).groupby("measure"):
        yield _rows(own.merge(start, on=["prompt", "convention"]), str(name))
    best = first[first["rank"] == 0].assign(side=lambda own: own["side"].where(own["position"].notna(), "together"))
    for side, own in best.groupby("side"):
        yield _rows(own.groupby(KEYS)["z"].mean().rename("value").reset_index(), f"z_{side}")
    predicted = prompts["prediction_id"].map(lambda token: chance.share("output", token))
    yield _rows(prompts.assign(value=predicted), "writes_chance")
    own_word = {n: sum(chance.share("input", token) for token in own) / len(own) for n, own in ids.items()}
    yield _rows(prompts.assign(value=prompts["prompt"].map(own_word)), "reads_chance")
    written = first[(first["side"] == "output") & first["position"].isna()]
    for convention, own in prompts.groupby("convention"):
        heads = {n: set(w["id"]) for n, w in written[written["convention"] == convention].groupby("prompt")}
        other = dict(zip(own["prompt"], [*own["prediction_id"][1:], *own["prediction_id"][:1]], strict=True))
        kept = own[[other[n] != token for n, token in zip(own["prompt"], own["prediction_id"], strict=True)]]
        value = kept["prompt"].map(lambda n, heads=heads, other=other: float(other[n] in heads[n]))
        yield _rows(kept.assign(value=value), "writes_other")
    if prompts["convention"].nunique() > 1:
        yield from _common(first, start)


def _common(first: pd.DataFrame, start: pd.DataFrame) -> Iterable[pd.DataFrame]:
    """The Jaccard index of the top tokens of first vectors under the first convention and each other one."""
    base = first["convention"].iloc[0]
    shared = overlaps(first)
    shared = shared[shared["convention"] == base].assign(convention=lambda own: own["other_convention"])
    for (of, side), own in shared.groupby(["of", "side"]):
        yield _rows(own.merge(start, on=["prompt", "convention"]), f"common_{side}", str(of))


def _tensors(study: sc.Study) -> dict[str, dict[str, torch.Tensor]]:
    """U, S and V of each prompt's blocks and of J, by convention, under the names that the study gives them."""
    identity = study.identity
    found: dict[str, dict[str, torch.Tensor]] = {convention: {} for convention in identity.conventions}
    each = len(identity.names) // len(identity.conventions)
    for number, name in enumerate(identity.names):
        file = study.folder / SHARDS / name / "tensors.safetensors"
        found[identity.conventions[number // each]] |= load_file(file) if file.exists() else {}
    return found


def _by_logit(
    tensors: dict[str, dict[str, torch.Tensor]],
    lm: sc.LM,
    prompts: pd.DataFrame,
    ids: Mapping[int, Sequence[int]],
    top: int,
) -> Iterable[pd.DataFrame]:
    """The shares of decoded tokens with the paper's decoding: U₀ by logits, V₀ by cosines that are not centred."""
    found = []
    for convention, number, predicted in prompts[["convention", "prompt", "prediction_id"]].itertuples(index=False):
        own = tensors[convention]
        U = torch.stack([own[f"{number}.whole.U"][:, 0], own[f"{number}.U"][-1, :, 0]], 1)
        written = sc.decode(lm, U, "output", top, metric="dot", centered=False)
        for measure, words in zip(("logit_together", "logit_last"), written, strict=True):
            found.append((number, convention, measure, float(predicted in {word.id for word in words})))
        read = sc.decode(lm, own[f"{number}.V"][:, :, 0].T, "input", top, metric="cosine", centered=False)
        hits = [token in {word.id for word in words} for token, words in zip(ids[number], read, strict=True)]
        found.append((number, convention, "reads_plain", sum(hits) / len(hits)))
    rows = pd.DataFrame(found, columns=["prompt", "convention", "measure", "value"])
    yield rows.assign(precision=prompts["precision"].iloc[0], at="", layer=None)


def _turned(tensors: dict[str, dict[str, torch.Tensor]], precision: str) -> Iterable[pd.DataFrame]:
    """Principal angles, in degrees, between the leading vectors under the first convention and each other one."""
    found: list[tuple[int, str, str, str, float]] = []
    base, *others = tensors
    for convention in others:
        for key in tensors[convention].keys() & tensors[base].keys():
            number, _, letter = key.partition(".whole.")
            if letter in ("U", "V"):
                cosines = torch.linalg.svdvals(tensors[base][key].double().T @ tensors[convention][key].double())
                angles = torch.rad2deg(torch.acos(cosines.clamp(max=1)))
                found += [(int(number), convention, f"angle_{letter}", at, value) for at, value in
                          (("mean", angles.mean().item()), ("largest", angles.max().item()))]  # fmt: skip
            elif letter == "S":
                ratio = (tensors[convention][key][0] / tensors[base][key][0]).item()
                found.append((int(number), convention, "sigma_ratio", "together", ratio))
    rows = pd.DataFrame(found, columns=["prompt", "convention", "measure", "at", "value"])
    yield rows.assign(precision=precision, layer=None)
