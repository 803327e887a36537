"""Every name in the table of rules: its value is unchanged bit for bit, its frozen form returns it and is affine."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from families import model_of
from helpers import recorded, replayed, visited
from torch import Tensor

import secant as sc
from secant.errors import NoRule, TrainingMode
from secant.linearize import forms, rules
from secant.linearize.conventions import CONVENTIONS, Convention
from secant.linearize.forms import Chosen, Constant, Scaled
from secant.numeric import tensors

torch.manual_seed(0)
A = torch.randn(4, 6, dtype=torch.float64)
W = torch.randn(6, 6, dtype=torch.float64)
M = torch.rand(4, 6) > 0.5
I4 = torch.tensor([2, 0, 3, 1])
C = torch.complex(A[:, :3], A[:, 3:])
L = torch.eye(4, dtype=torch.float64) + A[:, :4].tril(-1)
EXPERTS = torch.randn(2, 8, 8)  # in float32, and in rows of 16 bytes, as the kernel wants them
B3 = torch.randn(2, 4, 6, dtype=torch.float64)


def written(x: Tensor, name: str, *args: object, **kwargs: object) -> Tensor:
    """x after one of its in-place methods."""
    getattr(x, name)(*args, **kwargs)
    return x


def assigned(x: Tensor) -> Tensor:
    out = torch.zeros(8, 6, dtype=x.dtype)
    out[2:6] = x
    out[0] += x[1] * 2
    return out


def grouped(name: str, x: Tensor, beyond: int = 0) -> Tensor:
    """Rows of x through one of two experts each; the last rows may belong to none."""
    function = getattr(F, name, None) or getattr(torch, name)
    ends = torch.tensor([1, 4 - beyond], dtype=torch.int32)
    return function(F.pad(x, (0, 2)).float(), EXPERTS, offs=ends)[: 4 - beyond].double()


def batched(x: Tensor) -> Tensor:
    return x.reshape(1, 4, 6).expand(2, 4, 6)


# name -> calls on a live x of (4, 6); where x appears twice, both factors are live
SAMPLES: dict[str, list] = {
    **{n: [lambda x, n=n: getattr(x, n)(2, 12)] for n in ("view", "reshape")},
    **{n: [lambda x, n=n: getattr(x, n)(torch.empty(2, 12))] for n in ("view_as", "reshape_as")},
    **{n: [lambda x, n=n: getattr(x, n)(0, 1)] for n in ("transpose", "swapaxes", "swapdims", "movedim", "moveaxis")},
    "permute": [lambda x: x.permute(1, 0)],
    "T": [lambda x: x.T], "mT": [lambda x: x.mT],
    "unsqueeze": [lambda x: x.unsqueeze(0)], "squeeze": [lambda x: x[None].squeeze(0)],
    "flatten": [torch.flatten], "unflatten": [lambda x: x.unflatten(1, (2, 3))],
    "expand": [lambda x: x.expand(3, 4, 6)], "expand_as": [lambda x: x.expand_as(torch.empty(3, 4, 6))],
    "broadcast_to": [lambda x: x.broadcast_to(3, 4, 6)],
    "broadcast_tensors": [lambda x: torch.broadcast_tensors(x, torch.empty(3, 4, 6))[0]],
    "repeat": [lambda x: x.repeat(2, 1)], "repeat_interleave": [lambda x: x.repeat_interleave(2, dim=1)],
    "tile": [lambda x: x.tile(2)],
    **{n: [lambda x, n=n: getattr(torch, n)([x, A, x * 2])] for n in ("cat", "concat", "concatenate", "stack")},
    **{n: [lambda x, n=n: getattr(torch, n)([x, A])] for n in ("hstack", "vstack", "dstack")},
    "__getitem__": [lambda x: x[1:, ::2], lambda x: x[I4], lambda x: x[M]],
    "__setitem__": [assigned],
    "index_select": [lambda x: x.index_select(0, I4)],
    "gather": [lambda x: x.gather(0, I4[:, None])], "take_along_dim": [lambda x: x.take_along_dim(I4[:, None], 0)],
    "select": [lambda x: x.select(0, 1)], "narrow": [lambda x: x.narrow(1, 2, 3)],
    "split": [lambda x: x.split(3, 1)[1]], "split_with_sizes": [lambda x: x.split_with_sizes([1, 5], 1)[1]],
    "chunk": [lambda x: x.chunk(2, -1)[1]], "tensor_split": [lambda x: x.tensor_split(3, 1)[1]],
    "unbind": [lambda x: x.unbind(1)[2]], "__iter__": [lambda x: next(iter(x))],
    "roll": [lambda x: x.roll(1, 0)], "flip": [lambda x: x.flip(0)],
    "pad": [lambda x: F.pad(x, (1, 2), value=3.0)],
    "diagonal": [torch.diagonal], "diag_embed": [torch.diag_embed],
    "tril": [torch.tril], "triu": [torch.triu], "unfold": [lambda x: x.unfold(1, 3, 1)],
    "as_strided": [lambda x: x.as_strided((2, 3), (6, 1))],
    "slice_scatter": [lambda x: A.clone().slice_scatter(x[:2], 0, 1, 3)],
    "select_scatter": [lambda x: A.clone().select_scatter(x[0], 0, 1)],
    "index_put": [lambda x: A.clone().index_put((I4,), x), lambda x: written(A.clone(), "index_put_", (I4,), x)],
    "index_copy": [lambda x: A.clone().index_copy(0, I4, x)],
    "index_add": [lambda x: A.clone().index_add(0, I4, x), lambda x: written(A.clone(), "index_add_", 0, I4, x)],
    "scatter": [lambda x: A.clone().scatter(0, I4[:, None], x)],
    "scatter_add": [lambda x: A.clone().scatter_add(0, I4[:, None], x)],
    "copy_": [lambda x: torch.zeros(4, 6, dtype=x.dtype).copy_(x)], "zero_": [lambda x: written(x * 2, "zero_")],
    "fill_": [lambda x: written(x * 2, "fill_", 1.5)],
    "masked_select": [lambda x: x.masked_select(M)],
    "masked_scatter": [lambda x: A.clone().masked_scatter(M, x)], "new_tensor": [lambda x: x + x.new_tensor([1.0])],
    **{n: [lambda x, n=n: getattr(x, n)()] for n in ("clone", "contiguous", "double", "cpu")},
    **{n: [lambda x, n=n: getattr(x, n)().double()] for n in ("float", "half", "bfloat16")},
    "cuda": [], "to": [lambda x: x.to(torch.float64), lambda x: x * (3 * x).to(torch.bool)],
    "type": [lambda x: x.type(torch.float64)], **{n: [] for n in ("int", "long", "short", "char", "byte")},
    "type_as": [lambda x: x.type_as(A), lambda x: x * A.float().type_as(x).reshape(-1).view(A.shape)],
    "view_as_real": [lambda x: torch.view_as_real(torch.view_as_complex(x.view(4, 3, 2)) * (1 + 2j))],
    "view_as_complex": [lambda x: torch.view_as_real(torch.view_as_complex(x.view(4, 3, 2)) * C)],
    **{n: [lambda x, n=n: getattr(torch.view_as_complex(x.view(4, 3, 2)) * C, n)] for n in ("real", "imag")},
    **{
        n: [lambda x, n=n: grouped(n, x), lambda x, n=n: grouped(n, x, beyond=1)]
        for n in ("grouped_mm", "_grouped_mm")
    },
    "solve_triangular": [
        lambda x: torch.linalg.solve_triangular(L, x, upper=False),
        lambda x: torch.linalg.solve_triangular(torch.eye(4, dtype=x.dtype) + (x @ x.T).tril(-1), x, upper=False),
        lambda x: x.T @ torch.linalg.solve_triangular((x @ x.T).tril(), torch.ones(4, 2, dtype=x.dtype), upper=False),
    ],
    "scatter_reduce": [
        *(
            lambda x, r=r: A[:3].scatter_reduce(0, I4[:, None].expand(4, 6) // 2, x, r)
            for r in ("sum", "mean", "amax", "amin")
        ),
        lambda x: x.scatter_reduce(0, I4[:3, None].expand(3, 6) // 2, x[1:] @ W, "amax", include_self=False),
        lambda x: x.scatter_reduce(0, I4[:, None].expand(4, 6), x, "amin"),
        lambda x: A[:3].scatter_reduce(0, I4[None, :, None].expand(2, 4, 6)[0, :2] // 2, x, "amax"),
    ],
    "lerp": [lambda x: torch.lerp(x, A, 0.3), lambda x: torch.lerp(A, x, (x @ W)), lambda x: x.lerp(x @ W, A)],
    "glu": [lambda x: F.glu(x, -1), lambda x: F.glu(x[None], 1)],
    "group_norm": [
        lambda x: F.group_norm(x, 2), lambda x: F.group_norm(x[None], 2, W[0, :4], W[1, :4], 1e-3),
    ],
    "add": [lambda x: x + A, lambda x: 2 + x, lambda x: written(x * 1, "add_", A), lambda x: torch.add(x, A, alpha=2)],
    "__radd__": [lambda x: 1.5 + x],
    "sub": [lambda x: x - A, lambda x: written(x * 1, "__isub__", A)],
    "subtract": [lambda x: x.subtract(A)], "rsub": [lambda x: torch.rsub(x, A)], "__rsub__": [lambda x: 1 - x],
    **{n: [lambda x, n=n: getattr(torch, n)(x)] for n in ("neg", "negative", "positive", "trace", "sum", "mean")},
    "where": [lambda x: torch.where(M, x, A), lambda x: torch.where(x > 0, x, x * 0.1)],
    "masked_fill": [lambda x: x.masked_fill(M, 2.0), lambda x: written(x * 1, "masked_fill_", M, 2.0)],
    "cumsum": [lambda x: x.cumsum(0), lambda x: x * (3 * x).cumsum(0, dtype=torch.int64)], "diff": [torch.diff],
    "adaptive_avg_pool1d": [lambda x: F.adaptive_avg_pool1d(x, 3)], "avg_pool1d": [lambda x: F.avg_pool1d(x, 2)],
    "dropout": [lambda x: F.dropout(x, 0.5, training=False)],
    **{n: [lambda x, n=n: getattr(F, n)(x[None], 0.5, training=False)] for n in ("dropout1d", "alpha_dropout")},
    "dropout2d": [lambda x: F.dropout2d(x[None, None], 0.5, training=False)],
    "feature_dropout": [lambda x: torch.feature_dropout(x, 0.5, False)],
    "mul": [lambda x: x * A, lambda x: x * (x @ W), lambda x: written(x * 1, "mul_", x @ W), lambda x: x * x,
            lambda x: torch.mul(input=x, other=x @ W)],
    "__rmul__": [lambda x: 3 * x], "multiply": [lambda x: x.multiply(x @ W)],
    "div": [lambda x: x / A, lambda x: x / (x @ W), lambda x: A / x, lambda x: written(x * 1, "div_", x @ W)],
    "divide": [lambda x: x.divide(x @ W)], "true_divide": [lambda x: x.true_divide(x @ W)],
    "truediv": [lambda x: written(x * 1, "__itruediv__", x @ W)],
    "mm": [lambda x: x.mm(W), lambda x: x.mm(x.T)], "bmm": [lambda x: batched(x).bmm(batched(x).mT)],
    "matmul": [lambda x: x @ W, lambda x: x @ x.T, lambda x: torch.matmul(W, x.T)],
    "__rmatmul__": [lambda x: x.__rmatmul__(A.T)],
    "mv": [lambda x: x.mv(x[0])], "dot": [lambda x: x[0].dot(x[1])], "vdot": [lambda x: x[0].vdot(x[1])],
    "outer": [lambda x: x[0].outer(x[1])], "ger": [lambda x: x[0].ger(x[1])],
    "linear": [lambda x: F.linear(x, W, W[0]), lambda x: F.linear(A, x[:, :], None), lambda x: F.linear(x, x)],
    "conv1d": [lambda x: F.conv1d(x[None], torch.ones(4, 1, 3, dtype=x.dtype), groups=4, padding=2)],
    "addmm": [lambda x: torch.addmm(A, x, W), lambda x: torch.addmm(W[:4, :4], x, x.T)],
    "baddbmm": [lambda x: torch.baddbmm(torch.zeros(2, 4, 4, dtype=x.dtype), batched(x), batched(x).mT)],
    "addcmul": [lambda x: torch.addcmul(A, x, x @ W, value=0.5)],
    "einsum": [lambda x: torch.einsum("ij,kj->ik", x, x), lambda x: torch.einsum("ij,jk->ik", [x, W])],
    **{n: [lambda x, n=n: getattr(F, n)(x)] for n in (
        "silu", "gelu", "relu", "relu6", "mish", "leaky_relu", "elu", "selu", "celu", "hardtanh", "hardswish",
        "softsign", "tanhshrink", "softshrink", "hardshrink", "softplus", "logsigmoid", "hardsigmoid",
        "normalize")},
    **{n: [lambda x, n=n: getattr(torch, n)(x)] for n in (
        "tanh", "square", "abs", "absolute", "erf", "expm1", "sinh", "arctan", "atan", "sin", "nan_to_num", "sigmoid",
        "exp", "exp2", "cos", "cosh", "sign")},
    **{n: [lambda x, n=n: getattr(torch, n)(x.abs() + 0.5)] for n in (
        "log1p", "log", "log2", "log10", "rsqrt", "sqrt", "reciprocal")},
    "prelu": [lambda x: F.prelu(x, torch.tensor([0.2], dtype=x.dtype))],
    "__rpow__": [lambda x: 2**x], "__rdiv__": [lambda x: 1 / x],
    "pow": [lambda x: x.pow(2), lambda x: x**3, lambda x: x.abs().pow(0.5), lambda x: x.pow(-1),
            lambda x: torch.pow(2.0, x)],
    "float_power": [lambda x: x.float_power(2)],
    "clamp": [lambda x: x.clamp(-0.5, 0.5), lambda x: x.clamp(min=0.3), lambda x: x.clamp(max=-0.2),
              lambda x: x.clamp(max=1), lambda x: written(x * 1, "clamp_", min=0.3)],
    "clip": [lambda x: x.clip(-0.5, 0.5)],
    "clamp_min": [lambda x: x.clamp_min(0.1)], "clamp_max": [lambda x: x.clamp_max(-0.1)],
    **{n: [lambda x, n=n: getattr(torch, n)(x, x @ W)] for n in ("maximum", "minimum", "fmax", "fmin")},
    **{n: [lambda x, n=n: getattr(x, n)(dim=1)[0], lambda x, n=n: getattr(x, n)()] for n in ("max", "min")},
    "layer_norm": [lambda x: F.layer_norm(x, (6,), W[0], W[1], 1e-3), lambda x: F.layer_norm(x, (4, 6))],
    "rms_norm": [lambda x: F.rms_norm(x, (6,), W[0], 1e-3), lambda x: F.rms_norm(x, (6,))],
    "scaled_dot_product_attention": [
        lambda x: F.scaled_dot_product_attention(x[None], (x * 2)[None], (x @ W)[None], is_causal=True),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], attn_mask=M[:, :4], scale=0.3),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], attn_mask=A[:, :4]),
        lambda x: F.scaled_dot_product_attention(
            *(x.reshape(4, 2, 3)[None], x.reshape(2, 4, 3)[None, :, :2], x.reshape(2, 4, 3)[None, :, 2:]),
            enable_gqa=True),
        lambda x: F.scaled_dot_product_attention(x[None], A[None], A[None]),
    ],
    **{n: [lambda x, n=n: getattr(F, n)(x, dim=-1)] for n in ("softmax", "log_softmax", "softmin")},
    **{n: [lambda x, n=n: getattr(torch, n)(x, dim=-1)] for n in
       ("amax", "amin", "logsumexp", "var", "std", "prod", "cumprod", "norm")},
    "vector_norm": [torch.linalg.vector_norm],
    "topk": [lambda x: x.topk(2).values], "sort": [lambda x: x.sort().values], "median": [torch.median],
    "kthvalue": [lambda x: x.kthvalue(2).values],
    "detach": [lambda x: x.detach() * 2], "data": [lambda x: x.data * 2], "item": [lambda x: A * x[0, 0].item()],
    "tolist": [lambda x: torch.tensor(x.tolist(), dtype=x.dtype)], "numpy": [lambda x: torch.as_tensor(x.numpy()) * 1],
    "__array__": [lambda x: torch.as_tensor(x.__array__()) * 1], "__float__": [lambda x: A * float(x[0, 0])],
}  # fmt: skip


class Unasked(Convention):
    """A convention whose share no rule may ask for: what is recorded under it is the same whatever the share is."""

    @property
    def share(self) -> float:
        raise AssertionError("a rule asks for the share")


CASES = [(name, i) for name, calls in SAMPLES.items() for i in range(len(calls))]


def test_every_name_has_a_sample() -> None:
    names = {name for row in rules.TABLE for name in row.names.split()}
    assert names == set(SAMPLES)
    assert all(rules.functions(name) for name in names), "a name that torch does not have"


def test_no_name_stands_twice() -> None:
    names = [name for row in rules.TABLE for name in row.names.split()]
    assert len(names) == len(set(names))
    assert not rules.METADATA & set(rules.ROWS)


@pytest.mark.parametrize(("name", "i"), CASES, ids=[f"{n}-{i}" for n, i in CASES])
def test_row(name: str, i: int) -> None:
    call = SAMPLES[name][i]
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = call(x.clone())
    out, tape = recorded(call, x, Unasked())
    assert torch.equal(out.detach(), plain)

    def held(v: Tensor) -> Tensor:
        return replayed(call, tape, v).detach()

    scale = {"float": 1e-2, "half": 1e-2, "bfloat16": 1e-2, "grouped_mm": 1e-5, "_grouped_mm": 1e-5}.get(name, 1e-13)
    close = {"rtol": scale, "atol": scale}
    torch.testing.assert_close(held(x), plain, **close)
    v, w = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(held(2 * v - w), 2 * held(v) - held(w), rtol=scale, atol=100 * scale)


@pytest.mark.parametrize(("name", "i"), CASES)
def test_the_secant_returns_the_value_and_is_affine(name: str, i: int) -> None:
    call = SAMPLES[name][i]
    x, r, v, w = torch.randn(4, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = call(x.clone())
    out, tape = recorded(call, x, CONVENTIONS["secant"])
    assert torch.equal(out.detach(), plain)
    visited(call, tape, r)
    tape.close()

    def held(v: Tensor) -> Tensor:
        return replayed(call, tape, v).detach()

    scale = {"float": 1e-2, "half": 1e-2, "bfloat16": 1e-2, "grouped_mm": 1e-5, "_grouped_mm": 1e-5}.get(name, 1e-12)
    torch.testing.assert_close(held(x), plain, rtol=scale, atol=scale)
    torch.testing.assert_close(held(2 * v - w), 2 * held(v) - held(w), rtol=scale, atol=100 * scale)


@pytest.mark.parametrize("name", [n for row in rules.TABLE if row.rule is rules.ratio for n in row.names.split()])
def test_a_ratio_is_its_limit_at_zero(name: str) -> None:
    x = torch.tensor([[0.0, 1e-8, 0.7]], dtype=torch.float64)
    _, tape = recorded(SAMPLES[name][0] if name != "log1p" else torch.log1p, x)
    form = tape.steps[-1].form
    assert isinstance(form, Scaled)
    assert form.factor.isfinite().all()
    if name not in ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "abs", "absolute", "prelu"):  # kinks
        torch.testing.assert_close(form.factor[0, 0], form.factor[0, 1], rtol=0, atol=1e-7)


def test_a_function_without_a_row_is_refused_by_name_module_and_next_step() -> None:
    with pytest.raises(NoRule, match=r"torch.lgamma in \?.*docs/how-to/extend.md"):
        recorded(torch.lgamma, A)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: (x * 10).to(torch.int8).to(x.dtype) / 10,
        lambda x: x.long() * 1.0,
        lambda x: x.type(torch.int32),
        lambda x: x.to(torch.float8_e4m3fn).to(x.dtype),
        lambda x: x.div(0.1, rounding_mode="floor"),
        lambda x: torch.ones(4, 6, dtype=x.dtype).scatter(0, I4[:, None], x, reduce="multiply"),
        lambda x: torch.round(x),
    ],
    ids=["int8", "long", "type", "float8", "floor division", "multiplying scatter", "round"],
)
def test_what_has_no_linear_map_is_refused(call: object) -> None:
    """Activation quantisation would pass for exact with everything in b (FACTS: refuse it)."""
    with pytest.raises(NoRule):
        recorded(call, A)


def test_what_carries_no_number_is_held_without_a_row() -> None:
    _, tape = recorded(lambda x: (x.argmax(-1), x > 0, x.isnan().any(), bool((x > 5).any())), A)
    assert tape.steps
    assert all(isinstance(step.form, Constant) for step in tape.steps)


@pytest.mark.parametrize(
    "call",
    [lambda x: F.dropout(x, 0.1), lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.1)],
)
def test_randomness_is_refused(call: object) -> None:
    with pytest.raises(TrainingMode):
        recorded(call, A)


GATED = [
    lambda x: F.silu(x @ W) * x,
    lambda x: x * F.silu(x @ W).view(1, 6)[..., :],
    lambda x: x * (0.5 * (y := x @ W) * (1 + torch.erf(y / 2**0.5))),  # gelu written with erf
    lambda x: x * ((y := x @ W) / (1 + torch.exp(-y))),  # silu written as a quotient
    lambda x: x * torch.where((y := x @ W) > 0, y * y, torch.tanh(y) * 0.5),
    lambda x: x * F.silu(x @ W),
    lambda x: torch.cat([F.silu((x @ W)[:, :3]), F.silu((x @ W)[:, 3:])], -1) * x,
    SPLIT := lambda x: F.gelu((x @ W).chunk(2, -1)[0]) * (x @ W).chunk(2, -1)[1],
    lambda x: 0.5 * (y := x @ W) * (1 + torch.tanh(0.8 * (y + 0.04 * y**3))) * x,  # a GELU written by hand
    lambda x: (y := x @ W) * torch.sigmoid(1.7 * y) * x,  # a quick GELU written by hand
    lambda x: torch.square(F.relu(x @ W)) * x,
]


def gradient(call: object, x: Tensor, convention: Convention) -> Tensor:
    _, tape = recorded(call, x, convention)
    return torch.autograd.functional.jacobian(lambda v: replayed(call, tape, v), x)


def test_a_gated_product_asks_for_the_convention() -> None:
    with pytest.raises(AssertionError, match="asks for the share"):
        recorded(GATED[0], A, Unasked())


@pytest.mark.parametrize("call", GATED)
def test_conventions(call: object) -> None:
    """`gate` is the Jacobian with the activation detached, `up` that with the other factor, `half` their mean."""
    x = A[:1]
    J = {c: gradient(call, x, CONVENTIONS[c]) for c in ("gate", "up", "half")}
    torch.testing.assert_close(J["half"], (J["gate"] + J["up"]) / 2)
    assert (J["gate"] - J["up"]).norm() > 0.1 * J["gate"].norm()
    split = call is SPLIT
    other = (x @ W).chunk(2, -1)[1].detach() if split else x.detach()
    linear = W.T[3:] if split else torch.eye(6, dtype=x.dtype)
    expected = torch.diag((call(x) / other)[0]) @ linear
    torch.testing.assert_close(J["gate"][0, :, 0], expected)


BY_HAND = [
    lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3))),
    lambda x: x * torch.sigmoid(1.7 * x),
    lambda x: x * x,
    lambda x: x * torch.add(torch.tanh(x), other=1.0),
    lambda x: x * torch.rsub(torch.tanh(x), other=2.0),
    lambda x: x * torch.where(x > 0, torch.tanh(x), 1.0),
    lambda x: x * torch.tanh(x).masked_fill(mask=M[:1], value=1.0),
    lambda x: x * torch.addcmul(torch.ones_like(x), x, x),
    lambda x: x * x.clamp(min=0.3),
    lambda x: x * torch.lerp(A[:1], x, 0.3),
    lambda x: x * torch.maximum(x, torch.full_like(x, 0.3)),
]


@pytest.mark.parametrize("call", BY_HAND)
def test_an_activation_written_by_hand_is_its_ratio(call: object) -> None:
    J = gradient(call, A[:1], Unasked())[0, :, 0]
    torch.testing.assert_close(J, torch.diag((call(A[:1]) / A[:1])[0]))


def outer(first: Tensor, second: Tensor) -> Tensor:
    return first[..., :, None] * second[..., None, :]


@pytest.mark.parametrize(
    ("call", "held"),
    [
        # key times value, whatever activations are in them
        (lambda x: outer(x @ W, x @ W.T), lambda x: outer((x @ W).detach(), x @ W.T)),
        (lambda x: outer(x @ W, F.relu(x @ W.T)), lambda x: outer((x @ W).detach(), F.relu(x @ W.T))),
        # a coefficient computed from what it multiplies, on either side and spread out before
        (lambda x: outer(x @ W, x), lambda x: outer((x @ W).detach(), x)),
        (lambda x: outer(x, x @ W), lambda x: outer(x, (x @ W).detach())),
        (
            lambda x: outer(A, (y := F.relu(x @ W)) @ W.T) * y[:, None],
            lambda x: outer(A, (y := F.relu(x @ W)) @ W.T).detach() * y[:, None],
        ),
        # a key times a state, which is the larger
        (
            lambda x: outer(A, x @ W) * F.relu(x @ W.T)[..., None],
            lambda x: outer(A, x @ W) * F.relu(x @ W.T).detach()[..., None],
        ),
        (
            lambda x: F.relu(x @ W.T)[..., None] * outer(A, x @ W),
            lambda x: F.relu(x @ W.T).detach()[..., None] * outer(A, x @ W),
        ),
    ],
)
def test_of_factors_of_unlike_sizes_the_coefficient_is_held(call: object, held: object) -> None:
    """In every convention. ReLU's derivative is its ratio, so that autograd differentiates the held twin."""
    torch.testing.assert_close(gradient(call, A, Unasked()), torch.autograd.functional.jacobian(held, A))


def test_in_place_functions_compute_what_their_twins_do() -> None:
    for call, twin in (
        (lambda x: written(x * 1, "mul_", x @ W), lambda x: (x * 1) * (x @ W)),
        (lambda x: F.silu(x * 1, inplace=True) * x, lambda x: F.silu(x * 1) * x),
        (lambda x: written(x @ W, "relu_") * 2, lambda x: torch.relu(x @ W) * 2),
    ):
        torch.testing.assert_close(gradient(call, A, CONVENTIONS["gate"]), gradient(twin, A, CONVENTIONS["gate"]))


def test_choices_hold_the_choice() -> None:
    _, tape = recorded(lambda x: x.clamp(min=0.3), A)
    assert isinstance(tape.steps[-1].form, Chosen)


def test_forms_say_what_they_hold() -> None:
    _, tape = recorded(lambda x: F.softmax(x @ x.T, -1) @ x, A)
    held = [t for step in tape.steps if step.form is not None for t in tensors(tuple(vars(step.form).values()))]
    assert held
    assert not any(t.requires_grad for t in held)


@pytest.mark.parametrize("masked", ["causal", "boolean", "added", "one row", "none"])
@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_a_pattern_in_blocks_of_rows(masked: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """P v and Pᵀ u are those of the whole pattern, whatever the blocks, for one vector and many, with grouped keys."""
    monkeypatch.setattr(forms, "PATTERN_ELEMENTS", block)
    torch.manual_seed(0)
    q, k = torch.randn(1, 4, 9, 5, dtype=torch.float64), torch.randn(1, 2, 9, 5, dtype=torch.float64)
    allowed = torch.rand(1, 1, 9, 9) < 0.7
    allowed[..., 3, :] = False  # a row that attends nothing
    mask = {
        "boolean": allowed,
        "added": torch.randn(1, 1, 9, 9, dtype=torch.float64),
        "one row": torch.rand(1, 1, 1, 9) < 0.7,
    }.get(masked)
    form = forms.Attended(q, k, mask, masked == "causal", 0.3, 2)
    scores = (q * 0.3) @ k.repeat_interleave(2, 1).mT
    if masked == "causal":
        scores = scores.masked_fill(~torch.ones(9, 9).tril().bool(), -torch.inf)
    elif mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    P = torch.softmax(scores, -1).nan_to_num(0)
    v, u = torch.randn(1, 4, 9, 3, dtype=torch.float64), torch.randn(7, 1, 4, 9, 3, dtype=torch.float64)
    torch.testing.assert_close(form.mix(v, False), P @ v, rtol=0, atol=1e-14)
    torch.testing.assert_close(form.mix(v, True), P.mT @ v, rtol=0, atol=1e-14)
    torch.testing.assert_close(form.mix(u, False), P @ u, rtol=0, atol=1e-14)
    torch.testing.assert_close(form.mix(u, True), P.mT @ u, rtol=0, atol=1e-14)
    last = torch.zeros_like(v)
    last[..., -1, :] = v[..., -1, :]
    torch.testing.assert_close(form.mix(last, True), P.mT @ last, rtol=0, atol=1e-14)


@pytest.mark.slow
def test_no_pattern_is_kept() -> None:
    """Of a long prompt a run keeps nothing of heads x T x T numbers, nor of T x T: memory is linear in T."""
    T = 300
    lm = model_of("llama", "sdpa", torch.float32, max_position_embeddings=512)
    before = [
        t for t in gc.get_objects() if type(t) is torch.Tensor
    ]  # of other tests, kept so that no id is given again
    run = sc.freeze(lm, [i % 90 for i in range(T)])
    run.operator() @ torch.ones(T * 32)
    gc.collect()
    known = {id(t) for t in before}
    after = [t for t in gc.get_objects() if type(t) is torch.Tensor and id(t) not in known]
    largest = max(t.untyped_storage().nbytes() // t.element_size() for t in after)
    held = max(t.numel() for s in run.tape.steps if s.form is not None for t in forms.coefficients(s.form))
    assert held < T * T
    assert largest < T * T
