"""A causal language model with its tokenizer, and where its parts are."""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from secant import weights
from secant.errors import BadArgument, BadPrompt, ModelRefused, TrainingMode
from secant.foreign import COMPILED
from secant.hooks import answering

Prompt = str | Sequence[SupportsIndex] | Tensor | Sequence[Mapping[str, str]]

SPACE = "·"
"""How a space is shown in a token."""

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class LM:
    """A causal language model and its tokenizer, as they are in memory; nothing of them is changed.

    Raises ModelRefused where there is no embedding or head, BadWeights at NaN or infinity.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(default=None, repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        is_model = isinstance(self.model, nn.Module) and hasattr(self.model, "get_output_embeddings")
        if not is_model:
            raise ModelRefused(
                "A model is a transformers causal LM", type(self.model).__name__, "Load it with AutoModelForCausalLM."
            )
        head = self.model.get_output_embeddings()
        if self.model.get_input_embeddings() is None or getattr(head, "weight", None) is None:
            raise ModelRefused(
                "A causal LM has input embeddings and a head over its vocabulary",
                type(self.model).__name__,
                "Load it with AutoModelForCausalLM, not AutoModel.",
            )
        if self.model.config.is_encoder_decoder:
            raise ModelRefused(
                "A model must be a decoder by itself", f"{type(self.model).__name__}, which has an encoder too",
                "Choose a causal LM; an encoder's part in the answer is not a map of the prompt alone.",
            )  # fmt: skip
        if any(type(module).__name__ == "OptimizedModule" for module in self.model.modules()):
            raise ModelRefused(*COMPILED)
        weights.check(self.model)
        if not self.name:
            object.__setattr__(self, "name", self.model.config.name_or_path or type(self.model).__name__)

    @property
    def head(self) -> nn.Module:
        """The module over the vocabulary; its weight is `[vocabulary, d]`."""
        return self.model.get_output_embeddings()

    @property
    def embedding(self) -> Float[Tensor, "vocabulary d"]:
        """The input embeddings, a row each token."""
        return weights.of(self.model.get_input_embeddings())

    @property
    def unembedding(self) -> Float[Tensor, "vocabulary d"]:
        """The head's weight, a row each token."""
        return weights.of(self.model.get_output_embeddings())

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        return weights.device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """The type the model computes in."""
        return self.model.dtype

    @property
    def attention(self) -> str:
        """The attention implementation in use."""
        return self.model.config._attn_implementation or "own"

    @property
    def ends(self) -> set[int]:
        """The tokens that end a text, as the model's own generation has them."""
        config = getattr(self.model, "generation_config", None) or self.model.config
        found = getattr(config, "eos_token_id", None)
        return set() if found is None else {found} if isinstance(found, int) else set(found)

    @property
    def context(self) -> int | None:
        """The longest prompt that the model takes, if it says so: its positions, and as far as they are stretched."""
        config = self.model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None)
        if longest is None or longest <= 0:  # XLNet's -1 is no limit
            return None
        rope = getattr(config, "rope_parameters", None) or {}
        kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict)]  # of all layers, or by their type
        return max(longest, *(_stretched(kind, longest) for kind in kinds), 0)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a text, of ids, or of chat messages through the tokenizer's template. Raises BadPrompt."""
        ids = self._ids(prompt)
        if not ids:
            raise BadPrompt("A prompt has at least one token", "an empty one", "Give some text.")
        if self.context is not None and len(ids) > self.context:
            raise BadPrompt(
                f"A prompt has at most the model's context of {self.context} tokens", f"{len(ids)}", "Shorten it."
            )
        vocabulary = self.size
        if outside := [i for i in ids if not 0 <= i < vocabulary]:
            raise BadPrompt(f"Token ids are 0 to {vocabulary - 1}", f"{outside[0]}", "Use this model's own tokenizer.")
        return ids

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, Tensor):
            if prompt.ndim > 2 or (prompt.ndim == 2 and len(prompt) > 1):
                raise BadPrompt("A prompt is one sequence of ids", f"shape {tuple(prompt.shape)}", "Give one row.")
            prompt = prompt.flatten().tolist()
        if not isinstance(prompt, str):
            if not isinstance(prompt, Iterable):
                raise BadPrompt("A prompt is a text, token ids, or chat messages", repr(prompt)[:60], "Give one.")
            prompt = list(prompt)
            if all(hasattr(i, "__index__") and not isinstance(i, bool) for i in prompt):
                return [operator.index(i) for i in prompt]
        if self.tokenizer is None:
            raise BadPrompt("A prompt of words needs a tokenizer", "a model without one", "Give token ids.")
        if isinstance(prompt, str):
            return self._of_text(prompt)
        if not all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in prompt):
            raise BadPrompt(
                "A prompt is a text, token ids, or chat messages with role and content", repr(prompt)[:60], "Give one."
            )
        if self.tokenizer.chat_template is None:
            raise BadPrompt(
                "Chat messages need a tokenizer with a chat template", self.name, "Give the prompt as text."
            )
        out = self.tokenizer.apply_chat_template(
            [dict(m) for m in prompt],
            add_generation_prompt=True,
            return_dict=True,
        )
        return list(out["input_ids"])

    def _of_text(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            with quiet():
                encoded = self.tokenizer(text, return_special_tokens_mask=True)
        except (TypeError, UnicodeError) as error:
            raise BadPrompt("A prompt is text in Unicode", "bytes that are none", "Give it as UTF-8.") from error
        unknown, ids = self._unknown, list(encoded["input_ids"])
        own = [i for i, special in zip(ids, encoded["special_tokens_mask"], strict=True) if not special]
        if unknown is not None and unknown in own and self.tokenizer.convert_ids_to_tokens(unknown) not in text:
            words = dict.fromkeys(text.split())
            bad = [w for w in words if unknown in self.tokenizer(w, add_special_tokens=False)["input_ids"]]
            raise BadPrompt(
                "Every word must be in the model's vocabulary",
                ", ".join(map(repr, bad[:5])) or "spaces that are not",
                "Use words that the model knows, spaced as it knows them; from Python, token ids do as well.",
            )
        return ids

    def spans(self, text: str) -> list[tuple[int, int]] | None:
        """Which characters of a text each of its tokens is of, from and to before; of a token of none, equal ones.

        None where the tokenizer does not say. Raises BadPrompt.
        """
        ids = self.encode(text)
        if not getattr(self.tokenizer, "is_fast", False):
            return None
        with quiet():
            encoded = self.tokenizer(text, return_offsets_mapping=True)
        return [(int(lo), int(hi)) for lo, hi in encoded["offset_mapping"]] if encoded["input_ids"] == ids else None

    @cached_property
    def _unknown(self) -> int | None:
        """The token that stands for what the vocabulary does not have, declared or only known to the backend."""
        if self.tokenizer.unk_token_id is not None:
            return self.tokenizer.unk_token_id
        backend = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "model", None)
        piece = getattr(backend, "unk_token", None)
        return None if piece is None else self.tokenizer.convert_tokens_to_ids(piece)

    def text(self, token: int) -> str:
        """The text of one token, with the space that it begins with."""
        if self.tokenizer is None:
            return str(token)
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return f"<{token}>"  # a row of the embedding that the tokenizer does not name
        shown = self.tokenizer.decode([token])
        if "\N{REPLACEMENT CHARACTER}" in shown:
            return str(piece)
        if str(piece).startswith("\N{LOWER ONE EIGHTH BLOCK}") and not shown.startswith(" "):
            return " " + shown
        return shown or str(piece)

    def token(self, text: str | SupportsIndex) -> int:
        """The id of a token given by its text, as `text` gives it, or by its id, as a number or as "#12".

        A leading space may be left out, or stand where the token has none, as long as only one token fits.
        Raises BadPrompt where none or several do.
        """
        if not isinstance(text, str):
            return self.encode([text])[0]
        bare = text.replace(SPACE, " ").removeprefix(" ")
        if not text:
            raise BadPrompt("A target is one token of the vocabulary", "an empty text", "Give its text, or its id.")
        if re.fullmatch(r"#\d+", text) and text not in self.vocabulary:
            return self.encode([int(text[1:])])[0]
        fitting = [candidate for candidate in (bare, " " + bare) if candidate in self.vocabulary]
        exact = text.replace(SPACE, " ")
        if exact.startswith(" ") and exact in fitting:
            return self.vocabulary[exact]
        if len(fitting) == 1:
            return self.vocabulary[fitting[0]]
        got = f"{text!r}, which is two: {fitting[0]!r} and {fitting[1]!r}" if fitting else repr(text)
        raise BadPrompt(
            "A target is one token of the vocabulary", got, "Give its text with its space, or its id, as #12."
        )

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token text; where two tokens read the same, the lower id."""
        return {text: self.size - 1 - i for i, text in enumerate(reversed(self.texts))}

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token."""
        return [self.text(i) for i in range(self.size)]

    def ready(self) -> None:
        """Raises TrainingMode unless the whole model is in evaluation mode, BadArgument under autocast and where
        attention is a fused kernel, NotExact where layers round their activations.
        """
        if any(module.training for module in self.model.modules()):
            raise TrainingMode("A model must be in evaluation mode", "training mode", "Call model.eval() first.")
        if torch.is_autocast_enabled(self.device.type):
            raise BadArgument("A pass runs in the model's own type", "autocast", "Load the model in that dtype.")
        weights.check_kernels(self.model, self.dtype)
        if any(kernel in self.attention for kernel in ("flash", "flex", "paged", "/")):
            raise BadArgument(
                "Attention is computed by torch functions, as eager and sdpa are", f"{self.attention}, a fused kernel",
                'Call model.set_attn_implementation("sdpa").',
            )  # fmt: skip

    def embed(self, ids: Sequence[int]) -> Float[Tensor, "T d"]:
        """What the embedding layer gives for these tokens."""
        layer = self.model.get_input_embeddings()
        return layer(self._tensor(ids))[0].detach()

    def logits(self, ids: Sequence[int]) -> Float[Tensor, "T vocabulary"]:
        """The plain model's logits at every position."""
        with torch.no_grad():
            return self.model(input_ids=self._tensor(ids), use_cache=False).logits[0]

    def forward(self, ids: Sequence[int], embeds: Float[Tensor, "T d"]) -> Float[Tensor, "1 positions vocabulary"]:
        """The model's logits with given embeddings in place of these tokens' own, whatever graph or mode is in force.

        What else the model makes of the tokens (positions, embeddings for each layer, routes by token) stays theirs.
        """
        tokens = self._tensor(ids)

        def embedded(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor | None:
            """The given embeddings for these tokens; what the model puts before or after them keeps its own."""
            given = (args[0] if args else next(iter(kwargs.values()))).flatten().long()
            if len(given) < len(ids) or out.numel() != len(given) * embeds.shape[-1]:
                return None
            places = (given.unfold(0, len(ids), 1) == tokens).all(-1).nonzero().flatten().tolist()
            if len(places) != 1:
                return None
            rows = out.detach().reshape(len(given), -1)
            return torch.cat([rows[: places[0]], embeds, rows[places[0] + len(ids) :]]).view(out.shape)

        with answering([self.model.get_input_embeddings()], embedded):
            return self.model(input_ids=tokens, use_cache=False).logits

    def _tensor(self, ids: Sequence[int]) -> Int[Tensor, "1 T"]:
        return torch.tensor([list(ids)], device=self.device)


STRETCHING = ("dynamic", "linear", "yarn")
"""Rotary positions that a factor stretches beyond those of the training."""


def _stretched(rope: Mapping[str, Any], longest: int) -> int:
    """How far rotary positions reach that a factor stretches; 0 of others."""
    if rope.get("rope_type") not in STRETCHING:
        return 0
    return int((rope.get("original_max_position_embeddings") or longest) * (rope.get("factor") or 1))


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The torch dtype of a name. Raises BadArgument."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype in DTYPES.values()):
        return dtype
    if dtype in DTYPES:
        return DTYPES[dtype]
    raise BadArgument(f"A dtype is one of {', '.join(DTYPES)}", repr(dtype), "Choose one of them.")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {"secant": version("secant"), "torch": torch.__version__, "transformers": version("transformers")}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' chatter to themselves; what matters of it is checked and raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
