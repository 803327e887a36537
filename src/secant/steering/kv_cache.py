"""An operator applied to texts that go through a model: a_i = Σ_{k<=i} J[:, k mod T] x_k, pass after pass.

Generation with a cache sends only new tokens through the model. So the sums so far are stored for each row of the
batch, keyed by the cache of the same tokens. They follow what generation does to the rows: it reorders beams, and
repeats or selects rows. Padding adds nothing and is not counted in k.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from secant.errors import BadArgument
from secant.model.hooks import observing_inputs, replacing_outputs

CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""The names by which models take and return what they keep from one pass to the next."""

CROPPED = -1
"""The length of sums whose cache has lost tokens since."""

NO_CACHE = "Generate from the beginning, without assisted decoding; use_cache=False always works."


@dataclass(frozen=True, eq=False)
class RowSums:
    """The sums of each row of a batch up to some position.

    Attributes:
        total: a at that position, for each row.
        count: Tokens in each row so far, without padding.
        length: Positions so far, with padding.

    """

    total: Float[Tensor, "B d"]
    count: Int[Tensor, " B"]
    length: int

    def rows(self, index: Int[Tensor, " rows"]) -> RowSums:
        """The sums of some rows, in the given order."""
        index = index.to(self.total.device)
        return RowSums(self.total[index], self.count[index], self.length)


class Passes:
    """The passes of a model, and the sums of the current pass.

    Args:
        model: The module that is called for each pass.
        blocks: J_t at `blocks[t]`. None: there are no sums, and only calls of the layer are counted.

    """

    def __init__(self, model: nn.Module, blocks: Float[Tensor, "T d n"] | None) -> None:
        self.blocks = blocks
        self.names = list(inspect.signature(model.forward).parameters)
        self.sums_of: weakref.WeakKeyDictionary[Any, RowSums] = weakref.WeakKeyDictionary()
        self.given: dict[str, Any] | None = None  # None between passes
        self.x: Tensor | None = None
        self.memory: RowSums | None = None
        self.calls = 0

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a pass. Raises BadArgument if it resumes from a cache with unknown sums, or is compiled."""
        if torch.compiler.is_compiling():
            raise BadArgument(
                "A steered pass must be plain torch", "a compiled one", "Generate with disable_compile=True."
            )
        self.given, self.calls = None, 0
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if self.blocks is not None:
            self.memory, self.x = self._sums_before(_cache(given)), given.get("inputs_embeds")
        self.given = given

    def embedded(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Keep the embedding's output as x, if it is for the tokens of the pass."""
        ids = None if self.given is None else self.given.get("input_ids")
        if self.x is None and isinstance(ids, Tensor) and out.shape[:2] == ids.shape:
            self.x = out

    def ended(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """End a pass, whose output is None if it failed. Its cache now belongs to the current sums."""
        given, self.given = self.given, None
        if self.blocks is None or given is None or out is None:
            return
        found = (_cache(out) if isinstance(out, dict) else next(filter(_follows, out), None), _cache(given))
        for cache in filter(_follows, found):
            if self.memory is not None:
                self._keep(cache, self.memory)

    def reached(self, nth: int) -> bool:
        """Whether this call of the layer is number `nth` of the pass. Raises BadArgument between passes."""
        if self.given is None:
            raise BadArgument(
                "A steered model must be called as a whole",
                "a call of one module",
                "Call the model itself, or generate.",
            )
        self.calls += 1
        return self.calls == nth

    def sums(self, shape: Sequence[int]) -> Float[Tensor, "B n d"]:
        """a_i for the new tokens of each row, given the earlier ones.

        Args:
            shape: The shape of the layer's residual stream.

        Raises:
            BadArgument: The model did not embed its tokens.

        """
        x, past, given = self.x, self.memory, self.given
        assert given is not None, "a pass is under way"
        if x is None or x.shape[:2] != shape[:2]:
            raise BadArgument(
                "Steering requires an embedding for each token of the residual stream",
                f"{'none' if x is None else tuple(x.shape)} for {tuple(shape)}", "Give the model input_ids.",
            )  # fmt: skip
        blocks = self.blocks
        assert blocks is not None, "there are sums"
        rows, length = x.shape[:2]
        wide = torch.promote_types(blocks.dtype, torch.float32)
        if past is None:
            past = RowSums(
                blocks.new_zeros(rows, blocks.shape[1], dtype=wide),
                torch.zeros(rows, dtype=torch.long, device=blocks.device),
                0,
            )
        if len(past.count) != rows:
            raise BadArgument("A cache must have a row for each text", f"{len(past.count)} for {rows}", NO_CACHE)
        real = real_positions(given.get("attention_mask"), rows, length, past.length).to(blocks.device)
        a, count = accumulated(blocks, x, real, past.count)
        a = a + past.total[:, None]
        self.memory = RowSums(a[:, -1].detach(), count, past.length + length)
        return a

    def _sums_before(self, cache: Any) -> RowSums | None:
        """The sums that belong to a cache; None for a new text. Raises BadArgument if they are unknown."""
        if cache is None or (length := _length(cache)) == 0:
            return None
        memory = self.sums_of.get(cache)
        if memory is None or memory.length == CROPPED or length not in (None, memory.length):
            got = "a different one" if length is None else f"a different one of {length} tokens"
            raise BadArgument("A steered pass must resume from the cache of a steered pass", got, NO_CACHE)
        return memory

    def _keep(self, cache: Any, memory: RowSums) -> None:
        if cache not in self.sums_of:
            _follow(cache, self)
        self.sums_of[cache] = memory

    def changed(self, cache: Any, how: str, argument: Any) -> None:
        """Apply to the sums what is being done to the rows of a cache."""
        memory = self.sums_of.get(cache)
        if memory is None:
            return
        if how == "crop":  # only the sums of all tokens are known
            self.sums_of[cache] = replace(memory, length=CROPPED) if argument else memory
        elif how == "batch_repeat_interleave":
            rows = torch.arange(len(memory.count)).repeat_interleave(argument)
            self.sums_of[cache] = memory.rows(rows)
        else:
            self.sums_of[cache] = memory.rows(torch.as_tensor(argument))


def accumulated(
    blocks: Float[Tensor, "T d n"], x: Float[Tensor, "B L n"], real: Bool[Tensor, "B L"], count: Int[Tensor, " B"]
) -> tuple[Float[Tensor, "B L d"], Int[Tensor, " B"]]:
    """Σ_{k<=i} J[:, k mod T] x_k over the real tokens of each row, and the number of tokens in each row afterwards.

    Args:
        blocks: J_t for each token of the concept.
        x: The embeddings of the new positions.
        real: Which positions hold a token and not padding.
        count: Tokens in each row before.

    """
    T, d, _ = blocks.shape
    wide = torch.promote_types(blocks.dtype, torch.float32)
    k = count[:, None] + real.long().cumsum(1) - 1
    y = torch.zeros(*x.shape[:2], d, dtype=wide, device=blocks.device)
    for t in (k[real] % T).unique().tolist():
        here = real & (k % T == t)
        y[here] = (x.to(blocks)[here] @ blocks[t].T).to(wide)
    return y.cumsum(1), count + real.long().sum(1)


def real_positions(mask: Any, rows: int, length: int, before: int) -> Bool[Tensor, "B L"]:
    """Which new positions hold a token and not padding, according to the attention mask of a pass.

    Args:
        mask: A number for each position so far; or, with static caches, what each new position attends to. Padding does
            not attend to itself.
        rows: Rows of the batch.
        length: New positions.
        before: Earlier positions.

    Raises:
        BadArgument: The mask is neither.

    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", mask)
    if mask is None:
        return torch.ones(rows, length, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= length:
        return mask[:, -length:].bool().expand(rows, -1)
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-1] >= before + length:
        new = torch.arange(length, device=mask.device)
        own = mask[:, 0, new, before + new]
        return (own if own.dtype == torch.bool else own == 0).expand(rows, -1)
    got = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    raise BadArgument("An attention mask must say which positions are padding", got, "Give one with two axes.")


@contextmanager
def following(model: nn.Module, embedding: nn.Module, blocks: Float[Tensor, "T d n"] | None) -> Iterator[Passes]:
    """Follow the passes of a model in this thread. When the block ends, no hook or attribute is left."""
    passes = Passes(model, blocks)
    try:
        with (
            observing_inputs([model], passes.begin),
            replacing_outputs([model], passes.ended, always=True),
            replacing_outputs([embedding], passes.embedded),
        ):
            yield passes
    finally:
        for cache in list(passes.sums_of):
            _leave(cache, passes)


# ------------------------------------------------------------------------------------------------ caches


def _cache(given: Any) -> Any:
    """The cache among the inputs or outputs of a pass."""
    return next((given[name] for name in CACHES if given.get(name) is not None), None)


def _follows(value: Any) -> bool:
    """Whether a value is a cache whose rows can be followed, and not a bare list of states."""
    return hasattr(value, "reorder_cache")


def _length(cache: Any) -> int | None:
    """The number of positions in a cache; None for a state that has seen some but does not count them.

    Raises BadArgument if the cache tells neither.
    """
    for said in (lambda: int(cache.get_seq_length()), lambda: None if cache.has_previous_state() else 0):
        try:
            return said()
        except (AttributeError, ValueError):  # a cache of states only has no length
            continue
    raise BadArgument(
        "A steered pass must resume from a cache that counts its positions", type(cache).__name__,
        "Generate with use_cache=False.",
    )  # fmt: skip


ROW_CHANGES = ("reorder_cache", "batch_repeat_interleave", "batch_select_indices", "crop")
"""What generation does to the rows of its cache."""

_FOLLOWED: weakref.WeakKeyDictionary[Any, list[Passes]] = weakref.WeakKeyDictionary()


class _NotifyingMethod:
    """A cache's own method that notifies its followers; a copy of the cache gets the method without them."""

    def __init__(self, cache: Any, name: str) -> None:
        self.cache, self.name = weakref.ref(cache), name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the method, and notifies the followers."""
        cache = self.cache()
        result = getattr(type(cache), self.name)(cache, *args, **kwargs)
        for passes in _FOLLOWED.get(cache, ()):
            passes.changed(cache, self.name, [*args, *kwargs.values()][0])
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> _NotifyingMethod:
        return _NotifyingMethod(memo[id(self.cache())], self.name)


def _follow(cache: Any, passes: Passes) -> None:
    followers = _FOLLOWED.setdefault(cache, [])
    if not followers:
        vars(cache).update({name: _NotifyingMethod(cache, name) for name in ROW_CHANGES if hasattr(cache, name)})
    followers.append(passes)


def _leave(cache: Any, passes: Passes) -> None:
    followers = _FOLLOWED[cache]
    followers.remove(passes)
    if not followers:
        del _FOLLOWED[cache]
        for name in ROW_CHANGES:
            vars(cache).pop(name, None)
