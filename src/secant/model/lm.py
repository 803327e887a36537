"""A causal language model with its tokenizer, and access to its embedding, head and vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from secant.arguments import NOTHING, token_text
from secant.errors import BadArgument, BadPrompt, ModelRefused, TrainingMode, quoted
from secant.foreign import COMPILED
from secant.memory import stopping_point
from secant.model import weights
from secant.model.encoding import SPACE, encode, encoded, find
from secant.model.hooks import replacing_outputs
from secant.model.tokens import Tokens, as_id
from secant.text import count

Prompt = str | Sequence[SupportsIndex] | Tensor | Sequence[Mapping[str, str]]

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False, repr=False)
class LM:
    """A causal language model and its tokenizer, already in memory; neither is changed.

    Attributes:
        model: A transformers causal LM, taken out of DataParallel or DistributedDataParallel.
        tokenizer: Its tokenizer; None for a model that is given token ids.
        name: Its name; by default the one in its configuration.

    Raises:
        ModelRefused: The model has no embedding or head, has an encoder, or is compiled.
        BadWeights: A weight is NaN or infinite, or has a type that models do not multiply with.

    """

    model: Any
    tokenizer: Any = None
    name: str = ""

    def __post_init__(self) -> None:
        while isinstance(self.model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            object.__setattr__(self, "model", self.model.module)  # they spread batches, which a prompt does not need
        is_model = isinstance(self.model, nn.Module) and hasattr(self.model, "get_output_embeddings")
        if type(self.model).__name__ == "OptimizedModule":
            raise ModelRefused(*COMPILED)
        if not is_model:
            raise ModelRefused(
                "A model must be a transformers causal LM",
                type(self.model).__name__,
                "Load it with AutoModelForCausalLM.",
            )
        head = self.model.get_output_embeddings()
        if self.model.get_input_embeddings() is None or getattr(head, "weight", None) is None:
            raise ModelRefused(
                "A causal LM must have input embeddings and a head over its vocabulary",
                type(self.model).__name__,
                "Load it with AutoModelForCausalLM, not AutoModel.",
            )
        if self.model.config.is_encoder_decoder:
            raise ModelRefused(
                "A model must be a decoder without an encoder", f"{type(self.model).__name__}, which has one",
                "Choose a causal LM; an encoder's output is not a map of the prompt alone.",
            )  # fmt: skip
        if any(type(module).__name__ == "OptimizedModule" for module in self.model.modules()):
            raise ModelRefused(*COMPILED)
        weights.check(self.model)
        if not self.name:
            object.__setattr__(self, "name", self.model.config.name_or_path or type(self.model).__name__)

    def __repr__(self) -> str:
        kind = type(self.model).__name__
        return f"LM({self.name}, {kind}, {count(self.size, 'token')}, {self.dtype}, {self.device})"

    @property
    def head(self) -> nn.Module:
        """The module over the vocabulary; its weight is `[vocabulary, d]`."""
        return self.model.get_output_embeddings()

    @property
    def embedding(self) -> Float[Tensor, "vocabulary d"]:
        """The input embeddings, one row for each token."""
        return weights.of(self.model.get_input_embeddings())

    @property
    def unembedding(self) -> Float[Tensor, "vocabulary d"]:
        """The head's weight, one row for each token."""
        return weights.of(self.model.get_output_embeddings())

    @property
    def size(self) -> int:
        """The number of input tokens: rows of the embedding."""
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def outputs(self) -> int:
        """The number of output tokens: rows of the head. It can differ from `size`."""
        head = self.model.get_output_embeddings()
        return head.out_features if weights.kind_of(head) in weights.PACKED else head.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the embedding."""
        return weights.device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""
        return self.model.dtype

    @property
    def attention(self) -> str:
        """The attention implementation in use."""
        return self.model.config._attn_implementation or "own"

    @property
    def ends(self) -> set[int]:
        """The tokens that end a text in the model's own generation. Raises ModelRefused."""
        config = getattr(self.model, "generation_config", None) or self.model.config
        found = getattr(config, "eos_token_id", None)
        ids = [] if found is None else found if isinstance(found, list | tuple) else [found]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise ModelRefused(
                "An end token is a token id, or several", f"eos_token_id = {found!r}",
                "Correct the model's generation_config.json, or its config.json.",
            )  # fmt: skip
        return set(ids)

    @property
    def context(self) -> int | None:
        """The longest prompt that the model takes, including rotary scaling; None if it does not say."""
        config = self.model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None)
        if longest is None or longest <= 0:  # XLNet's -1 means no limit
            return None
        rope = getattr(config, "rope_parameters", None) or {}
        kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict)]  # one for all layers, or by type
        return max(longest, *(_stretched(kind, longest) for kind in kinds), 0)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: A text, token ids, or chat messages, which go through the tokenizer's chat template.

        Raises:
            BadPrompt: The prompt is empty, too long, or not encoded in full.
            ModelRefused: The tokenizer does not work.

        """
        ids = encode(self.tokens, prompt)
        if not ids:
            raise BadPrompt(*NOTHING)
        if self.context is not None and len(ids) > self.context:
            raise BadPrompt(
                f"A prompt has at most the model's context of {self.context} tokens", f"{len(ids)}", "Shorten it."
            )
        rows = self.size
        return [self._row(i, rows) for i in ids]

    @cached_property
    def tokens(self) -> Tokens:
        """The tokenizer, with its errors explained."""
        return Tokens(self.tokenizer, self.name)

    def spans(self, text: str) -> list[tuple[int, int]] | None:
        """The characters of a text that each of its tokens covers, as pairs (start, end); start = end for a token that
        covers none.

        Args:
            text: The text.

        Returns:
            The pairs, or None if the tokenizer does not report them.

        Raises:
            BadPrompt: The text is not encoded in full.

        """
        self.encode(text)
        return encoded(self.tokens, text).spans

    def text(self, token: SupportsIndex) -> str:
        """The text of one token, with its leading space; bytes that are not a character are written like <0xE8>.

        Args:
            token: The token's id.

        Raises:
            BadPrompt: There is no such token.

        """
        return self.tokens.texts([self._row(token, max(self.size, self.outputs))])[0]

    def token(self, text: str | SupportsIndex, side: Literal["output", "input"] = "output") -> int:
        """The id of a token.

        Args:
            text: The token's text, as `LM.text` returns it, or its id as a number or like "#12". A leading space may be
                missing or superfluous, as long as only one token fits. If several tokens read the same, it is the one
                that the tokenizer writes.
            side: Whether the token is an output of the model, such as a target, or an input.

        Raises:
            BadPrompt: No token fits, or several do; the message lists them.

        """
        rows = self.outputs if side == "output" else self.size
        if not isinstance(text, str):
            return self._row(text, rows)
        if re.fullmatch(r"#[0-9]{1,18}", token_text(text)):
            return self._row(int(text[1:]), rows)
        return find(self.tokens, text, self.vocabulary, rows)

    def spelled(self, word: str) -> list[int]:
        """The tokens that read like a word, with or without a leading space, or the one token of "#12". Raises
        BadPrompt.
        """
        if re.fullmatch(r"#[0-9]{1,18}", word):
            return [self.token(word)]
        wanted = {word.strip(" "), word.replace(SPACE, " ").strip(" ")} - {""}
        found = [i for i, text in enumerate(self.texts[: self.outputs]) if text.strip(" ") in wanted]
        return found or [self.token(word)]

    def _row(self, token: Any, rows: int) -> int:
        """The id of a token below `rows`. Raises BadPrompt."""
        found = as_id(token)
        if found is None or not 0 <= found < rows:
            raise BadPrompt(f"Token ids are 0 to {rows - 1}", quoted(token), "Use this model's own tokenizer.")
        return found

    @cached_property
    def vocabulary(self) -> dict[str, list[int]]:
        """The ids of each token text."""
        found: dict[str, list[int]] = {}
        for i, text in enumerate(self.texts):
            found.setdefault(text, []).append(i)
        return found

    @cached_property
    def texts(self) -> list[str]:
        """The text of every input and output token."""
        return self.tokens.texts(range(max(self.size, self.outputs)))

    def ready(self) -> None:
        """Check that a pass through the model is deterministic and consists of torch functions.

        Raises:
            TrainingMode: A module is in training mode.
            BadArgument: Autocast is on, or attention is a fused kernel.
            NotExact: Layers round their activations.

        """
        if any(module.training for module in self.model.modules()):
            raise TrainingMode("A model must be in evaluation mode", "training mode", "Call model.eval() first.")
        if torch.is_autocast_enabled(self.device.type):
            raise BadArgument("A pass must run in the model's own dtype", "autocast", "Load the model in that dtype.")
        weights.check_kernels(self.model, self.dtype)
        if any(kernel in self.attention for kernel in ("flash", "flex", "paged", "/")):
            raise BadArgument(
                "Attention must consist of torch functions, like eager and sdpa", f"{self.attention}, a fused kernel",
                'Call model.set_attn_implementation("sdpa").',
            )  # fmt: skip

    def embed(self, ids: Sequence[int]) -> Float[Tensor, "T d"]:
        """The embedding layer's output for these tokens."""
        layer = self.model.get_input_embeddings()
        return layer(self._tensor(ids))[0].detach()

    def logits(self, ids: Sequence[int]) -> Float[Tensor, "T vocabulary"]:
        """The logits of the unmodified model at every position."""
        stopping_point()
        with torch.no_grad():
            return self.model(input_ids=self._tensor(ids), use_cache=False).logits[0]

    def forward(
        self, ids: Sequence[int], embeds: Float[Tensor, "T n"], copies: int = 1
    ) -> Float[Tensor, "copies positions vocabulary"]:
        """The model's logits for these tokens with different embeddings, whatever graph or mode is active.

        Everything else that the model derives from tokens (positions, per-layer embeddings, routing by token) stays as
        it is.

        Args:
            ids: The tokens.
            embeds: The embeddings that replace those of the tokens; several copies are laid out as by `by_token`.
            copies: How many copies of the prompt run as one batch, each with embeddings of its own.

        """
        tokens = self._tensor(ids)

        def embedded(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor | None:
            """The given embeddings for these tokens; tokens that the model adds around them keep their own."""
            given = (args[0] if args else next(iter(kwargs.values()))).reshape(copies, -1)[0].long()
            if len(given) < len(ids) or out.numel() != len(given) * embeds.shape[-1]:
                return None
            places = (given.unfold(0, len(ids), 1) == tokens).all(-1).nonzero().flatten().tolist()
            if len(places) != 1:
                return None
            rows = out.detach().reshape(copies, len(given), -1)
            own = embeds.view(len(ids), -1, copies).movedim(-1, 0)
            return torch.cat([rows[:, : places[0]], own, rows[:, places[0] + len(ids) :]], dim=1).view(out.shape)

        with replacing_outputs([self.model.get_input_embeddings()], embedded):
            return self.model(input_ids=tokens.expand(copies, -1), use_cache=False).logits

    def _tensor(self, ids: Sequence[int]) -> Int[Tensor, "1 T"]:
        return torch.tensor([list(ids)], device=self.device)


STRETCHING = ("dynamic", "linear", "yarn")
"""Types of rotary embeddings whose factor extends the context beyond that of training."""


def _stretched(rope: Mapping[str, Any], longest: int) -> int:
    """The context that rotary embeddings with a factor extend to; 0 for other types."""
    if rope.get("rope_type") not in STRETCHING:
        return 0
    return int((rope.get("original_max_position_embeddings") or longest) * (rope.get("factor") or 1))


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The torch dtype with a name; None for None.

    Args:
        dtype: A name in DTYPES, or a torch dtype.

    Raises:
        BadArgument: It is neither.

    """
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype in DTYPES.values()):
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise BadArgument(f"A dtype is one of {', '.join(DTYPES)}", quoted(dtype), "Choose one of them.")


def versions() -> dict[str, str]:
    """The versions of secant, torch and transformers, on which a result depends."""
    return {"secant": version("secant"), "torch": torch.__version__, "transformers": version("transformers")}
