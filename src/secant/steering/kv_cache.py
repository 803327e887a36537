"""What an operator gives for texts that go through a model: a_i = Σ_{k<=i} J[:, k mod T] x_k, pass after pass.

A generation with a cache sends only new tokens through the model. What the sums have come to is kept for each row of
the batch, with the cache that stands for the same tokens, and follows what the generation does to its rows: beams that
are reordered, rows that are repeated or selected. Padding adds nothing and is not counted in k.
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
from secant.model.hooks import answering, before

CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""The names by which models take, and give, what they keep from one pass to the next."""

CUT = -1
"""The length of a memory whose cache has lost tokens since."""

UNKNOWN = "Generate from the beginning, without assisted decoding; use_cache=False always works."


@dataclass(frozen=True, eq=False)
class Memory:
    """The sums of each row up to here, how many tokens are in them, and how many positions went by, padding too."""

    total: Float[Tensor, "B d"]
    count: Int[Tensor, " B"]
    length: int

    def rows(self, index: Int[Tensor, " rows"]) -> Memory:
        """Those of some rows, in their order."""
        index = index.to(self.total.device)
        return Memory(self.total[index], self.count[index], self.length)


class Passes:
    """The passes of a model, and the sums of the one that is under way.

    `blocks[t]` is J_t; with None there are no sums, and only calls of the layer's module are counted.
    """

    def __init__(self, model: nn.Module, blocks: Float[Tensor, "T d n"] | None) -> None:
        self.blocks = blocks
        self.names = list(inspect.signature(model.forward).parameters)
        self.memories: weakref.WeakKeyDictionary[Any, Memory] = weakref.WeakKeyDictionary()
        self.given: dict[str, Any] | None = None  # None where no pass is under way
        self.x: Tensor | None = None
        self.memory: Memory | None = None
        self.calls = 0

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A pass begins. Raises BadArgument where it goes on from a cache whose sums are not known, or is compiled."""
        if torch.compiler.is_compiling():
            raise BadArgument("A steered pass is plain torch", "a compiled one", "Generate with disable_compile=True.")
        self.given, self.calls = None, 0
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if self.blocks is not None:
            self.memory, self.x = self._remembered(_cache(given)), given.get("inputs_embeds")
        self.given = given

    def embedded(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """The embedding has given a value: x, where it is of the tokens of the pass."""
        ids = None if self.given is None else self.given.get("input_ids")
        if self.x is None and isinstance(ids, Tensor) and out.shape[:2] == ids.shape:
            self.x = out

    def ended(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """The pass has ended, with None where it has failed; its cache stands for what the sums have come to."""
        given, self.given = self.given, None
        if self.blocks is None or given is None or out is None:
            return
        found = (_cache(out) if isinstance(out, dict) else next(filter(_follows, out), None), _cache(given))
        for cache in filter(_follows, found):
            if self.memory is not None:
                self._keep(cache, self.memory)

    def reached(self, nth: int) -> bool:
        """Whether this call of the layer's module is the nth of the pass. Raises BadArgument outside of passes."""
        if self.given is None:
            raise BadArgument(
                "A steered model is called as a whole", "a call of a part of it", "Call the model itself, or generate."
            )
        self.calls += 1
        return self.calls == nth

    def sums(self, shape: Sequence[int]) -> Float[Tensor, "B n d"]:
        """a_i for the new tokens of each row of a stream of this shape, after those that went before.

        Raises BadArgument where the model took no embeddings of its tokens.
        """
        x, past, given = self.x, self.memory, self.given
        assert given is not None, "a pass is under way"
        if x is None or x.shape[:2] != shape[:2]:
            raise BadArgument(
                "Steering takes an embedding for each token of the stream",
                f"{'none' if x is None else tuple(x.shape)} for {tuple(shape)}", "Give the model input_ids.",
            )  # fmt: skip
        blocks = self.blocks
        assert blocks is not None, "there are sums"
        rows, length = x.shape[:2]
        wide = torch.promote_types(blocks.dtype, torch.float32)
        if past is None:
            past = Memory(
                blocks.new_zeros(rows, blocks.shape[1], dtype=wide),
                torch.zeros(rows, dtype=torch.long, device=blocks.device),
                0,
            )
        if len(past.count) != rows:
            raise BadArgument("A cache has a row for each text", f"{len(past.count)} for {rows}", UNKNOWN)
        real = counted(given.get("attention_mask"), rows, length, past.length).to(blocks.device)
        a, count = accumulated(blocks, x, real, past.count)
        a = a + past.total[:, None]
        self.memory = Memory(a[:, -1].detach(), count, past.length + length)
        return a

    def _remembered(self, cache: Any) -> Memory | None:
        """The sums that a cache stands for, of a new text None. Raises BadArgument where they are not known."""
        if cache is None or (length := _length(cache)) == 0:
            return None
        memory = self.memories.get(cache)
        if memory is None or memory.length == CUT or length not in (None, memory.length):
            got = "another" if length is None else f"another of {length} tokens"
            raise BadArgument("A steered pass goes on from a cache as it was left by one", got, UNKNOWN)
        return memory

    def _keep(self, cache: Any, memory: Memory) -> None:
        if cache not in self.memories:
            _follow(cache, self)
        self.memories[cache] = memory

    def changed(self, cache: Any, how: str, argument: Any) -> None:
        """Do to the sums what is being done to a cache."""
        memory = self.memories.get(cache)
        if memory is None:
            return
        if how == "crop":  # the sums of less than all are not kept
            self.memories[cache] = replace(memory, length=CUT) if argument else memory
        elif how == "batch_repeat_interleave":
            rows = torch.arange(len(memory.count)).repeat_interleave(argument)
            self.memories[cache] = memory.rows(rows)
        else:
            self.memories[cache] = memory.rows(torch.as_tensor(argument))


def accumulated(
    blocks: Float[Tensor, "T d n"], x: Float[Tensor, "B L n"], real: Bool[Tensor, "B L"], count: Int[Tensor, " B"]
) -> tuple[Float[Tensor, "B L d"], Int[Tensor, " B"]]:
    """Σ_{k<=i} J[:, k mod T] x_k over the tokens that are real, the first being each row's `count`-th; and how many
    there are then.
    """
    T, d, _ = blocks.shape
    wide = torch.promote_types(blocks.dtype, torch.float32)
    k = count[:, None] + real.long().cumsum(1) - 1
    y = torch.zeros(*x.shape[:2], d, dtype=wide, device=blocks.device)
    for t in (k[real] % T).unique().tolist():
        here = real & (k % T == t)
        y[here] = (x.to(blocks)[here] @ blocks[t].T).to(wide)
    return y.cumsum(1), count + real.long().sum(1)


def counted(mask: Any, rows: int, length: int, before: int) -> Bool[Tensor, "B L"]:
    """Which of the new positions hold a token, and not padding, by a pass's attention mask. Raises BadArgument.

    A mask is a number for each position so far, or, as static caches have it, what each new position attends: padding
    does not attend itself.
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
    raise BadArgument("An attention mask says of each position whether it is padding", got, "Give one of two axes.")


@contextmanager
def following(model: nn.Module, embedding: nn.Module, blocks: Float[Tensor, "T d n"] | None) -> Iterator[Passes]:
    """Follow the passes of a model in this thread; nothing is left of it afterwards."""
    passes = Passes(model, blocks)
    try:
        with (
            before([model], passes.begin),
            answering([model], passes.ended, always=True),
            answering([embedding], passes.embedded),
        ):
            yield passes
    finally:
        for cache in list(passes.memories):
            _leave(cache, passes)


# ------------------------------------------------------------------------------------------------ caches


def _cache(given: Any) -> Any:
    """What a pass takes, or gives, to go on from."""
    return next((given[name] for name in CACHES if given.get(name) is not None), None)


def _follows(value: Any) -> bool:
    """Whether it is a cache whose rows can be followed, not a bare list of states."""
    return hasattr(value, "reorder_cache")


def _length(cache: Any) -> int | None:
    """How many positions a cache stands for; None of a state that has seen some and does not say how many.

    Raises BadArgument of one that says neither.
    """
    for said in (lambda: int(cache.get_seq_length()), lambda: None if cache.has_previous_state() else 0):
        try:
            return said()
        except (AttributeError, ValueError):  # of states alone there is no length
            continue
    raise BadArgument(
        "A steered pass goes on from a cache that says what it has seen", type(cache).__name__,
        "Generate with use_cache=False.",
    )  # fmt: skip


CHANGES = ("reorder_cache", "batch_repeat_interleave", "batch_select_indices", "crop")
"""What a generation does to the rows of its cache."""

_FOLLOWED: weakref.WeakKeyDictionary[Any, list[Passes]] = weakref.WeakKeyDictionary()


class _Noticed:
    """A cache's own method that tells those who follow it; what copies the cache copies the method alone."""

    def __init__(self, cache: Any, name: str) -> None:
        self.cache, self.name = weakref.ref(cache), name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the method gives."""
        cache = self.cache()
        result = getattr(type(cache), self.name)(cache, *args, **kwargs)
        for passes in _FOLLOWED.get(cache, ()):
            passes.changed(cache, self.name, [*args, *kwargs.values()][0])
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> _Noticed:
        return _Noticed(memo[id(self.cache())], self.name)


def _follow(cache: Any, passes: Passes) -> None:
    followers = _FOLLOWED.setdefault(cache, [])
    if not followers:
        vars(cache).update({name: _Noticed(cache, name) for name in CHANGES if hasattr(cache, name)})
    followers.append(passes)


def _leave(cache: Any, passes: Passes) -> None:
    followers = _FOLLOWED[cache]
    followers.remove(passes)
    if not followers:
        del _FOLLOWED[cache]
        for name in CHANGES:
            vars(cache).pop(name, None)
