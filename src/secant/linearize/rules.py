"""The rules of linearisation: which factor of each torch function is frozen, as one table.

Every operation of a decoder can be written A(x) x + c. With A frozen at its value for the prompt, the operation is
affine in x and still returns the prompt's value (J. Golden, TMLR 2025, arXiv 2505.24293, section 3). The frozen factor
is the scale of a norm, the pattern of attention, the ratio a(x)/x of an activation, and all factors but one of a
product.

A tensor is *live* if it still depends on the input when these factors are frozen. A rule takes a call that has a live
tensor among its arguments. It returns the frozen function (a `Form`), or LINEAR if the function is affine already.
Which exact affine map replaces each operation is a *convention* (`secant.linearize.conventions`).

To add a function, add its name to a row of TABLE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from secant.errors import TrainingMode
from secant.linearize.conventions import SECANT, Convention
from secant.linearize.forms import (
    Call,
    Chosen,
    Constant,
    Fixed,
    Form,
    Grouped,
    HalfGated,
    Mark,
    Picked,
    Scaled,
    Shared,
    Standardised,
    Unpacked,
    detached,
    gated,
    homogeneous,
    is_live,
)
from secant.linearize.secants import (
    Open,
    OpenAttention,
    OpenCentredNorm,
    OpenChord,
    OpenNorm,
    OpenProduct,
    OpenQuotient,
    OpenSoftmax,
    attended,
)
from secant.model import weights
from secant.model.hooks import Whole

Rule = Callable[[Call], Form | None]
LINEAR = None


class Refused(Exception):
    """A rule has no frozen form for this call, which is then refused as if it had no row in the table."""


def linear(call: Call) -> Form | None:
    """Affine in all of its tensors together."""
    return LINEAR


def frozen(call: Call) -> Form | None:
    """The whole value is frozen: patterns, statistics of norms, gates, decays, choices."""
    return Constant(call.value)


def ratio(call: Call) -> Form | None:
    """a(x) = (a(x)/x) x, with the ratio frozen. Where x is 0 the ratio is its limit, a'(0)."""
    x, y = call.wide(call.args[0]), call.wide(call.value)
    zero = x == 0
    if not zero.any():
        return Scaled(y / x)
    with torch.enable_grad():
        origin = torch.zeros_like(call.args[0], requires_grad=True)
        (slope,) = torch.autograd.grad(call.substitute({0: origin}).run().sum(), origin)
    return Scaled(torch.where(zero, call.wide(slope), y / torch.where(zero, 1, x)))


def converted(call: Call) -> Form | None:
    """A cast between floating-point types is linear, and a mask is frozen. Casts to integers or 8 bits quantise
    activations, which no linear map does: they are refused.
    """
    value = call.value
    if not is_live(call.args[0]):  # a frozen value, cast to the type of a live one
        return frozen(call)
    if not isinstance(value, Tensor) or value.dtype == torch.bool:
        return frozen(call)
    if not value.is_floating_point() or value.element_size() == 1:
        raise Refused
    return LINEAR


def scattered(call: Call) -> Form | None:
    """Linear if elements are only written. A reduction that multiplies or compares them is refused."""
    if call["reduce", 4] is not None:
        raise Refused
    return LINEAR


def reduced(call: Call) -> Form | None:
    """Sums and means are linear. For a maximum or minimum the choice is frozen, and tied elements share it equally."""
    reduce, own, dim, index, src = call["reduce", 4], call.args[0], call["dim", 1], call["index", 2], call["src", 3]
    if reduce in ("sum", "mean"):
        return LINEAR
    if reduce not in ("amax", "amin"):
        raise Refused
    src = src[tuple(slice(n) for n in index.shape)]
    value, ones = call.wide(call.value), torch.ones_like(call.wide(src))
    chosen = (call.wide(src) == value.gather(dim, index)).to(value)
    alone = torch.zeros_like(value).scatter_add(dim, index, ones) == 0
    kept = (alone if call["include_self", 5] is False else call.wide(own) == value).to(value)
    count = kept.scatter_add(dim, index, chosen)
    return Picked(kept / count, chosen / count.gather(dim, index))


def power(call: Call) -> Form | None:
    """x^p with a constant p >= 1 is x^(p-1) x, with x^(p-1) frozen. Any other power is frozen as a whole."""
    exponent = call["exponent", 1]
    if not is_live(call.args[0]) or is_live(exponent) or bool((torch.as_tensor(exponent) < 1).any()):
        return frozen(call)
    return ratio(call)


def clamped(call: Call) -> Form | None:
    """The ratio is frozen if 0 lies within the bounds. Otherwise the choice between value and bound is frozen."""
    bounds = [b for b in (*call.args[1:], *call.kwargs.values()) if b is not None]
    if is_live(bounds):
        return frozen(call)
    at_zero = call.substitute({0: torch.zeros_like(call.args[0])}).value
    if not at_zero.any():
        return ratio(call)
    return Chosen(call.value == call.args[0].detach(), call.value.detach())


def extremum(call: Call) -> Form | None:
    """For two tensors, the choice of the larger or smaller is frozen. Over a dimension, the whole value is frozen."""
    if isinstance(call["other", 1], Tensor):
        return Chosen(call.value == call.args[0].detach())
    return frozen(call)


def product(*factors: tuple[str, int]) -> Rule:
    """A rule for functions that are linear in each factor: all live factors but the last are frozen."""

    def rule(call: Call) -> Form | None:
        live = [call.key(f) for f in factors if is_live(call[f])]
        return with_frozen(call, live[:-1]) if len(live) > 1 else LINEAR

    return rule


def matrix_product(*factors: tuple[str, int]) -> Rule:
    """A rule for matrix products, which are linear in each factor.

    Patterns, queries and decays come first, so the first factor is frozen. The exception is a matrix times one column,
    by which a query reads a state: there the column is frozen.
    """

    def rule(call: Call) -> Form | None:
        one, two = (call[f] for f in factors)
        if not (is_live(one) and is_live(two)):
            return LINEAR
        column = two.ndim == 1 or (two.shape[-1] == 1 and one.ndim > 1 and one.shape[-2] > 1)
        return with_frozen(call, [call.key(factors[1 if column else 0])])

    return rule


def with_frozen(call: Call, places: list[int | str], gated: bool = False) -> Fixed:
    """The form of a call with its arguments at these places frozen."""
    values: dict[Any, Any] = {**dict(enumerate(call.args)), **call.kwargs}
    return Fixed({place: detached(values[place]) for place in places}, gated)


def multiplied(call: Call) -> Form | None:
    """An elementwise product, of which one factor is frozen.

    Two functions of the same tensor are an activation written out by hand: the factor with a constant term is frozen.
    A factor that is broadcast is a coefficient, which is frozen. In a gated product, which multiplies an activation by
    another tensor of its size, the convention decides.
    """
    one, two = call.args[0], call["other", 1]
    if not (is_live(one) and is_live(two)):
        return LINEAR
    a, b = 0, call.key(("other", 1))
    mark, other = call.mark(one), call.mark(two)
    assert mark is not None, "it is live"
    assert other is not None, "it is live"
    if mark.root == other.root:
        return with_frozen(call, [a if other.homogeneous else b])
    if not one.numel() == two.numel() == call.value.numel():
        smaller = one.numel() == call.value.numel()
        return with_frozen(call, [b if second_is_coefficient(mark, other, smaller) else a])
    if mark.activation == other.activation:
        return with_frozen(call, [a])
    gate, up = (a, b) if mark.activation else (b, a)
    share = call.convention.share
    if share in (0, 1):
        return with_frozen(call, [gate if share == 1 else up], True)
    return Shared(with_frozen(call, [gate], True), with_frozen(call, [up], True), share)


def second_is_coefficient(one: Mark, two: Mark, smaller: bool) -> bool:
    """Whether the second of two factors of different sizes is the one that is frozen.

    It is the factor that was computed from the other, as the input gate of a state is computed from the state's input.
    If neither was, it is the smaller one, as a key that multiplies a state; in an outer product of a key and a value it
    is the first.
    """
    first, second = one.descends(two), two.descends(one)
    return second if first != second else smaller


def divided(call: Call) -> Form | None:
    """The denominator is frozen."""
    if call["rounding_mode", 9] is not None:
        raise Refused
    if not is_live(call["other", 1]):
        return LINEAR
    return with_frozen(call, [call.key(("other", 1))]) if is_live(call.args[0]) else frozen(call)


def einsum(call: Call) -> Form | None:
    """Linear in each operand: all live operands but the last are frozen."""
    live: list[int | str] = [i for i, operand in enumerate(call.args) if is_live(operand)]
    return with_frozen(call, live[:-1]) if len(live) > 1 else LINEAR


def grouped(call: Call) -> Form | None:
    """Rows times the matrix of their group. The assignment to groups is frozen."""
    rows, matrices, ends = call.args[0], call["mat2", 1], call["offs", 2]
    if is_live(matrices) or rows.ndim != 2 or matrices.ndim != 3 or ends is None or call["bias", 3] is not None:
        raise Refused
    return Grouped(tuple(ends.tolist()))


def solved(call: Call) -> Form | None:
    """A⁻¹ B is linear in B, and A is frozen."""
    if not is_live(call.args[0]):
        return LINEAR
    return with_frozen(call, [0]) if is_live(call["B", 1]) else frozen(call)


def interpolated(call: Call) -> Form | None:
    """The weight between two live ends is frozen."""
    weight = call["weight", 2]
    ends = is_live(call.args[0]) or is_live(call["end", 1])
    return with_frozen(call, [call.key(("weight", 2))]) if is_live(weight) and ends else LINEAR


def half_gated(call: Call) -> Form | None:
    """The first half times the sigmoid of the second half, with the sigmoid frozen."""
    dim = -1 if call["dim", 1] is None else call["dim", 1]
    return HalfGated(torch.sigmoid(call.wide(call.args[0]).chunk(2, dim)[1]), dim)


def dropout(call: Call) -> Form | None:
    """Dropout is the identity in evaluation mode. In training mode it is random, which is refused."""
    training = call.kwargs.get("train", call["training", 2])
    if training in (None, True) and call["p", 1] != 0:
        raise TrainingMode(
            "A forward pass must be deterministic", "dropout in training mode", "Call model.eval() before freezing."
        )
    return LINEAR


def layer_norm(call: Call) -> Form | None:
    """1/std is frozen, and x - mean is linear."""
    over = tuple(range(-len(call["normalized_shape", 1]), 0))
    eps = call["eps", 4]
    x = call.wide(call.args[0])
    scale = torch.rsqrt(x.var(over, correction=0, keepdim=True) + (1e-5 if eps is None else eps))
    return Standardised(scale, over, detached(call["weight", 2]), detached(call["bias", 3]))


def group_norm(call: Call) -> Form | None:
    """1/std of each group is frozen, and x - mean is linear."""
    groups, eps = call["num_groups", 1], call["eps", 4]
    x = call.wide(call.args[0]).unflatten(1, (groups, -1))
    over = tuple(range(2, x.ndim))
    scale = torch.rsqrt(x.var(over, correction=0, keepdim=True) + (1e-5 if eps is None else eps))
    shape = (-1, *(1,) * (x.ndim - 3))
    weight, bias = (None if t is None else detached(t).view(shape) for t in (call["weight", 2], call["bias", 3]))
    return Standardised(scale, over, weight, bias, groups)


def rms_norm(call: Call) -> Form | None:
    """1/rms is frozen."""
    over = tuple(range(-len(call["normalized_shape", 1]), 0))
    eps = call["eps", 3]
    x = call.wide(call.args[0])
    eps = torch.finfo(torch.promote_types(call.args[0].dtype, torch.float32)).eps if eps is None else eps
    scale = torch.rsqrt(x.square().mean(over, keepdim=True) + eps)
    return Standardised(scale, None, detached(call["weight", 2]), None)


def normalized(call: Call) -> Form | None:
    """Each vector over its norm, x / max(‖x‖, eps), with the norm frozen."""
    p, dim, eps = call["p", 1], call["dim", 2], call["eps", 3]
    norm = torch.linalg.vector_norm(
        call.wide(call.args[0]), 2.0 if p is None else p, 1 if dim is None else dim, keepdim=True
    )
    return Scaled(1 / norm.clamp_min(1e-12 if eps is None else eps))


def attention(call: Call) -> Form | None:
    """softmax(q kᵀ) is frozen by freezing q and k. The values are live."""
    if call["dropout_p", 4]:
        raise TrainingMode(
            "A forward pass must be deterministic", "attention with dropout", "Call model.eval() before freezing."
        )
    if not is_live(call["value", 2]):
        return frozen(call)
    return attended(call)


# ------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Row:
    """The rule for the torch functions with some names, and the properties of these functions.

    Attributes:
        rule: What is frozen in a call.
        names: The functions' names, separated by spaces.
        elementwise: Each element of the output depends only on the elements of the inputs at the same index.
        activation: The function is an activation.
        additive: A constant input remains a constant term of the output.
        view: The output may share memory with the input.
        moves: The output consists of the input's elements at other indices.
        pattern: The output is an attention pattern.
        secant: The kind of its secant, if it has one.
        kind: Which part of a convention decides whether the secant is used: gates, attention or norms.
    """

    rule: Rule
    names: str
    elementwise: bool = False
    activation: bool = False
    additive: bool = False
    view: bool = False
    moves: bool = False
    pattern: bool = False
    secant: type[Open] | None = None
    kind: str = "norms"

    @property
    def statistic(self) -> bool:
        """Whether the function computes a norm's statistic, or may do so."""
        return self.secant is OpenChord and self.kind == "norms"

    def homogeneous(self, form: Form | None) -> bool:
        """Whether a call certainly adds no constant: what it computes from zeros, with other arguments as they are, is
        zero.

        A product with a factor that is not live is, a sum with a term that is not live isn't.
        """
        if isinstance(form, Fixed | Shared | None):
            sums = self.additive or self.moves
            return self.rule in (multiplied, divided) or (
                form is None and self.rule in (linear, converted) and not sums
            )
        return homogeneous(form)

    def follows(self, convention: Convention, form: Form) -> bool:
        """Whether a convention replaces the function by its secant, instead of by a form with a frozen factor.

        A product that is not gated is part of an activation or of a norm that is written out by hand. If the convention
        freezes these, one factor of the product is not live: the product is linear, and is not passed to this method.
        """
        kinds = ("gates", "norms") if self.rule is multiplied and not gated(form) else (self.kind,)
        return self.secant is not None and SECANT in (getattr(convention, kind) for kind in kinds)


GATES: dict[str, Any] = {"secant": OpenChord, "kind": "gates"}
PRODUCTS: dict[str, Any] = {"secant": OpenProduct, "kind": "attention"}

INPUT, OTHER = ("input", 0), ("other", 1)

TABLE = (
    # rearranging elements
    Row(
        linear,
        "view view_as reshape reshape_as transpose permute swapaxes swapdims movedim moveaxis T mT unsqueeze squeeze "
        "flatten unflatten expand expand_as broadcast_to __getitem__ select narrow split split_with_sizes chunk "
        "tensor_split unbind __iter__ diagonal unfold as_strided broadcast_tensors view_as_real "
        "view_as_complex real imag",
        view=True,
    ),
    Row(
        linear,
        "repeat repeat_interleave tile cat concat concatenate stack hstack vstack dstack __setitem__ index_select "
        "gather take_along_dim roll flip pad diag_embed tril triu slice_scatter select_scatter index_put index_copy "
        "index_add scatter_add copy_ zero_ fill_ masked_select masked_scatter new_tensor",
        moves=True,
    ),
    Row(scattered, "scatter"),
    Row(reduced, "scatter_reduce"),
    Row(linear, "clone contiguous cpu cuda", elementwise=True),
    Row(converted, "to type type_as float double half bfloat16 int long short char byte", elementwise=True),
    # sums
    Row(
        linear,
        "add __radd__ sub subtract rsub __rsub__ neg negative positive where masked_fill",
        elementwise=True,
        additive=True,
    ),
    Row(linear, "sum mean cumsum diff trace adaptive_avg_pool1d avg_pool1d"),
    Row(dropout, "dropout dropout1d dropout2d alpha_dropout feature_dropout", elementwise=True),
    # products
    Row(multiplied, "mul __rmul__ multiply", elementwise=True, secant=OpenProduct, kind="gates"),
    Row(divided, "div divide true_divide truediv", elementwise=True, secant=OpenQuotient),
    Row(matrix_product(INPUT, ("mat2", 1)), "mm bmm", **PRODUCTS),
    Row(matrix_product(INPUT, OTHER), "matmul", **PRODUCTS),
    Row(matrix_product(OTHER, INPUT), "__rmatmul__", **PRODUCTS),
    Row(matrix_product(INPUT, ("vec", 1)), "mv", **PRODUCTS),
    Row(product(INPUT, ("tensor", 1)), "dot vdot", **PRODUCTS),
    Row(product(INPUT, ("vec2", 1)), "outer ger", **PRODUCTS),
    Row(product(INPUT, ("weight", 1)), "linear conv1d", **PRODUCTS),
    Row(product(("mat1", 1), ("mat2", 2)), "addmm", **PRODUCTS),
    Row(product(("batch1", 1), ("batch2", 2)), "baddbmm", **PRODUCTS),
    Row(product(("tensor1", 1), ("tensor2", 2)), "addcmul", elementwise=True, additive=True),
    Row(einsum, "einsum", **PRODUCTS),
    Row(grouped, "grouped_mm _grouped_mm"),
    Row(solved, "solve_triangular"),
    Row(interpolated, "lerp", elementwise=True, additive=True),
    Row(half_gated, "glu"),
    # activations
    Row(
        ratio,
        "silu gelu relu relu6 tanh mish leaky_relu elu selu celu hardtanh hardswish softsign tanhshrink softshrink "
        "hardshrink prelu erf",
        elementwise=True,
        activation=True,
        **GATES,
    ),
    Row(frozen, "sigmoid hardsigmoid softplus logsigmoid", elementwise=True, activation=True, **GATES),
    # other functions of one element
    Row(ratio, "square abs absolute expm1 log1p sinh arctan atan sin nan_to_num", elementwise=True, secant=OpenChord),
    Row(
        frozen,
        "exp exp2 log log2 log10 rsqrt sqrt reciprocal cos cosh sign __rpow__ __rdiv__",
        elementwise=True,
        secant=OpenChord,
    ),
    Row(power, "pow float_power", elementwise=True, secant=OpenChord),
    Row(clamped, "clamp clip clamp_min clamp_max", elementwise=True, additive=True, secant=OpenChord),
    Row(extremum, "maximum minimum fmax fmin max min", elementwise=True, additive=True, secant=OpenChord),
    # norms and attention
    Row(layer_norm, "layer_norm", secant=OpenCentredNorm),
    Row(group_norm, "group_norm"),
    Row(rms_norm, "rms_norm", secant=OpenNorm),
    Row(normalized, "normalize"),
    Row(attention, "scaled_dot_product_attention", secant=OpenAttention, kind="attention"),
    Row(frozen, "softmax", pattern=True, secant=OpenSoftmax, kind="attention"),
    Row(frozen, "log_softmax softmin logsumexp"),
    # statistics, choices, and conversions that leave torch
    Row(frozen, "amax amin topk sort kthvalue median std var norm vector_norm prod cumprod"),
    Row(frozen, "detach data item tolist numpy __array__ __float__"),
)

METADATA_NAMES = (
    "shape dtype device layout is_cuda is_cpu is_mps is_xpu is_meta is_mkldnn is_sparse is_quantized is_nested is_leaf "
    "requires_grad grad_fn ndim itemsize nbytes size dim ndimension numel nelement stride storage_offset element_size "
    "get_device is_contiguous is_floating_point is_complex is_conj is_neg is_inference is_same_size data_ptr "
    "untyped_storage __len__ __hash__ _version is_tensor result_type zeros_like ones_like empty_like full_like "
    "new_zeros new_ones new_empty new_full"
)
"""Queries about a tensor whose answers do not depend on its elements."""

NAMESPACES = (torch, Tensor, F, torch._C._nn, torch.linalg, torch.special)


def functions(name: str) -> set[Any]:
    """Returns every torch function of this name: functions, methods, operators and properties, in place or not."""
    names = [name] if name.startswith("__") else [name, f"{name}_", f"__{name}__", f"__i{name}__"]
    found: set[Any] = {getattr(space, attribute, None) for space in NAMESPACES for attribute in names}
    return {f if callable(f) else f.__get__ for f in found if callable(f) or hasattr(f, "__get__")}


ROWS: dict[Any, Row] = {f: row for row in TABLE for name in row.names.split() for f in functions(name)}
GROUPED: set[Any] = {f for f, row in ROWS.items() if row.rule is grouped}
METADATA: set[Any] = {f for name in METADATA_NAMES.split() for f in functions(name)}
ADDITIONS: set[Any] = functions("add") | functions("__radd__")
VIEWS: set[Any] = {f for f, row in ROWS.items() if row.view}


# ------------------------------------------------------------------------------------------------ whole modules


def whole_activation(x: Tensor, seen: Whole) -> Tensor:
    """Call a module that is an activation as one torch function."""
    return handle_torch_function(whole_activation, (x,), x, seen) if has_torch_function_unary(x) else seen.own(x)


def whole_linear(x: Tensor, seen: Whole) -> Tensor:
    """Call a module that is a linear layer with packed weights as one torch function."""
    return handle_torch_function(whole_linear, (x,), x, seen) if has_torch_function_unary(x) else seen.own(x)


def unpacked(call: Call) -> Form | None:
    """A linear layer with any kernel. The form multiplies by the unpacked weights."""
    return Unpacked(partial(weights.unpacked, call.args[1].module))


ACTIVATIONS = ("transformers.BloomGelu",)
"""Modules that are activations and compute them in a custom autograd function."""

ROWS[whole_activation] = Row(ratio, "whole_activation", elementwise=True, activation=True, **GATES)
ROWS[whole_linear] = Row(unpacked, "whole_linear")


def whole(model: nn.Module) -> dict[nn.Module, Callable[[Tensor, Whole], Tensor]]:
    """Returns the modules of a model that are recorded as one function each, and these functions."""
    kinds = {**dict.fromkeys(ACTIVATIONS, whole_activation), **dict.fromkeys(weights.unpacking(), whole_linear)}
    return {module: kinds[kind] for module in model.modules() if (kind := weights.kind_of(module)) in kinds}


def writes(function: Any, kwargs: dict[str, Any]) -> bool:
    """Returns whether such a call writes into its first argument."""
    return _names_a_write(getattr(function, "__name__", "")) or bool(kwargs.get("inplace"))


@cache
def _names_a_write(name: str) -> bool:
    operator = name.startswith("__i") and name.endswith("__") and hasattr(torch.Tensor, f"__{name[3:]}")
    return name == "__setitem__" or operator or name.endswith("_") != name.endswith("__")


def out_of_place(function: Any) -> Any:
    """Returns the function that computes what an in-place one writes, such as mul for mul_ and for *=."""
    name = function.__name__
    name = name[3:-2] if name.startswith("__i") else name.removesuffix("_")
    return getattr(Tensor, {"truediv": "div"}.get(name, name), None) or getattr(F, name, function)
