"""A causal language model with its tokenizer, and where its parts are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from secant.errors import BadArgument, BadPrompt, ModelRefused, TrainingMode
from secant.foreign import COMPILED
from secant.model import weights
from secant.model.encoding import SPACE, encode, encoded, find
from secant.model.hooks import answering
from secant.model.tokens import Tokens, as_id

Prompt = str | Sequence[SupportsIndex] | Tensor | Sequence[Mapping[str, str]]

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
        """How many tokens can go in: rows of the embedding."""
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def outputs(self) -> int:
        """How many tokens can come out: rows of the head, which may have more than the embedding, or fewer."""
        head = self.model.get_output_embeddings()
        return head.out_features if weights.kind_of(head) in weights.PACKED else head.weight.shape[0]

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
        """The tokens that end a text, as the model's own generation has them. Raises ModelRefused."""
        config = getattr(self.model, "generation_config", None) or self.model.config
        found = getattr(config, "eos_token_id", None)
        ids = [] if found is None else found if isinstance(found, list | tuple) else [found]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise ModelRefused(
                "What ends a text is a token id, or several", f"eos_token_id = {found!r}",
                "Mend the model's generation_config.json, or its config.json.",
            )  # fmt: skip
        return set(ids)

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
        """Token ids of a text, of ids, or of chat messages through the tokenizer's template.

        Raises BadPrompt, and ModelRefused where the tokenizer does not work.
        """
        ids = encode(self.tokens, prompt)
        if not ids:
            raise BadPrompt("A prompt has at least one token", "an empty one", "Give some text.")
        if self.context is not None and len(ids) > self.context:
            raise BadPrompt(
                f"A prompt has at most the model's context of {self.context} tokens", f"{len(ids)}", "Shorten it."
            )
        rows = self.size
        return [self._row(i, rows) for i in ids]

    @cached_property
    def tokens(self) -> Tokens:
        """The tokenizer, as it is asked here."""
        return Tokens(self.tokenizer, self.name)

    def spans(self, text: str) -> list[tuple[int, int]] | None:
        """Which characters of a text each of its tokens is of, from and to before; of a token of none, equal ones.

        None where the tokenizer does not say. Raises BadPrompt.
        """
        self.encode(text)
        return encoded(self.tokens, text).spans

    def text(self, token: SupportsIndex) -> str:
        """The text of one token, with the space that it begins with; bytes that are no character as <0xE8>.

        Raises BadPrompt where there is no such token.
        """
        return self.tokens.texts([self._row(token, max(self.size, self.outputs))])[0]

    def token(self, text: str | SupportsIndex, side: Literal["output", "input"] = "output") -> int:
        """The id of a token given by its text, as `text` gives it, or by its id, as a number or as "#12".

        A leading space may be left out, or stand where the token has none, as long as only one token fits. Where
        several read the same it is the one that the tokenizer writes. `side`: whether it comes out of the model, as
        a target, or goes in. Raises BadPrompt where none fits, or several do, and says which.
        """
        rows = self.outputs if side == "output" else self.size
        if not isinstance(text, str):
            return self._row(text, rows)
        if not text:
            raise BadPrompt("A target is one token of the vocabulary", "an empty text", "Give its text, or its id.")
        if re.fullmatch(r"#[0-9]{1,18}", text):
            return self._row(int(text[1:]), rows)
        return find(self.tokens, text, self.vocabulary, rows)

    def spelled(self, word: str) -> list[int]:
        """The tokens that read as a word, with or without a space before it, or that of "#12". Raises BadPrompt."""
        if re.fullmatch(r"#[0-9]{1,18}", word):
            return [self.token(word)]
        wanted = {word.strip(" "), word.replace(SPACE, " ").strip(" ")} - {""}
        found = [i for i, text in enumerate(self.texts[: self.outputs]) if text.strip(" ") in wanted]
        return found or [self.token(word)]

    def _row(self, token: Any, rows: int) -> int:
        """The id of a token of so many. Raises BadPrompt."""
        found = as_id(token)
        if found is None or not 0 <= found < rows:
            raise BadPrompt(f"Token ids are 0 to {rows - 1}", f"{token!r}"[:60], "Use this model's own tokenizer.")
        return found

    @cached_property
    def vocabulary(self) -> dict[str, list[int]]:
        """The ids of each token text: of all tokens that read so."""
        found: dict[str, list[int]] = {}
        for i, text in enumerate(self.texts):
            found.setdefault(text, []).append(i)
        return found

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token, of those that go in and those that come out."""
        return self.tokens.texts(range(max(self.size, self.outputs)))

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
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise BadArgument(f"A dtype is one of {', '.join(DTYPES)}", repr(dtype), "Choose one of them.")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {"secant": version("secant"), "torch": torch.__version__, "transformers": version("transformers")}
