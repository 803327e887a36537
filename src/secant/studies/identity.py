"""The identity of a study: everything that its rows depend on, as study.json records it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

MOST = 10**6
"""How many shards a study may have. Each is a folder."""

ADDED = ("dequantize", "revision", "subfolder")
"""Options of a model that were added later. A study that does not use them keeps the key that it had before."""


@dataclass(frozen=True)
class Identity:
    """Everything that the rows of a study depend on. Rows with the same identity belong to the same study.

    Attributes:
        versions: The version of each package that matters.
        models: Each model's label, name and how it was loaded.
        conventions: The conventions.
        precision: The type in which the linear systems are evaluated; None: each model's own.
        analyses: The names of the analyses.
        k: How many singular triplets are kept.
        top: How many top tokens of each vector are kept.
        seed: The seed of the random number generators.
        threads: How many CPU threads each worker has.
        tensors: Whether U, S and V are kept.
        prompts: How many prompts there are.
        digest: The digest of all prompts.
        shard: How many prompts are in a shard.
        fingerprints: The fingerprint of the weights of each model that was loaded so far, by label.

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
        """The names of the models in the rows."""
        return [model["label"] for model in self.models]

    @property
    def key(self) -> str:
        """A digest that is the same for the same study on every machine."""
        said = {k: v for k, v in _comparable(self).items() if v is not None or not k.endswith(ADDED)}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def differences(self, other: Identity) -> list[str]:
        """How this identity differs from another one.

        Args:
            other: The other one.

        Returns:
            A line for each difference, as "key: this one's there, the other one's here".

        """
        mine, theirs = _comparable(self), _comparable(other)
        found = [key for key in mine if key in theirs and mine[key] != theirs[key]]
        return [f"{key}: {mine[key]} there, {theirs[key]} here" for key in found] + [
            f"weights or tokenizer of {label}: different"
            for label in self.fingerprints.keys() & other.fingerprints.keys()
            if self.fingerprints[label] != other.fingerprints[label]
        ]

    def asked(self, label: str) -> Identity:
        """The identity of one model's share of the study, without what depends on the prompts.

        Args:
            label: The model's label.

        """
        models = [model for model in self.models if model["label"] == label]
        prints = {name: print_ for name, print_ in self.fingerprints.items() if name == label}
        nothing: dict[str, Any] = {"conventions": [], "analyses": [], "threads": 0, "tensors": False}
        return replace(self, models=models, fingerprints=prints, prompts=0, digest="", shard=1, **nothing)

    @property
    def count(self) -> int:
        """How many shards the study has."""
        return -(-self.prompts // self.shard) * len(self.models) * len(self.conventions)

    @property
    def names(self) -> list[str]:
        """The names of all shards, by model and convention."""
        cells = [(m, c) for m in range(len(self.models)) for c in range(len(self.conventions))]
        return [shard_name(m, c, number) for m, c in cells for number in range(self.count // len(cells))]


def shard_name(model: int, convention: int, number: int) -> str:
    """The name of a shard's folder.

    Args:
        model: The number of its model.
        convention: The number of its convention.
        number: Its number among the shards of these.

    """
    return f"{model}-{convention}-{number:06d}"


def _comparable(identity: Identity) -> dict[str, Any]:
    """Everything that rows depend on, by key, without the models' paths and the fingerprints."""
    flat = asdict(identity)
    del flat["fingerprints"]
    versions, digest, models = flat.pop("versions"), flat.pop("digest"), flat.pop("models")
    flat["models"] = [model["label"] for model in models]
    for model in models:
        flat |= {f"{model['label']} {key}": model.get(key) for key in ("dtype", "attention")}
        flat |= {f"{model['label']} {key}": model.get(key) or None for key in ADDED}
        flat[f"{model['label']} device"] = (model.get("device") or "cpu").partition(":")[0]
    flat |= {f"version of {name}": version for name, version in versions.items()}
    return {**flat, "digest of the prompts": digest[:12]}


def described(said: Any) -> Identity:
    """The identity in the content of a study.json.

    Args:
        said: The content.

    Raises:
        TypeError: A field is missing or unknown.
        ValueError: A field has a wrong value.

    """
    found = Identity(**said)
    for key, fits in FIELDS.items():
        if not fits(getattr(found, key)):
            raise ValueError(f"{key} = {getattr(found, key)!r:.60}")
    if found.count > MOST:
        raise ValueError(f"{found.count} shards, of {MOST:,} at most")
    return found


def _whole(least: int) -> Callable[[Any], bool]:
    """A test for integers that are at least `least`."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _names(value: Any) -> bool:
    """Whether a value is a non-empty list of different names."""
    texts = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return texts and 0 < len(value) == len(set(value))


def _texts(value: Any) -> bool:
    """Whether a value is a dictionary of texts."""
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _models(value: Any) -> bool:
    """Whether a value is a non-empty list of models with different labels."""
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
"""The test that each field of an identity must pass."""
