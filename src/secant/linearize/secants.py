"""Secants: affine maps through an operation's values at the prompt and at a reference.

For an operation f, the prompt's x and a reference r, a secant is a linear map S with f(x) - f(r) = S (x - r). The form
f(x) + S (v - x) is affine in v and exact at the prompt.

- f of one element: S is the slope of the chord, (f(x) - f(r)) / (x - r), or the derivative where both coincide.
- A product a b: half of the change goes through each factor, (a + a_r)/2 Δb + Δa (b + b_r)/2.
- A softmax p: with m the logarithmic mean of p and p_r, S = diag(m) - m mᵀ / Σm. From m (log p - log p_r) = p - p_r
  and log p = s - log Z follows Δp = m (Δs - Δ log Z), and Δ log Z = m·Δs / Σm because Δp sums to zero. S is symmetric,
  its rows sum to zero, and it is softmax's own derivative where p = p_r.
- A norm x ρ(x), with ρ = (mean x² + ε)^(-1/2): the product of x and ρ, with the chord of ρ over the mean square.

Recording a prompt puts `Open` forms on the tape. In a pass at the reference's embeddings (`secant.linearize.replay.
Visit`), an open form runs the operation as it is and keeps what its secant needs. `closed` then returns the secant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

from secant.linearize.forms import Attended, Call, Live, Secant, detached, live
from secant.numeric import tensors

# ------------------------------------------------------------------------------------------------ closed forms


@dataclass(frozen=True)
class Chord(Secant):
    """A sum of frozen slopes times live arguments, and a constant.

    An argument may be infinite where its slope is 0, as the logarithm of a masked factor is.
    """

    slopes: dict[int | str, Tensor]
    constant: Tensor
    infinite: bool

    def __call__(self, call: Call) -> Tensor:
        out = self.constant
        for place, slope in self.slopes.items():
            x = call.at(place)
            out = out + (torch.where(slope == 0, 0, x) if self.infinite else x) * slope
        return out.to(_promoted(call))


@dataclass(frozen=True)
class Product(Secant):
    """A bilinear function: f(A, b) + f(a, B) and a constant, with the frozen factors A and B."""

    one: dict[int | str, Tensor]
    two: dict[int | str, Tensor]
    constant: Tensor

    def __call__(self, call: Call) -> Tensor:
        out = self.linear(call) + self.constant
        return out.to(_promoted(call))

    def linear(self, call: Call) -> Tensor:
        """Returns the sum without the constant."""
        parts = ({k: v.to(call.at(k)) for k, v in factor.items()} for factor in (self.one, self.two))
        one, two = (call.substitute(part).run() for part in parts)
        total: Tensor = one + two
        return total


@dataclass(frozen=True)
class Softmax(Secant):
    """The secant of a softmax over one dimension."""

    mean: Tensor  # logarithmic mean of the patterns; 0 where an element is masked
    constant: Tensor
    dim: int

    def __call__(self, call: Call) -> Tensor:
        x = call.args[0]
        return (self.linear(x) + self.constant).to(call["dtype", 2] or x.dtype)

    def linear(self, scores: Tensor) -> Tensor:
        """Returns S s."""
        s = torch.where(self.mean > 0, scores.to(self.mean.dtype), 0)
        return _softmax_secant(self.mean, s, self.dim)


@dataclass(frozen=True)
class Normed(Secant):
    """The secant of a norm: scale x + stream (slope mean(stream x)), and a constant; then weight and bias."""

    scale: Tensor
    stream: Tensor
    slope: Tensor
    over: tuple[int, ...]
    centred: bool
    weight: Tensor | None
    bias: Tensor | None
    constant: Tensor

    def __call__(self, call: Call) -> Tensor:
        y = self.linear(call.args[0]) + self.constant
        if self.weight is not None:
            y = y * self.weight
        return (y if self.bias is None else y + self.bias).to(call.args[0].dtype)

    def linear(self, x: Tensor) -> Tensor:
        """Returns the secant's product with x, before weight and bias."""
        x = x.to(torch.promote_types(x.dtype, self.scale.dtype))
        if self.centred:
            x = x - x.mean(self.over, keepdim=True)
        return x * self.scale + self.stream * (self.slope * (self.stream * x).mean(self.over, keepdim=True))


@dataclass(frozen=True)
class LiveAttention(Secant):
    """The secant of attention, in which queries, keys and values are live.

    With s = Q kᵀ + q Kᵀ, it is P v + S(s) V and a constant, with frozen P, Q, K, V. Patterns are computed from the
    queries and keys of the prompt and of the reference, some rows at a time, unless they are small enough to be kept.
    """

    calls: tuple[Attended, ...]  # of the prompt and of the reference; only of the prompt if the patterns are kept
    query: Tensor
    key: Tensor
    value: Tensor
    constant: Tensor
    kept: tuple[Tensor, Tensor] | None

    def __call__(self, call: Call) -> Tensor:
        q, k, v = (call[name, place] for place, name in enumerate(("query", "key", "value")))
        out = _Mixed.apply(q, k, v, self)
        return (out + self.constant).to(v.dtype)

    def patterns(self, lo: int, hi: int) -> tuple[Tensor, Tensor]:
        """Returns rows lo to hi of P and of the logarithmic mean, (..., heads, hi - lo, keys)."""
        if self.kept is not None:
            return self.kept[0][..., lo:hi, :], self.kept[1][..., lo:hi, :]
        own, other = (call.pattern(lo, hi) for call in self.calls)
        return (own + other) / 2, logarithmic_mean(own, other)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns P v + S(q Kᵀ + Q kᵀ) V. Leading dimensions of q, k and v count vectors."""
        own, heads = self.calls[0], self.query.shape[-3]
        k, v, K, V = (_repeated(t, heads) for t in (k, v, self.key, self.value))
        out = []
        for lo, hi in own.blocks():
            P, M = self.patterns(lo, hi)
            n, to = P.shape[-1], P.dtype
            s = (
                q[..., lo:hi, :].to(to) @ K[..., :n, :].to(to).mT
                + self.query[..., lo:hi, :].to(to) @ k[..., :n, :].to(to).mT
            )
            dP = _softmax_secant(M, s * own.scale, -1)
            out.append(P @ v[..., :n, :].to(to) + dP @ V[..., :n, :].to(to))
        return torch.cat(out, dim=-2)

    def adjoint(self, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the adjoint of `mix` applied to g: its components for q, k and v."""
        own, heads, groups = self.calls[0], self.query.shape[-3], self.query.shape[-3] // self.key.shape[-3]
        K, V = _repeated(self.key, heads), _repeated(self.value, heads)
        gq, lead = [], g.shape[: g.ndim - self.query.ndim]
        gk, gv = (g.new_zeros(*lead, *t.shape, dtype=self.constant.dtype) for t in (K, V))
        for lo, hi in own.blocks():
            P, M = self.patterns(lo, hi)
            n, rows = P.shape[-1], g[..., lo:hi, :].to(P.dtype)
            gv[..., :n, :] += P.mT @ rows
            s = _softmax_secant(M, rows @ V[..., :n, :].to(P.dtype).mT, -1) * own.scale
            gq.append(s @ K[..., :n, :].to(P.dtype))
            gk[..., :n, :] += s.mT @ self.query[..., lo:hi, :].to(P.dtype)
        if groups > 1:
            gk, gv = (t.unflatten(-3, (-1, groups)).sum(-3) for t in (gk, gv))
        return torch.cat(gq, dim=-2), gk, gv


class _Mixed(torch.autograd.Function):
    """The linear map of a `LiveAttention`."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, form: LiveAttention) -> Tensor:
        return form.mix(q, k, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *given, ctx.form = inputs
        ctx.types = [t.dtype for t in given]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = _Unmixed.apply(grads[0], ctx.form)
        return (*(t.to(dtype) for t, dtype in zip(found, ctx.types, strict=True)), None)

    @staticmethod
    def vmap(info: Any, dims: Any, q: Tensor, k: Tensor, v: Tensor, form: LiveAttention) -> tuple[Tensor, int]:
        q, k, v = (
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((q, k, v), dims[:3], strict=True)
        )
        return _Mixed.apply(q, k, v, form), 0


class _Unmixed(torch.autograd.Function):
    """The adjoint of `_Mixed`."""

    @staticmethod
    def forward(g: Tensor, form: LiveAttention) -> tuple[Tensor, Tensor, Tensor]:
        return form.adjoint(g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.form, ctx.type = inputs[1], inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Mixed.apply(*grads, ctx.form).to(ctx.type), None

    @staticmethod
    def vmap(info: Any, dims: Any, g: Tensor, form: LiveAttention) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _Unmixed.apply(g.movedim(dims[0], 0), form), (0, 0, 0)


# ------------------------------------------------------------------------------------------------ open forms


@dataclass(eq=False)
class Open(Secant, ABC):
    """An operation that was recorded at the prompt, and that runs as it is while its secant is collected.

    Attributes:
        shared: The arguments of the prompt's call that are not copied.
        call: The prompt's call, with copies of its other arguments.
        places: The places of its live arguments.
        found: What the secant needs from the call at the reference.
    """

    shared: ClassVar[tuple[tuple[str, int], ...]] = ()

    call: Call
    places: tuple[int | str, ...]
    found: dict[Any, Tensor] = field(default_factory=dict)

    def __call__(self, call: Call) -> Any:
        with torch.no_grad():
            self.see(call)
        return Live.apply(call, *live((call.args, call.kwargs)))

    def own(self, place: int | str) -> Tensor:
        """Returns the prompt's argument at a place, in the type that coefficients are computed in."""
        return self.call.wide(self.call.at(place))

    @property
    def output(self) -> Tensor:
        """The prompt's value."""
        return self.call.wide(self.call.value)

    @abstractmethod
    def see(self, call: Call) -> None:
        """Collect in `found` what the secant needs from the operation's call at the reference."""

    @abstractmethod
    def closed(self) -> Secant:
        """Returns the secant, after `see`."""


class OpenChord(Open):
    """An elementwise function of one or two live tensors."""

    def see(self, call: Call) -> None:
        one, *more = self.places
        if not more:
            self.found[one] = self._slope({}, one, call)
            return
        two = more[0]
        for place, other in ((one, two), (two, one)):  # the mean over both orders of the two changes
            at_prompt, at_reference = ({other: which.at(other).detach()} for which in (self.call, call))
            self.found[place] = (self._slope(at_prompt, place, call) + self._slope(at_reference, place, call)) / 2

    def _slope(self, fixed: dict[int | str, Any], place: int | str, call: Call) -> Tensor:
        """The chord's slope over one argument, with the other fixed."""
        x, r = self.own(place), call.wide(call.at(place))
        fixed = {k: v.to(self.call.at(place)) if isinstance(v, Tensor) else v for k, v in fixed.items()}

        def f(at: Tensor) -> Tensor:
            value: Tensor = self.call.substitute({**fixed, place: at}).run()
            return value

        difference = x - r
        narrow = torch.finfo(self.call.at(place).dtype).eps ** (1 / 3)
        near = difference.abs() <= narrow * torch.maximum(x.abs(), r.abs())
        own = self.output if not fixed else self.call.wide(f(self.call.at(place)))
        other = call.wide(call.value) if not fixed else self.call.wide(f(call.at(place).detach()))
        slope = (own - other) / torch.where(near, 1, difference)
        if near.any():
            with torch.enable_grad():
                middle = ((x + r) / 2).to(self.call.at(place)).requires_grad_()
                (tangent,) = torch.autograd.grad(f(middle).sum(), middle)
            slope = torch.where(near, self.call.wide(tangent), slope)
        return torch.where(slope.isfinite(), slope, 0)

    def closed(self) -> Secant:
        slopes = {place: self.found[place] for place in self.places}
        linear = [torch.where(slope == 0, 0, self.own(place)) * slope for place, slope in slopes.items()]
        infinite = not all(bool(self.own(place).isfinite().all()) for place in self.places)
        return Chord(slopes, self.output - sum(linear), infinite)


class OpenQuotient(OpenChord):
    """A quotient a/b of two live tensors: the product of a and 1/b."""

    def see(self, call: Call) -> None:
        over, under = self.places
        a, b, c, d = self.own(over), self.own(under), call.wide(call.at(over)), call.wide(call.at(under))
        self.found[over] = (1 / b + 1 / d) / 2
        self.found[under] = -(a + c) / (2 * b * d)


class OpenProduct(Open):
    """A function that is linear in each of two live tensors."""

    def see(self, call: Call) -> None:
        for place in self.places:
            self.found[place] = call.wide(call.at(place)).clone()

    def closed(self) -> Secant:
        one, two = ({place: (self.own(place) + self.found[place]) / 2} for place in self.places)
        wide = self.call.substitute({place: self.own(place) for place in self.places})
        constants = {k: self.call.wide(v) for k, v in self.call.places() if _floating(v) and k not in self.places}
        linear = Product(one, two, self.output).linear(wide.substitute(constants))
        return Product(one, two, self.output - linear)


class OpenSoftmax(Open):
    """A softmax over one dimension."""

    def see(self, call: Call) -> None:
        self.found["mean"] = logarithmic_mean(self.output, call.wide(call.value))

    def closed(self) -> Secant:
        mean, dim = self.found["mean"], self.call["dim", 1]
        form = Softmax(mean, self.output, -1 if dim is None else dim)
        return Softmax(mean, self.output - form.linear(self.own(0)), form.dim)


@dataclass(eq=False)
class OpenAttention(Open):
    """Attention whose queries, keys and values are live."""

    shared: ClassVar[tuple[tuple[str, int], ...]] = (("attn_mask", 3),)  # T x T, and the same in every layer

    other: Attended | None = None

    def see(self, call: Call) -> None:
        seen, mask = attended(call), self.call["attn_mask", 3]
        self.other = seen if live([call["attn_mask", 3]]) else replace(seen, mask=mask)
        for name, place in (("query", 0), ("key", 1), ("value", 2)):
            self.found[name] = call.wide(call[name, place]).clone()

    def closed(self) -> Secant:
        assert self.other is not None, "it has been seen"
        own = attended(self.call)
        given = {name: self.call.wide(self.call[name, place]) for place, name in enumerate(("query", "key", "value"))}
        q, k, v = ((given[name] + self.found[name]) / 2 for name in given)
        form = LiveAttention((own, self.other), q, k, v, self.output, None)
        if len(own.blocks()) == 1:
            form = LiveAttention((own,), q, k, v, self.output, form.patterns(*own.blocks()[0]))
        return LiveAttention(form.calls, q, k, v, self.output - form.mix(*given.values()), form.kept)


class OpenNorm(Open):
    """A norm of the last dimensions by their root mean square, after the mean is subtracted if it is `centred`."""

    centred = False

    def see(self, call: Call) -> None:
        r, (z, t) = self._normed(self.call)[1], self._normed(call)
        self.found.update(scale=t, stream=z, slope=-((r * t) ** 2) / (r + t))  # of (mean x² + ε)^(-1/2) over mean x²

    def _normed(self, call: Call) -> tuple[Tensor, Tensor]:
        """The argument, centred if the norm is, and the scale."""
        x = call.wide(call.args[0])
        eps = call["eps", 4 if self.centred else 3]
        if self.centred:
            x = x - x.mean(self.over, keepdim=True)
            eps = 1e-5 if eps is None else eps
        elif eps is None:
            eps = torch.finfo(torch.promote_types(call.args[0].dtype, torch.float32)).eps
        return x, torch.rsqrt(x.square().mean(self.over, keepdim=True) + eps)

    @property
    def over(self) -> tuple[int, ...]:
        """The dimensions that are normed."""
        return tuple(range(-len(self.call["normalized_shape", 1]), 0))

    def closed(self) -> Secant:
        x, scale = self._normed(self.call)
        bias = detached(self.call["bias", 3]) if self.centred else None
        stream, slope = x + self.found["stream"], self.found["slope"] / 2
        how = (self.over, self.centred, detached(self.call["weight", 2]), bias)
        form = Normed((scale + self.found["scale"]) / 2, stream, slope, *how, x)
        return Normed(form.scale, stream, slope, *how, x * scale - form.linear(self.own(0)))


class OpenCentredNorm(OpenNorm):
    """A layer norm."""

    centred = True


def opened(kind: type[Open], call: Call) -> Open | None:
    """Returns the open form of a recorded call, or None if there is no secant for its arguments.

    Args:
        kind: The kind of open form that the function has.
        call: The call.
    """
    places = tuple(place for place, value in call.places() if live([value]))
    most = {OpenChord: 2, OpenProduct: 2, OpenQuotient: 2}.get(kind)
    least = 2 if kind is OpenProduct else 1
    single = all(isinstance(call.at(place), Tensor) for place in places)
    if not (isinstance(call.value, Tensor) and call.value.is_floating_point() and single and len(places) >= least):
        return None
    if most is not None and len(places) > most:
        return None
    if kind is OpenQuotient and len(places) == 1:
        kind = OpenChord
    if kind is OpenChord and any(call.at(place).shape != call.value.shape for place in places):
        return None
    return kind(call.copied(kind.shared), places)


def attended(call: Call) -> Attended:
    """Returns the frozen pattern of a call of attention."""
    query, key, scale = call["query", 0], call["key", 1], call["scale", 6]
    return Attended(
        detached(query),
        detached(key),
        detached(call["attn_mask", 3]),
        bool(call["is_causal", 5]),
        query.shape[-1] ** -0.5 if scale is None else scale,
        query.shape[-3] // key.shape[-3] if call["enable_gqa", 7] else 1,
    )


def logarithmic_mean(a: Tensor, b: Tensor) -> Tensor:
    """Returns (a - b) / (log a - log b) of two tensors of probabilities: a where they are equal, 0 where one is 0."""
    both = (a > 0) & (b > 0)
    middle, difference = (a + b) / 2, a - b
    z = torch.where(both, difference / torch.where(both, a + b, 1), 0)  # in (-1, 1)
    near = z.abs() < 1e-2
    logs = torch.where(near, 1, torch.log(torch.where(both, a, 1)) - torch.log(torch.where(both, b, 1)))
    apart = difference / torch.where(logs == 0, 1, logs)
    together = middle / (1 + z**2 / 3 + z**4 / 5 + z**6 / 7)  # of z / artanh z
    return torch.where(both, torch.where(near, together, apart), 0)


def _softmax_secant(mean: Tensor, s: Tensor, dim: int) -> Tensor:
    """(diag(m) - m mᵀ / Σm) s along a dimension."""
    weighted, total = mean * s, mean.sum(dim, keepdim=True)
    return weighted - mean * (weighted.sum(dim, keepdim=True) / torch.where(total > 0, total, 1))


def _repeated(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values, repeated so that each query head has its own."""
    groups = heads // tensor.shape[-3]
    return tensor.repeat_interleave(groups, dim=-3) if groups > 1 else tensor


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _promoted(call: Call) -> torch.dtype:
    """The type that a call's floating-point arguments are promoted to, which is that of its value."""
    kinds = (t.dtype for t in tensors((call.args, call.kwargs)) if t.is_floating_point() and t.ndim)
    return reduce(torch.promote_types, kinds)
