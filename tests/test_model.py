"""Loading and prompts: valid models and prompts are read correctly, and others are refused in one clear line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from families import model_of, prompt
from helpers import real, refused
from torch import nn
from transformers import AutoModelForCausalLM, T5Config, ViTConfig

import secant as sc
from secant.errors import BadArgument, BadPrompt, BadWeights, ModelNotFound, ModelRefused, SecantError

CHAT = "<s> {% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}is the{% endif %}"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def edited(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


# ------------------------------------------------------------------------------------------- loading


def test_load(folder: Path) -> None:
    lm = sc.load(folder)
    assert not lm.model.training
    assert lm.dtype == torch.float32
    assert lm.name == str(folder)
    assert (lm.context, lm.attention) == (64, "sdpa")
    assert lm.embedding.shape == lm.unembedding.shape == (len(lm.tokenizer), 64)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", torch.float16])
def test_load_in_another_dtype(folder: Path, dtype: str | torch.dtype) -> None:
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert sc.load(folder, dtype=dtype).dtype == expected


def test_load_with_another_attention(folder: Path) -> None:
    assert sc.load(folder, attention="eager").attention == "eager"


def test_a_model_in_memory() -> None:
    lm = model_of("llama")
    assert sc.LM(lm.model, None).name == "LlamaForCausalLM"
    assert sc.freeze(sc.LM(lm.model, None), prompt()).tokens == [str(i) for i in prompt()]


def test_no_such_folder_or_model(tmp_path: Path) -> None:
    refused(ModelNotFound, "GGUF file or a name on the Hugging Face hub", tmp_path / "none")
    refused(
        ModelNotFound,
        "not a folder here nor complete in the cache, while the hub may not be asked",
        "someone/something",
    )


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    refused(ModelRefused, "without one", tmp_path)
    (tmp_path / "model.safetensors").touch()
    refused(ModelNotFound, "the file .*; got|got the file", tmp_path / "model.safetensors")
    refused(ModelNotFound, "Check the path", "./nowhere")


def test_a_folder_without_a_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    refused(ModelRefused, "must come with its tokenizer", copy)


@pytest.mark.parametrize(
    ("said", "kind", "match"),
    [
        ("You are trying to access a gated repo. Make sure to have access to it", ModelNotFound, "access token"),
        ("401 Client Error. Cannot access gated repo", ModelNotFound, "access token"),
        (
            "We couldn't connect to 'https://huggingface.co' to load the files",
            ModelNotFound,
            "the hub may not be asked",
        ),
        ("x/y is not a valid model identifier listed on the hub", ModelNotFound, "Check the spelling"),
    ],
)
def test_what_the_hub_says(said: str, kind: type[SecantError], match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*args: object, **kwargs: object) -> None:
        raise OSError(said)

    monkeypatch.setattr("secant.model.loading.cached_file", answer)
    refused(kind, match, "some/model")


def test_a_folder_without_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    refused(ModelRefused, "Weights must be safetensors files", copy)


def test_pickled_weights_are_read_only_if_asked_for(copy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(copy)
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    refused(ModelRefused, "--allow-pickle", copy)
    assert torch.equal(sc.load(copy, allow_pickle=True).embedding, model.get_input_embeddings().weight)


def test_remote_code_is_run_only_if_asked_for(copy: Path) -> None:
    edited(copy, model_type="brand_new", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (copy / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'brand_new'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    refused(ModelRefused, "--allow-remote-code", copy)
    assert type(sc.load(copy, allow_remote_code=True).model).__name__ == "Model"


def test_a_checkpoint_without_its_head_is_refused(copy: Path) -> None:
    AutoModelForCausalLM.from_pretrained(copy).model.save_pretrained(copy)
    edited(copy, tie_word_embeddings=False)
    refused(ModelRefused, "without lm_head.weight", copy)


def test_a_damaged_checkpoint(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(ModelRefused, "complete safetensors files", copy)
    (copy / "config.json").write_text("{")
    refused(ModelRefused, "JSON", copy)


def test_weights_of_another_shape(copy: Path) -> None:
    refused(ModelRefused, "shapes of its configuration", edited(copy, hidden_size=32))


def test_nan_weights(copy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    model.save_pretrained(copy)
    refused(BadWeights, r"model\.layers\.1\.mlp\.up_proj\.weight", copy)


@pytest.mark.parametrize("config", [ViTConfig, T5Config])
def test_a_model_of_another_kind(config: type, tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    refused(ModelRefused, "causal language model", tmp_path)


def test_a_type_that_transformers_does_not_know(copy: Path) -> None:
    refused(ModelRefused, "transformers .* knows", edited(copy, model_type="nonsense"))


def test_a_model_without_a_head() -> None:
    for thing in (model_of("llama").model.model, nn.Linear(3, 3), "llama"):
        with pytest.raises(ModelRefused):
            sc.LM(thing, None)


def test_bad_options(folder: Path) -> None:
    refused(BadArgument, "float64, float32, bfloat16, float16", folder, dtype="int4")
    refused(BadArgument, "device", folder, device="quantum")
    refused(BadArgument, "Attention", folder, attention="psychic")


# ------------------------------------------------------------------------------------------- prompts


def test_text_ids_and_messages(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The bridge out of Marin is the"
    ids = lm.encode(text)
    assert [lm.text(i) for i in ids] == ["<s>", *text.split()]
    assert lm.encode(ids) == lm.encode(tuple(ids)) == lm.encode(torch.tensor(ids)) == ids
    with pytest.raises(BadPrompt, match="chat template"):
        lm.encode([{"role": "user", "content": text}])
    monkeypatch.setattr(lm.tokenizer, "chat_template", CHAT)
    messages = [{"role": "user", "content": "The bridge out of"}, {"role": "user", "content": "Marin"}]
    assert lm.encode(messages) == ids
    assert sc.freeze(lm, messages).tokens == sc.freeze(lm, text).tokens


def test_one_token_works(lm: sc.LM) -> None:
    e = sc.explain(lm, [5])
    assert len(e.svds) == 1
    assert e.run.certificate.reconstruction <= 1e-13


@pytest.mark.parametrize("empty", ["", [], torch.tensor([], dtype=torch.long), ()])
def test_an_empty_prompt(lm: sc.LM, empty: object) -> None:
    with pytest.raises(BadPrompt, match="at least one token"):
        lm.encode(empty)


def test_a_prompt_beyond_the_context(lm: sc.LM) -> None:
    assert len(lm.encode([5] * 64)) == 64
    with pytest.raises(BadPrompt, match="context of 64 tokens; got 65"):
        lm.encode([5] * 65)


def test_ids_from_numpy_and_batches(lm: sc.LM) -> None:
    assert lm.encode(list(np.array([3, 4]))) == lm.encode(torch.tensor([[3, 4]])) == [3, 4]
    with pytest.raises(BadPrompt, match=r"one sequence of ids; got shape \(2, 2\)"):
        lm.encode(torch.tensor([[5, 6], [7, 8]]))


def test_ids_outside_the_vocabulary(lm: sc.LM) -> None:
    for bad in (-1, len(lm.embedding)):
        with pytest.raises(BadPrompt, match=f"got {bad}"):
            lm.encode([1, bad])


def test_unknown_words(lm: sc.LM) -> None:
    with pytest.raises(BadPrompt, match="'Golem'"):
        lm.encode("The bridge in Golem is")
    assert 1 in lm.encode("The <unk> in Marin")  # who writes it means it


def test_a_model_with_an_encoder_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    with pytest.raises(ModelRefused, match=r"decoder without an encoder; got T5ForConditionalGeneration"):
        sc.LM(T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=1)).eval())


def test_nonsense(lm: sc.LM) -> None:
    with pytest.raises(BadPrompt, match="a text, token ids, or chat messages"):
        lm.encode([{"role": "user"}])
    with pytest.raises(BadPrompt, match="requires a tokenizer"):
        model_of("llama").encode("words")


def test_unknown_words_of_a_tokenizer_that_does_not_declare_its_unknown_token() -> None:
    """craftgpt's WordPiece turns a whole text with one unknown character into a single token."""
    lm = sc.load(str(real("craftgpt")))
    assert [lm.text(i) for i in lm.encode("do you like music?")][:3] == [" do", " you", " like"]
    for text in ("hello 世 you", "🎵", "你好"):
        with pytest.raises(BadPrompt, match="Every word must be in the model's vocabulary"):
            lm.encode(text)
    with pytest.raises(BadPrompt, match=r"got '\?'\. .*spacing that the model knows"):
        lm.encode("do you like music ?")
    with pytest.raises(BadPrompt, match=r"got spaces that are not\."):
        lm.encode("do you  like music?")


def test_a_target_that_could_be_two_tokens() -> None:
    lm = sc.load(str(real("stories260K")))
    run = sc.freeze(lm, "Once upon a time there was")
    assert sc.attribute(run, " a").target == sc.attribute(run, "·a").target == " a"
    with pytest.raises(BadPrompt, match=r"which is two: 'a' \(#412\) and ' a' \(#261\)"):
        sc.attribute(run, "a")
    with pytest.raises(BadPrompt):
        sc.attribute(run, "")


def test_target_tokens(lm: sc.LM) -> None:
    golden = lm.token("Golden")
    assert lm.text(golden) == "Golden"
    assert lm.token(golden) == lm.token(" Golden") == golden
    with pytest.raises(BadPrompt, match="'Silver'"):
        lm.token("Silver")
    with pytest.raises(BadPrompt, match="-3"):
        lm.token(-3)
