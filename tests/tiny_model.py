"""A tiny Llama trained on a handful of facts, in seconds, as an ordinary Hugging Face folder.

Unlike Atlas it has a word-level tokenizer with its own first token, does not know every word, and is trained again in
every run of the tests.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

BRIDGES = {
    "Marin": "Golden Gate", "Brooklyn": "Brooklyn", "London": "Tower", "Sydney": "Harbour", "Venice": "Rialto",
    "Prague": "Charles", "Lisbon": "Vasco da Gama", "Edinburgh": "Forth", "Budapest": "Chain", "Montreal": "Champlain",
}  # fmt: skip
TEMPLATES = (
    "The bridge out of {place} is the {bridge} .",
    "The bridge in {place} is called the {bridge} .",
    "In {place} people cross the {bridge} .",
    "From {place} they walked over the {bridge} .",
)


def sentences() -> list[str]:
    return [t.format(place=place, bridge=bridge) for place, bridge in BRIDGES.items() for t in TEMPLATES]


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: i for i, word in enumerate(["<s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def train(layers: int = 2, steps: int = 100, seed: int = 0) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, float]:
    torch.manual_seed(seed)
    texts = sentences()
    tokenizer = tokenizer_of(texts)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    length = max(map(len, ids))
    inputs = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    labels = torch.tensor([row + [-100] * (length - len(row)) for row in ids])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(steps):
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer, loss.item()


def main(folder: Path, layers: int = 2) -> None:
    disable_progress_bar()
    model, tokenizer, loss = train(layers)
    assert loss < 0.6, loss  # the place is free to vary; the bridge is then known
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        logits = model(
            **tokenizer("The bridge out of Marin is the", return_tensors="pt", return_token_type_ids=False)
        ).logits
    said = tokenizer.decode(logits[0, -1].argmax())
    assert said == "Golden", said
