"""The named activations of the frozen network, and the affine map between any two of them.

The points are `embed`, `layers.i` (the residual stream after layer i), `layers.i.attn`, `layers.i.mlp` and
`layers.i.mixer` (what that part adds to the stream), `layers.i.attn.heads` (the outputs of all heads, concatenated),
`layers.i.attn.heads.h` (what head h adds to the stream), `norm` and `logits`. The operator from one point to another is
the derivative along all paths between them. Its b is the target in the frozen network at the prompt with the source set
to zero. If the stream is a sum, then residual = source + Σ attn + Σ mlp as operators, and an attention is the sum of
its heads and of the bias of its output projection (J. Golden, TMLR 2025, arXiv 2505.24293, section 4.3, has the layers,
attn and mlp).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import NoPoint, quoted
from secant.linearize.network import Network, own_outputs, record, replayed, replayed_with_constants
from secant.linearize.readout import Readout, batchable
from secant.linearize.replay import InjectedConstant, by_token
from secant.linearize.residual_stream import HookPoint, Layer, Part
from secant.linearize.tape import Tape
from secant.numeric import relative
from secant.operators.operator import ColumnSlice, Composed, Graph, Operator

PARTS = ("attn", "mixer", "mlp")


@dataclass(frozen=True)
class Point:
    """Where to find a named activation.

    Attributes:
        name: The name.
        steps: The steps whose outputs sum to it; none for `embed`, `logits` and single heads.
        layer: Its layer.
        columns: The columns of a head in `layers.i.attn.heads`, which the output projection maps to `layers.i.attn`.
    """

    name: str
    steps: tuple[int, ...]
    layer: int | None = None
    columns: slice | None = None

    @property
    def stem(self) -> str:
        """The name of its layer."""
        return f"layers.{self.layer}"


@dataclass(frozen=True, eq=False)
class ActivationGraph:
    """A frozen network with all of its named activations.

    Attributes:
        network: The network.
        layers: Its layers.
        points: Where each activation is found, by name.
        graph: The activations on the autograd graph from the embeddings, by name, each `[T, n]`.
        values: The activations of the model's own pass.
        token_axes: For each step that is kept, the dimension of its output that counts tokens.
    """

    network: Network
    layers: list[Layer]
    points: dict[str, Point]
    graph: dict[str, Tensor] = field(repr=False)
    values: dict[str, Tensor] = field(repr=False)
    token_axes: dict[int, int] = field(repr=False)
    _rows: dict[int, Tensor] = field(repr=False)  # on the graph, by step
    _steps: dict[int, Tensor] = field(repr=False)  # the model's own values by step
    _without: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, network: Network) -> ActivationGraph:
        """Find the points of a network, and replay it to get their values.

        Raises:
            ReplayMismatch: The model was changed after the recording.
        """
        recording, precision, x = network.recording, network.precision, network.input
        found, axes = recording.layers, recording.token_axes
        own = own_outputs(network.lm, recording, x, axes) if axes else {}
        named, by_step, _ = network.with_constants
        points = _points(found, _kinds(network, found, by_step), by_step, recording.tape, recording.norm_output)
        steps = {step: by_token(own[step], axis, recording.copies).to(precision) for step, axis in axes.items()}
        values = {name: value.to(precision) for name, value in recording.values.items()}
        return cls(
            network,
            found,
            points,
            _named(points, by_step, {**named, "embed": x}),
            _named(points, steps, {**values, "embed": x}, cut=True),
            axes,
            by_step,
            steps,
        )

    @property
    def constants(self) -> list[InjectedConstant]:
        """The constants that the steps of this graph add."""
        return self.network.with_constants[2]

    @cached_property
    def _at_zero(self) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """`norm` and `logits`, and the outputs of the steps that are kept, at zero embeddings."""
        network = self.network
        about = (network.lm, network.recording, torch.zeros_like(network.input), network.precision)
        named, by_step = replayed(*about, self.token_axes)
        return named, {step: value.detach() for step, value in by_step.items()}

    @property
    def zeros(self) -> dict[int, Tensor]:
        """The outputs of the steps that are kept, at zero embeddings."""
        return self._at_zero[1]

    @cached_property
    def biases(self) -> dict[str, Tensor]:
        """The activations of the frozen network at zero embeddings. Raises ReplayMismatch."""
        named, by_step = self._at_zero
        return _named(self.points, by_step, {**named, "embed": torch.zeros_like(self.network.input)}, cut=True)

    def __getitem__(self, name: str) -> Point:
        """Returns the point with this name. Raises NoPoint, which lists the names."""
        if name not in self.points:
            raise NoPoint(
                f"The points of this model are {summary(list(self.points))}", quoted(name), "Choose one of them."
            )
        return self.points[name]

    @property
    def tokens(self) -> int:
        """The number of tokens in the prompt."""
        return len(self.network.recording.ids)

    def rows(self, name: str) -> list[Tensor]:
        """Returns the tensors of the graph, `[T, n]`, that sum to a point. Those of a part are added to the stream."""
        steps = self[name].steps
        return [self._rows[step] for step in steps] if steps else [self.graph[name]]

    def own(self, step: int) -> Tensor:
        """Returns the output of a step in the model's own pass, one row for each token."""
        return self._steps[step]

    def cut_at_parts(self) -> tuple[dict[str, list[Tensor]], dict[str, Tensor], list[InjectedConstant]]:
        """Cut the network where its parts are added to the stream, so that each part is an independent input.

        Returns:
            The inputs that replace the parts, by the parts' names; `norm` and `logits`, computed from these inputs and
            the embeddings; and the constants that are added outside the parts.
        """
        network, names = self.network, [n for n, p in self.points.items() if p.steps and n.rpartition(".")[2] in PARTS]
        steps = [step for name in names for step in self.points[name].steps]
        axes = {step: self.token_axes[step] for step in steps}
        with torch.inference_mode(False):
            given = {step: self._rows[step].detach().clone().requires_grad_() for step in steps}
        about = (network.lm, network.recording, network.input, network.precision)
        named, _, constants = replayed_with_constants(*about, axes, given)
        return {name: [given[step] for step in self.points[name].steps] for name in names}, named, constants

    def heads(self, name: str) -> list[Point]:
        """Returns the heads of the attention with this name; any other activation has none."""
        return [point for n, point in self.points.items() if point.columns and n.startswith(f"{name}.heads.")]

    def parts(self, i: int) -> list[str]:
        """Returns which of attn, mixer and mlp a layer has."""
        return [kind for kind in PARTS if f"layers.{i}.{kind}" in self.points]

    def plain(self, i: int) -> bool:
        """Returns whether the stream after a layer is the stream before it plus its parts, in the model's own pass."""
        layer = self.layers[i]
        if not layer.plain or (start := self._start(i)) is None:
            return False
        parts = sum((self.values[f"layers.{i}.{kind}"] for kind in self.parts(i)), start)
        return relative(parts, self.values[f"layers.{i}"]) <= 32 * torch.finfo(self.network.lm.dtype).eps

    def additive(self, i: int) -> bool:
        """Returns whether the stream after a layer is the layer before, or the embeddings, plus its parts.

        This holds for plain layers, unless the stream is changed before them, as by a norm of the embeddings.
        """
        if not self.plain(i):
            return False
        start, before = self.layers[i].start, f"layers.{i - 1}" if i else "embed"
        if start == (self.layers[i - 1].output.step if i else -1):
            return True
        x, y = self.graph[before], None if start is None else self._rows.get(start)
        if y is None or x.shape != y.shape:
            return False
        v = torch.randn(x.numel(), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
        return relative(Graph(x, y).forward(v), v) <= 32 * torch.finfo(v.dtype).eps

    def middle(self, i: int) -> tuple[Tensor, bool] | None:
        """Returns the stream that a layer's mlp is computed from, if the layer has one mlp and one such stream.

        The second value says whether that stream includes the layer's other parts; in parallel blocks it does not.
        """
        layer, parts = self.layers[i], self.parts(i)
        steps = self.points[f"layers.{i}.mlp"].steps if "mlp" in parts else ()
        found = [part for part in layer.parts if part.output.step in steps]
        if len(found) != 1 or len(found[0].bases) != 1 or layer.start is None:
            return None
        (base,) = found[0].bases
        start = self.graph["embed"] if layer.start < 0 else self._rows[layer.start]
        if base == layer.start:
            return start, False
        others = sum((self.graph[f"layers.{i}.{part}"].detach() for part in parts[:-1]), start.detach())
        close = relative(others, self._rows[base]) <= 32 * torch.finfo(others.dtype).eps
        return (self._rows[base], True) if close else None

    def _start(self, i: int) -> Tensor | None:
        """The stream before a layer in the model's own pass."""
        start = self.layers[i].start
        return self.values["embed"] if start == -1 else None if start is None else self._steps.get(start)

    @cached_property
    def chain(self) -> bool:
        """Whether each layer depends on the embeddings only through the stream before it, so that J composes.

        It is False in half precision, which rounds too coarsely to tell.
        """
        if self.graph["embed"].element_size() < 4:
            return False
        x, outs = self.graph["embed"], [self.graph[f"layers.{i}"] for i in range(len(self.layers))]
        v = torch.randn(x.numel(), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
        with torch.inference_mode(False), torch.enable_grad():
            every = torch.cat([out.flatten() for out in outs])
        whole = Graph(x, every, parts=tuple(outs)).forward(v).split([out.numel() for out in outs])
        tolerance = 1e3 * torch.finfo(v.dtype).eps
        for before, out, expected in zip([x, *outs], outs, whole, strict=False):
            v = Graph(before, out).forward(v)
            if not torch.linalg.vector_norm(v - expected) <= tolerance * torch.linalg.vector_norm(expected):
                return False
        return True

    # ---------------------------------------------------------------------------------------- operators

    def operator(
        self,
        source: str,
        target: str,
        positions: Sequence[int],
        ids: Sequence[int] | None = None,
        readout: str | None = None,
        about: dict[str, Any] | None = None,
    ) -> Operator:
        """Returns the map from all tokens of one point to some positions of another.

        Args:
            source: The point that is the operator's input.
            target: The point that is its output.
            positions: The positions of the target, which are concatenated in the output.
            ids: The tokens whose logits are returned; by default all.
            readout: `norm` or `logits`: read out the target as if it were the stream after the last layer.
            about: Metadata that the operator keeps.

        Raises:
            NoPoint: A point does not exist, the target does not depend on the source, or it can't be read out.
        """
        if readout is not None:
            return self._read_out(source, target, positions, ids, readout, about)
        point, leaf = self[target], self._leaf(source)
        heads = f"{point.stem}.attn.heads"
        if self._is_independent(self.graph[heads if point.columns else target], leaf):
            raise NoPoint(
                "An operator's target must be computed from its source",
                f"{source} to {target}",
                "Choose a source before the target.",
            )
        if point.columns:
            return self._to_head(source, point, positions, about)
        rows, chosen = list(positions), slice(None) if ids is None else list(ids)

        def at(values: dict[str, Tensor]) -> Tensor:
            return values[target][rows][:, chosen].flatten()

        with torch.inference_mode(False), torch.enable_grad():
            graph = self.network.graph(leaf, at(self.graph))
        return Operator(graph, self.value(source), at(self.values), at(self.without(source)), about or {})

    def value(self, name: str) -> Float[Tensor, "T n"]:
        """Returns a point in the model's own pass; a head's output is mapped by the frozen output projection."""
        point = self[name]
        return self._projected(point, self.values[f"{point.stem}.attn.heads"]) if point.columns else self.values[name]

    def _projected(self, point: Point, heads: Tensor) -> Tensor:
        """What one head of the concatenated heads adds to the stream."""
        alone = torch.zeros_like(heads)
        alone[:, point.columns] = heads[:, point.columns]
        before, after = self.graph[f"{point.stem}.attn.heads"], self.graph[f"{point.stem}.attn"]
        return Graph(before, after).forward(alone.reshape(-1, 1)).view(after.shape)

    def _leaf(self, source: str) -> Tensor:
        """The tensor of the graph for a source; for a head, the attention that it belongs to."""
        point = self[source]
        name = f"{point.stem}.attn" if point.columns else source
        if len(self[name].steps) > 1:
            raise NoPoint(
                "A source must be added to the residual stream in one place", f"{name}, in {len(self[name].steps)}",
                f"Use {point.stem}, or the layer before it.",
            )  # fmt: skip
        return self.graph[name]

    def _is_independent(self, y: Tensor, x: Tensor) -> bool:
        """Whether y does not depend on x."""
        with torch.inference_mode(False), torch.enable_grad():
            return y is not x and torch.autograd.grad(y.sum(), x, allow_unused=True, retain_graph=True)[0] is None

    def without(self, source: str) -> dict[str, Tensor]:
        """Returns every point of the frozen network at the prompt with the source set to zero."""
        if source == "embed":
            return self.biases
        if source not in self._without:
            point = self[source]
            name = f"{point.stem}.attn" if point.columns else source
            taken = self.graph[name].detach()
            if point.columns:
                taken = self._projected(point, self.graph[f"{point.stem}.attn.heads"].detach())
            network, step = self.network, self[name].steps[0]
            x = network.input.detach()
            about = (network.lm, network.recording, x, network.precision)
            named, by_step = replayed(*about, self.token_axes, {step: taken})
            self._without.clear()  # each is as large as all points together
            self._without[source] = _named(self.points, by_step, {**named, "embed": x}, cut=True)
        return self._without[source]

    def without_streams(self) -> dict[str, Tensor]:
        """Returns each layer's parts and stream with the stream before that layer at zero, from one replay.

        It is right only for a chain. The embeddings, which the first layer reads, are not set to zero.
        """
        network, steps = self.network, [layer.output.step for layer in self.layers]
        with torch.inference_mode(False):
            zeros = {step: torch.zeros_like(self._rows[step]).requires_grad_() for step in steps}
        x = network.input.detach()
        about = (network.lm, network.recording, x, network.precision)
        named, by_step = replayed(*about, self.token_axes, continued_with=zeros)
        wanted = {n: p for n, p in self.points.items() if p.layer is not None and not n.endswith(".heads")}
        return _named(wanted, by_step, named, cut=True)

    def _to_head(self, source: str, point: Point, positions: Sequence[int], about: dict[str, Any] | None) -> Operator:
        """The operator to one head: to its columns of the concatenated heads, then through the output projection."""
        heads, rows = f"{point.stem}.attn.heads", list(positions)

        def at(values: dict[str, Tensor]) -> Tensor:
            return values[heads][rows][:, point.columns].flatten()

        all_heads = self.graph[heads]
        with torch.inference_mode(False), torch.enable_grad():
            first = self.network.graph(self._leaf(source), at(self.graph))
            rest = Graph(all_heads, self.graph[f"{point.stem}.attn"][rows].flatten())
        places = torch.arange(all_heads.numel(), device=all_heads.device).view(all_heads.shape)
        then = ColumnSlice(rest, places[rows][:, point.columns].flatten(), places.numel())
        bias = then.forward(at(self.without(source))[:, None])[:, 0]
        output = then.forward(at(self.values)[:, None])[:, 0]
        return Operator(Composed(first, then), self.value(source), output, bias, about or {})

    def _read_out(
        self, source: str, target: str, positions: Sequence[int], ids: Sequence[int] | None, readout: str, about: Any
    ) -> Operator:
        """The operator through the final norm, or to the logits, which are frozen at the target's own value."""
        self[target]
        stream = self.graph[f"layers.{len(self.layers) - 1}"] if self.layers else None
        fits = (
            target.startswith("layers.")
            and not target.endswith(".heads")
            and stream is not None
            and self.value(target).shape == stream.shape
        )
        if readout not in ("norm", "logits") or not fits:
            raise NoPoint(
                "A readout takes a layer or a part of one to the norm or to the logits",
                f"{target} through {quoted(readout)}", "Choose such a target, and norm or logits.",
            )  # fmt: skip
        readout_map = self.readout_at(self.value(target)[None], head=readout == "logits")
        then, rows = readout_map.operator(readout, positions, ids)
        return replace(then @ self.operator(source, target, rows), about=about or {})

    def readout_at(self, h: Float[Tensor, "P T n"], head: bool = False) -> Readout:
        """Returns the final norm, and with `head` also the head, frozen at each of several residual streams."""
        return Readout.of(self.network, self.layers[-1], h, head)

    def read_out(self, names: Sequence[str], head: bool = False) -> list[dict[str, Tensor]]:
        """Returns the norm, and with `head` the logits, of activations read out at all positions.

        Args:
            names: The activations.
            head: Whether the logits are computed too.
        """
        streams, T = torch.stack([self.values[name] for name in names]), self.tokens
        if (batch := self._batched(streams, head)) is None:
            return [self.readout_at(stream[None], head).values for stream in streams]
        parts = {name: value.split(T) for name, value in batch.values.items()}
        return [{name: part[i] for name, part in parts.items()} for i in range(len(names))]

    def readouts(
        self, where: Sequence[tuple[str, int]], head: bool = False
    ) -> Iterator[tuple[Sequence[tuple[str, int]], Readout, list[int]]]:
        """Read out activations at single positions: all in one batch where the model allows it.

        A sequence of the batch has as many rows as the prompt has tokens, whichever activations and positions they come
        from: the readout must treat all positions alike. The first row shows whether it does. It is the last layer's
        stream at the last position, with other rows after it and none before it. Where the batch fails, each activation
        is read out with all of its own positions.

        Args:
            where: The name and the position of each activation. Those of one name follow each other.
            head: Whether the logits are computed too.

        Yields:
            Some of these names and positions, their readout, and the row of each.

        Raises:
            NoPoint: The norm and the head do not follow the last layer, or mix positions.
        """
        last, end = f"layers.{len(self.layers) - 1}", self.tokens - 1
        rows = torch.stack([self.values[name][at] for name, at in ((last, end), *where)])
        rows = torch.cat([rows, rows[-1:].expand(-len(rows) % self.tokens, -1)])
        batch = self._batched(rows.view(-1, self.tokens, rows.shape[1]), head)
        if batch is not None and not self._difference(batch, 0, end):
            yield where, batch, list(range(1, len(where) + 1))
            return
        own = self.readout_at(self.values[last][None], head)
        if difference := self._difference(own, end, end):
            raise NoPoint(
                "A readout requires a final norm and a head right after the last layer, acting on each position"
                " separately",
                difference,
                "Use readout=None, or run.operator(..., readout='norm'). secant explain works without --layers.",
            )
        for name, some in groupby(where, lambda each: each[0]):
            single = own if name == last else self.readout_at(self.values[name][None], head)
            for _, at in some:
                yield [(name, at)], single, [at]

    def _batched(self, h: Float[Tensor, "P T n"], head: bool) -> Readout | None:
        """The readout of streams in one batch, or None where the rest of the model takes only one of them."""
        site = self.layers[-1].output
        if len(h) > 1 and not batchable(self.network.recording.tape.steps[site.step].shape, site.axis):
            return None
        try:
            return self.readout_at(h, head)
        except Exception:  # it has kept the shape of the prompt's own batch, or refuses another
            if len(h) == 1:
                raise
            return None

    def _difference(self, readout: Readout, row: int, at: int) -> str:
        """How the readout of the last layer's stream at a position, which is a row, differs from the model's own: empty
        if it does not, and acts on each row separately.
        """
        error = max(relative(own[row], self.values[name][at]) for name, own in readout.values.items())
        if not error <= 8 * torch.finfo(self.network.lm.dtype).eps:
            return f"different values there ({error:.1e})"
        return "operations that mix positions" if mixes(readout.points["norm"], [readout.input]) else ""


def summary(names: Sequence[str]) -> str:
    """Returns the names of points in one line, with layers and heads as i and h. It says which layers have a point
    that not all layers have.
    """
    layers_of: dict[str, set[int]] = {}
    for name in names:
        first, *rest = name.split(".")
        pattern = ".".join(
            [first, *("h" if i and part.isdigit() else "i" if part.isdigit() else part for i, part in enumerate(rest))]
        )
        layers_of.setdefault(pattern, set()).update(int(part) for part in rest[:1])
    count = len(layers_of.get("layers.i", ()))
    some = [
        p if len(found) in (0, count) else f"{p} (i = {', '.join(map(str, sorted(found)))})"
        for p, found in layers_of.items()
    ]
    return ", ".join(some) + (f"; i = 0 to {count - 1}" if count else "")


# ------------------------------------------------------------------------------------------------ finding points


def _kinds(network: Network, found: Sequence[Layer], by_step: dict[int, Tensor]) -> list[list[str]]:
    """The kind of each part of each layer. With one token nothing can mix, so such a prompt is repeated once."""
    lm, precision, ids = network.lm, network.precision, network.recording.ids
    if len(ids) == 1 and any(layer.parts for layer in found):
        x = network.input.detach().to(lm.dtype).repeat(2, 1)
        twice = record(
            lm,
            ids * 2,
            x,
            network.recording.convention,
            precision,
            state=network.recording.state,
            seeds=network.recording.seeds,
        )
        longer = Network.of(lm, twice, x, precision)
        axes = longer.recording.token_axes
        return _kinds(longer, longer.recording.layers, replayed(lm, longer.recording, longer.input, precision, axes)[1])
    return [[_kind(part, network.input, by_step) for part in layer.parts] for layer in found]


def _kind(part: Part, x: Tensor, by_step: dict[int, Tensor]) -> str:
    """The kind of a part: attn if a pattern mixes tokens, mixer if something else does, mlp if nothing does."""
    if all(base < 0 or base in by_step for base in part.bases):
        bases = [x if base < 0 else by_step[base] for base in part.bases]
        if not mixes(by_step[part.output.step], bases):
            return "mlp"
    return "attn" if part.attends else "mixer"  # also if its bases do not have one row for each token


def mixes(y: Float[Tensor, "T n"], bases: Sequence[Float[Tensor, "T _"]]) -> bool:
    """Returns whether any row of y depends on a different row of its bases, so that J is not block-diagonal.

    If J is block-diagonal, scaling the rows of u scales the rows of Jᵀ u in the same way, bit for bit if the scales are
    powers of two. The exponents are the digits of the rows' indices, so that any two rows differ in one of the
    products.
    """
    u = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(y)
    eps, most = torch.finfo(y.dtype).eps, int(math.log2(torch.finfo(y.dtype).max)) // 4
    number, base = torch.arange(len(y), device=y.device), 2 * most + 1

    def pulled(u: Tensor) -> list[Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            found = torch.autograd.grad(y, bases, u, retain_graph=True, allow_unused=True)
        return [g.flatten(1) for g in found if g is not None]

    plain = pulled(u)
    while number.any():
        scale = torch.exp2((number % base - most).to(y))[:, None]
        for g, own in zip(pulled(u * scale), plain, strict=True):
            if ((g / scale - own).norm(dim=1) > 64 * eps * own.norm(dim=1)).any():
                return True
        number = number // base
    return False


def _points(
    found: Sequence[Layer],
    kinds: list[list[str]],
    by_step: dict[int, Tensor],
    tape: Tape,
    norm: Sequence[HookPoint],
) -> dict[str, Point]:
    """Every point by name, in order."""
    points = [Point("embed", ())]
    for i, (layer, own) in enumerate(zip(found, kinds, strict=True)):
        for kind in PARTS:
            if parts := [part for part, k in zip(layer.parts, own, strict=True) if k == kind]:
                points.append(Point(f"layers.{i}.{kind}", tuple(part.output.step for part in parts), i))
                if kind == "attn" and len(parts) == 1 and (heads := parts[0].heads) is not None:
                    points.append(Point(f"layers.{i}.attn.heads", (heads.step,), i))
                    d, width = tape.steps[heads.step].shape[-1] * tape.copies, by_step[heads.step].shape[1]
                    names = (f"layers.{i}.attn.heads.{h}" for h in range(width // d))
                    points += [Point(n, (), i, slice(h * d, (h + 1) * d)) for h, n in enumerate(names)]
        points.append(Point(f"layers.{i}", (layer.output.step,), i))
    points += [Point("norm", tuple(hook.step for hook in norm)), Point("logits", ())]
    return {point.name: point for point in points}


def _named(
    points: Mapping[str, Point], rows: Mapping[int, Tensor], known: Mapping[str, Tensor], cut: bool = False
) -> dict[str, Tensor]:
    """Values by name from values by step. With `cut` they are detached."""
    with torch.inference_mode(False), torch.enable_grad():
        found = {
            n: _total([rows[s] for s in p.steps]) if p.steps else known[n] for n, p in points.items() if not p.columns
        }
    return {name: value.detach() for name, value in found.items()} if cut else found


def _total(terms: list[Tensor]) -> Tensor:
    """The sum of the terms. One term is returned as it is."""
    return terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)
