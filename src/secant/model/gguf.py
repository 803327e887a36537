"""GGUF files, llama.cpp's format for a whole model in one file: its metadata, and its tensors, dequantised.

A file starts with a header: the magic, a version, pairs of a key and a value (sizes of the model, the vocabulary, the
chat template), and for each tensor its name, shape, type and offset. Blocks of packed weights follow, each with its own
scales. The header is parsed here, with every length checked against the file, and nothing is run.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secant.errors import BadArgument, BadWeights, ModelRefused
from secant.foreign import explained, required
from secant.model.checkpoint import Stored
from secant.model.folders import check_complete

if TYPE_CHECKING:
    import numpy as np

ENDING = ".gguf"
"""The ending of a GGUF file's name."""

RULE = "A GGUF file must be complete"
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of numbers in the metadata, as `struct` writes them; a text has type 8, an array 9."""

TEXT, ARRAY = 8, 9
ALIGNMENT = 32
"""Tensors start at multiples of this many bytes, unless the file says otherwise."""

MOST_AXES = 8
_LENGTH = struct.Struct("<Q")
DEQUANTISED = 4.2e7
"""Weights that one core dequantises per second, approximately; from Q4_K and Q5_0."""


@dataclass(frozen=True)
class Packed:
    """A tensor as the file describes it.

    Attributes:
        kind: The number of its type.
        shape: Its shape, the last axis moving fastest.
        start: Where its bytes start in the file.

    """

    kind: int
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class File:
    """A GGUF file whose header has been read and checked.

    Attributes:
        path: The file.
        name: The model's name, for messages.
        metadata: Its values by key.
        tensors: Its tensors by name.

    """

    path: Path
    name: str
    metadata: dict[str, Any]
    tensors: dict[str, Packed]

    @classmethod
    def read(cls, path: Path, name: str) -> File:
        """Read the header of a file, and check it.

        Args:
            path: The file.
            name: The model's name, for messages.

        Raises:
            BadArgument: The package gguf is not installed.
            BadWeights: The package gguf cannot dequantise a tensor's type.
            ModelRefused: The file is damaged, only a part of a model, or contains no language model.

        """
        file = cls.read_header(path, name)
        file._check()
        return file

    @classmethod
    def read_header(cls, path: Path, name: str) -> File:
        """Read the header of a file whose other bytes may be missing.

        Args:
            path: The file.
            name: The model's name, for messages.

        Raises:
            BadArgument: The package gguf is not installed.
            ModelRefused: The header is damaged.

        """
        required(f"Opening {name}", "gguf", "gguf", error=BadArgument)
        check_complete(path, name)
        with explained(ModelRefused, RULE, "Download it again.", f"a damaged one, {name}"):
            metadata, tensors = _parsed(_mapped(path), name)
        return cls(path, name, metadata, tensors)

    @property
    def architecture(self) -> str:
        """llama.cpp's name of its architecture."""
        return str(self.metadata["general.architecture"])

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """Its tensors as they are loaded: plain numbers, under the file's own names."""
        return {name: Stored("F32", tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def elements(self) -> int:
        """The number of elements of all tensors together."""
        return sum(tensor.elements for tensor in self.stored.values())

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata under the architecture's name, or the default.

        Args:
            key: The key without the architecture.
            default: The default.

        """
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def has(self, part: str) -> bool:
        """Whether a tensor of the first layer has this name, such as attn_q.bias.

        Args:
            part: The name without the layer's.

        """
        return f"blk.0.{part}" in self.tensors

    def values(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor, dequantised to float32 by the package gguf.

        Args:
            name: Its name.

        """
        from gguf import GGMLQuantizationType, dequantize, quant_shape_to_byte_shape

        tensor = self.tensors[name]
        kind = GGMLQuantizationType(tensor.kind)
        shape = quant_shape_to_byte_shape(tensor.shape, kind)
        block = self._data[tensor.start : tensor.start + math.prod(shape)].reshape(shape)
        return dequantize(_in_longer_rows(block), kind).reshape(tensor.shape)

    def own(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The same values, in memory that is writable and not mapped from the file.

        Args:
            values: A tensor of this file, or one computed from its tensors.

        """
        import numpy as np

        return (
            np.array(values) if np.may_share_memory(values, self._data) else np.require(values, None, ["C", "A", "W"])
        )

    def weights(self) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        """Every tensor by name, dequantised one after the other."""
        return ((name, self.values(name)) for name in self.tensors)

    @cached_property
    def _data(self) -> np.ndarray[Any, Any]:
        return _mapped(self.path)

    def _check(self) -> None:
        """Raises BadWeights, ModelRefused."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        if self.metadata.get("split.count", 1) > 1:
            raise ModelRefused(
                "A GGUF file must contain a whole model",
                f"{self.name}, one of {self.metadata['split.count']} parts",
                "Merge them with llama.cpp's llama-gguf-split --merge.",
            )
        if (kind := self.metadata.get("general.type", "model")) != "model" or "clip" in self.architecture:
            raise ModelRefused(
                "A GGUF file must contain a language model", f"{self.name}, which contains another kind, {kind!r:.40}",
                "Give the file of the language model that it belongs to.",
            )  # fmt: skip
        size = self.path.stat().st_size
        for name, tensor in self.tensors.items():
            try:
                kind = GGMLQuantizationType(tensor.kind)
                block, nbytes = GGML_QUANT_SIZES[kind]
                is_packed = kind.name not in ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")
            except (ValueError, KeyError):
                kind, block, nbytes, is_packed = f"type {tensor.kind}", 1, 0, False
            if not is_packed:
                raise BadWeights(
                    "The weights of a GGUF file must have a type that the package gguf dequantises",
                    f"{name} of {self.name} in {getattr(kind, 'name', kind)}",
                    "Update gguf, or use a file of a different quantisation.",
                )
            need = tensor.start + math.prod(tensor.shape) // block * nbytes
            if tensor.shape[-1] % block or need > size:
                raise ModelRefused(RULE, f"{self.name} of {size:,} bytes, without all of {name}", "Download it again.")


def _mapped(path: Path) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.memmap(path, mode="r", dtype=np.uint8).view(np.ndarray)  # slices of a memmap cost far more


LONG = 2**13
"""Bytes of a row from which on gguf is fast: it dequantises sixteen rows at a time, however short they are."""


def _in_longer_rows(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same rows of packed bytes, as many of them joined as fit."""
    width = block.shape[-1]
    count = block.size // width
    joined = next(n for n in range(max(1, LONG // width), 0, -1) if count % n == 0)
    return block.reshape(count // joined, width * joined)


def _parsed(data: Any, name: str) -> tuple[dict[str, Any], dict[str, Packed]]:
    """The metadata and the tensors of a file. Raises ModelRefused, ValueError, struct.error."""
    if bytes(data[:4]) != b"GGUF":
        raise ModelRefused("A GGUF file starts with the letters GGUF", f"{name}, which does not", "Download it again.")
    reader = _Reader(data, 4)
    version = reader.number("I")
    if version not in (2, 3):
        other = struct.unpack(">I", struct.pack("<I", version))[0] in (2, 3)
        raise ModelRefused(
            "A GGUF file must have version 2 or 3" + (", in little-endian order" if other else ""),
            f"{name}, which has {'big-endian order' if other else f'version {version}'}",
            "Convert the model again with a present llama.cpp.",
        )
    count, pairs = reader.number("Q"), reader.number("Q")
    metadata = {}
    for _ in range(pairs):
        key = reader.text()
        metadata[key] = reader.value(reader.number("I"))
    if not isinstance(metadata.get("general.architecture"), str):
        raise ModelRefused("A GGUF file must name its architecture", name, "Convert the model again.")
    tensors: dict[str, Packed] = {}
    for _ in range(count):
        key, axes = reader.text(), reader.number("I")
        if not 1 <= axes <= MOST_AXES or key in tensors:
            raise ValueError(f"{key!r:.60} has {axes} axes, or is there twice")
        shape = tuple(reader.number("Q") for _ in range(axes))[::-1]
        if min(shape) < 1 or math.prod(shape) > 2**48:
            raise ValueError(f"{key!r:.60} has the shape {shape}")
        tensors[key] = Packed(reader.number("I"), shape, reader.number("Q"))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise ValueError(f"an alignment of {alignment!r}")
    first = -(-reader.at // alignment) * alignment
    return metadata, {key: Packed(t.kind, t.shape, first + t.start) for key, t in tensors.items()}


class _Reader:
    """Reads values of a header in turn. Raises ValueError past the end of the file."""

    def __init__(self, data: Any, at: int) -> None:
        self._data, self.at = memoryview(data), at

    def _take(self, count: int) -> memoryview:
        if count > len(self._data) - self.at:
            raise ValueError("its header goes past its end")
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        return str(self._take(self.number("Q")), "utf-8")

    def value(self, kind: int) -> Any:
        if kind in FORMATS:
            return self.number(FORMATS[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"its metadata has a value of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if count > len(self._data):
            raise ValueError("its header goes past its end")
        if inner in FORMATS:
            one = FORMATS[inner]
            return list(struct.unpack(f"<{count}{one}", self._take(count * struct.calcsize(f"<{one}"))))
        if inner == TEXT:
            return self._texts(count)
        return [self.value(inner) for _ in range(count)]

    def _texts(self, count: int) -> list[str]:
        """Texts that follow each other. A vocabulary has hundreds of thousands."""
        data, end, found = self._data, self.at, list[str]()
        for _ in range(count):
            start = end + _LENGTH.size
            end = start + _LENGTH.unpack_from(data, end)[0] if start <= len(data) else start
            if end > len(data):
                raise ValueError("its header goes past its end")
            found.append(str(data[start:end], "utf-8"))
        self.at = end
        return found
