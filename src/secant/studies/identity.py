"""What a study is: all that its rows depend on, as study.json says it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

MOST = 10**6
"""Shards that a study can have: each is a folder."""


@dataclass(frozen=True)
class Identity:
    """All that the rows of a study depend on, so that rows of one identity belong together.

    `models`: label, name and how it was loaded, of each; `fingerprints`: of their weights, as far as they were loaded
    by now. `prompts`: how many, and `digest` of all of them. `shard`: how many of them are kept together.
    """

    versions: dict[str, str]
    models: list[dict[str, Any]]
    conventions: list[str]
    precision: str | None
    analyses: list[str]
    k: int
    top: int
    seed: int
    threads: int
    tensors: bool
    prompts: int
    digest: str
    shard: int
    fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The models' names in the rows."""
        return [model["label"] for model in self.models]

    @property
    def key(self) -> str:
        """The same for the same study, on whatever machine."""
        return hashlib.sha256(json.dumps(_comparable(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Identity) -> list[str]:
        """What is not the same, as "key: there, here"."""
        mine, theirs = _comparable(self), _comparable(other)
        found = [key for key in mine if key in theirs and mine[key] != theirs[key]]
        return [f"{key}: {mine[key]} there, {theirs[key]} here" for key in found] + [
            f"weights or tokenizer of {label}: others than there"
            for label in self.fingerprints.keys() & other.fingerprints.keys()
            if self.fingerprints[label] != other.fingerprints[label]
        ]

    def asked(self, label: str) -> Identity:
        """What was asked of one of its models, whatever the prompts."""
        models = [model for model in self.models if model["label"] == label]
        prints = {name: print_ for name, print_ in self.fingerprints.items() if name == label}
        nothing: dict[str, Any] = {"conventions": [], "analyses": [], "threads": 0, "tensors": False}
        return replace(self, models=models, fingerprints=prints, prompts=0, digest="", shard=1, **nothing)

    @property
    def count(self) -> int:
        """How many shards it has."""
        return -(-self.prompts // self.shard) * len(self.models) * len(self.conventions)

    @property
    def names(self) -> list[str]:
        """Of all shards, by model and convention."""
        cells = [(m, c) for m in range(len(self.models)) for c in range(len(self.conventions))]
        return [shard_name(m, c, number) for m, c in cells for number in range(self.count // len(cells))]


def shard_name(model: int, convention: int, number: int) -> str:
    """The folder of a shard."""
    return f"{model}-{convention}-{number:06d}"


def _comparable(identity: Identity) -> dict[str, Any]:
    """What rows depend on, key by key: not where a model lies, nor which weights were looked at yet."""
    flat = asdict(identity)
    del flat["fingerprints"]
    versions, digest, models = flat.pop("versions"), flat.pop("digest"), flat.pop("models")
    flat["models"] = [model["label"] for model in models]
    for model in models:
        flat |= {f"{model['label']} {key}": model.get(key) for key in ("dtype", "attention")}
        flat[f"{model['label']} device"] = (model.get("device") or "cpu").partition(":")[0]
    flat |= {f"version of {name}": version for name, version in versions.items()}
    return {**flat, "digest of the prompts": digest[:12]}


def described(said: Any) -> Identity:
    """The study that a tree of JSON describes. Raises ValueError or TypeError where it describes none."""
    found = Identity(**said)
    for key, fits in FIELDS.items():
        if not fits(getattr(found, key)):
            raise ValueError(f"{key} = {getattr(found, key)!r:.60}")
    if found.count > MOST:
        raise ValueError(f"{found.count} shards, of {MOST:,} at most")
    return found


def _whole(least: int) -> Callable[[Any], bool]:
    """Whether a value is a whole number, from a least one on."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _names(value: Any) -> bool:
    """Whether a value is a list of some names, each once."""
    texts = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return texts and 0 < len(value) == len(set(value))


def _texts(value: Any) -> bool:
    """Whether a value is texts by name."""
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _models(value: Any) -> bool:
    """Whether a value is a list of some models, each with a label of its own."""
    if not isinstance(value, list) or not all(isinstance(model, dict) for model in value):
        return False
    plain = all(isinstance(own, str | bool | None) for model in value for own in model.values())
    return plain and _names([model.get("label") for model in value])


FIELDS: dict[str, Callable[[Any], bool]] = {
    "versions": _texts,
    "models": _models,
    "conventions": _names,
    "precision": lambda value: isinstance(value, str | None),
    "analyses": _names,
    "k": _whole(1),
    "top": _whole(1),
    "seed": _whole(0),
    "threads": _whole(1),
    "tensors": lambda value: isinstance(value, bool),
    "prompts": _whole(1),
    "digest": lambda value: isinstance(value, str),
    "shard": _whole(1),
    "fingerprints": _texts,
}
"""What each field of an identity holds."""
