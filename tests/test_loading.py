"""A model's folder is loaded completely, or refused in one line before it can do harm or give a wrong answer."""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import model_of, prompt
from helpers import refused
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import secant as sc
from secant.cli import app
from secant.errors import BadArgument, BadWeights, ModelNotFound, ModelRefused, TooLarge
from secant.model import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def edited(folder: Path, file: str = "config.json", **changes: object) -> Path:
    held = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**held, **changes}))
    return folder


def changed(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Other weights in a folder."""
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_model(folder: Path, family: str, **options: object) -> Path:
    """A small model of another family in a folder, with the tokenizer that is there."""
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    model_of(family, dtype=torch.float32, **options).model.save_pretrained(folder)
    return folder


# ------------------------------------------------------------------------------------------- weights that are not used


def test_a_config_with_fewer_layers_is_refused(copy: Path) -> None:
    said = refused(ModelRefused, "A model must use every weight of its checkpoint", edited(copy, num_hidden_layers=1))
    assert "model.layers.1.input_layernorm.weight" in said
    assert "and 6 more" in said


@pytest.mark.parametrize(
    "key",
    [
        "model.norm2.weight", "model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.mlp.score.weight", "lm_head.bias", "model.layers.7.mlp.up_proj.weight", "layers.2.norm.weight",
        "unheard_of.weight", "model.layers.2.vision.weight",
    ],
)  # fmt: skip
def test_weights_that_the_model_lacks_are_refused(copy: Path, key: str) -> None:
    refused(ModelRefused, f"got .*{key}", changed(copy, lambda held: held.update({key: torch.ones(64)})))


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "model.layers.1.attn.masked_bias",
        "model.vision_tower.blocks.9.norm.weight", "visual.patch_embed.weight", "multi_modal_projector.linear.weight",
        "model.audio_tower.layers.31.fc.weight", "mtp.layers.0.norm.weight", "v_head.summary.weight",
        "optimizer.state.weight", "model.layers.1.self_attn.k_scale", "model.embed_tokens.position_ids",
    ],
)  # fmt: skip
def test_weights_that_a_model_can_do_without_are_said(copy: Path, key: str, caplog: pytest.LogCaptureFixture) -> None:
    plain = sc.load(copy).logits([3, 4, 5])
    with caplog.at_level(logging.INFO, "secant"):
        lm = sc.load(changed(copy, lambda held: held.update({key: torch.ones(8)})))
    assert torch.equal(lm.logits([3, 4, 5]), plain)
    (said,) = caplog.records
    assert "1 weights do not belong to the language model" in said.getMessage()
    assert said.levelno == logging.INFO  # the result is right


def test_masks_of_old_checkpoints(copy: Path) -> None:
    """Those of GPT-2 have causal masks, and no name of the base model."""
    with_model(copy, "gpt2")
    plain = sc.load(copy).logits(prompt())

    def old(held: dict[str, Tensor]) -> None:
        for key in list(held):
            held[key.removeprefix("transformer.")] = held.pop(key)
        held |= {"h.0.attn.bias": torch.ones(1, 1, 64, 64).tril(), "h.1.attn.bias": torch.ones(1, 1, 64, 64).bool()}
        held["h.0.attn.masked_bias"] = torch.tensor(-1e4)

    assert torch.equal(sc.load(changed(copy, old)).logits(prompt()), plain)


def test_a_bias_is_no_mask(copy: Path) -> None:
    key = "model.layers.0.attn.bias"
    refused(ModelRefused, key, changed(copy, lambda held: held.update({key: torch.ones(64)})))


@pytest.mark.parametrize(("part", "right"), [("eh_proj", True), ("mlp.gate_proj", False)])
def test_a_layer_that_its_class_leaves_out_is_one_that_predicts_more(copy: Path, part: str, right: bool) -> None:
    """DeepSeek's class says of no weight of layer 61 that it was not read, whatever it is."""
    with_model(copy, "deepseek_v3")
    changed(copy, lambda held: held.update({f"model.layers.61.{part}.weight": torch.ones(64)}))
    if right:
        assert sc.load(copy).logits(prompt()).isfinite().all()
    else:
        refused(ModelRefused, r"model\.layers\.61\.mlp", copy)


def test_a_tied_head_with_weights_of_its_own(copy: Path) -> None:
    refused(ModelRefused, "whose head has different ones", edited(copy, tie_word_embeddings=True))
    changed(copy, lambda held: held.update({"lm_head.weight": held["model.embed_tokens.weight"].clone()}))
    lm = sc.load(copy)
    assert lm.embedding.data_ptr() == lm.unembedding.data_ptr()
    changed(copy, lambda held: held.pop("lm_head.weight"))
    assert torch.equal(sc.load(copy).unembedding, lm.unembedding)


def test_a_config_with_more_layers_is_refused(copy: Path) -> None:
    refused(ModelRefused, r"without model\.layers\.2", edited(copy, num_hidden_layers=3))


def test_one_weight_in_two_files(copy: Path) -> None:
    held = load_file(copy / "model.safetensors")
    for file in ("a.safetensors", "b.safetensors"):
        save_file(held, copy / file, metadata={"format": "pt"})
    (copy / "model.safetensors").unlink()
    names = {key: "ab"[i % 2] + ".safetensors" for i, key in enumerate(held)}
    edited(copy, "model.safetensors.index.json", metadata={}, weight_map=names)
    refused(ModelRefused, r"A weight is in one file only; got lm_head\.weight", copy)


def test_a_file_and_an_index_of_others(copy: Path) -> None:
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(copy / "model.safetensors"), "model.safetensors")}
    edited(copy, "model.safetensors.index.json", **index)
    assert sc.load(copy).size == 40
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-00001-of-00001.safetensors")
    refused(ModelRefused, "in one file or in those of an index", edited(copy, "model.safetensors.index.json", **index))


# ------------------------------------------------------------------------------------------- numbers of other kinds


@pytest.mark.parametrize("dtype", ["complex64", "int32", "int8", "uint8", "bool", "float8_e4m3fn"])
def test_numbers_that_are_no_weights(copy: Path, dtype: str) -> None:
    changed(copy, lambda held: held.update({Q: held[Q].to(getattr(torch, dtype))}))
    refused(BadWeights, rf"got {Q} of ", copy)
    refused(BadWeights, rf"got {Q} of ", copy, dtype="float64")


@pytest.mark.parametrize("dtype", ["complex64", "int32", "bool", "float8_e4m3fn"])
def test_numbers_that_are_no_weights_in_memory(dtype: str) -> None:
    model = model_of("llama").model
    norm = model.model.norm
    norm.weight = torch.nn.Parameter(norm.weight.detach().to(getattr(torch, dtype)), requires_grad=False)
    with pytest.raises(BadWeights, match=rf"float64, float32, bfloat16, float16; got model\.norm\.weight in {dtype}"):
        sc.LM(model)


def test_pickled_weights_are_looked_at_too(copy: Path) -> None:
    held = AutoModelForCausalLM.from_pretrained(copy).state_dict()
    (copy / "model.safetensors").unlink()
    torch.save({**held, Q: held[Q].to(torch.complex64)}, copy / "pytorch_model.bin")
    refused(BadWeights, f"Weights must be real numbers; got {Q}", copy, allow_pickle=True)
    torch.save({**held, "model.norm2.weight": torch.ones(64)}, copy / "pytorch_model.bin")
    refused(ModelRefused, r"model\.norm2\.weight", copy, allow_pickle=True)
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch here'\ntR.")
    refused(ModelRefused, "complete pickled tensor files", copy, allow_pickle=True)


@pytest.mark.parametrize("shape", [(), (1,), (1, 64), (64, 1), (128,)])
def test_shapes_are_not_broadcast(copy: Path, shape: tuple[int, ...]) -> None:
    changed(copy, lambda held: held.update({"model.norm.weight": torch.ones(shape)}))
    refused(ModelRefused, "shapes of its configuration", copy)


# ------------------------------------------------------------------------------------------- trust


class Trap:
    """What unpickling would run."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.file,)


NAMES = ["x.bin", "x.pt", "x", "../../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors",
         "..\\x.safetensors", "C:\\x.safetensors", "", "./x.safetensors", "a//x.safetensors",
         "../../x.bin"]  # fmt: skip


@pytest.mark.parametrize("file", NAMES)
@pytest.mark.parametrize("which", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_what_an_index_names_is_looked_at_first(copy: Path, file: str, which: str) -> None:
    (copy / "model.safetensors").rename(copy.parent / "x.safetensors")
    for trap in (copy / "x.bin", copy.parent.parent / "x.bin"):
        torch.save(Trap(copy / "sprung"), trap)
    edited(copy, which, metadata={}, weight_map={"a": file})
    if which.startswith("model"):
        refused(ModelRefused, "safetensors files in the model's folder", copy)
    else:
        refused(ModelRefused, "Weights must be safetensors files", copy)
    if file not in ("x.bin", "x.pt"):
        refused(ModelRefused, "safetensors files in the model's folder", copy, allow_pickle=True)
    else:
        refused(ModelRefused, "complete pickled tensor files|names must exist", copy, allow_pickle=True)
    assert not (copy / "sprung").exists()


def test_pickles_beside_safetensors_stay_unread(copy: Path) -> None:
    """Many models on the hub come as both."""
    torch.save(Trap(copy / "sprung"), copy / "pytorch_model-00001-of-00001.bin")
    edited(copy, "pytorch_model.bin.index.json", metadata={}, weight_map={"a": "pytorch_model-00001-of-00001.bin"})
    assert sc.load(copy).size == sc.load(copy, allow_pickle=True).size == 40
    assert not (copy / "sprung").exists()


@pytest.mark.parametrize("mapping", [None, [], {}, 3, {"a": 3}, {"a": None}, {"a": ["x.safetensors"]}, "x"])
def test_an_index_that_is_none(copy: Path, mapping: object) -> None:
    edited(copy, "model.safetensors.index.json", metadata={}, weight_map=mapping)
    refused(ModelRefused, "must map each weight to its file", copy)


def test_shards_below_the_folder(copy: Path) -> None:
    (copy / "parts").mkdir()
    held = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").rename(copy / "parts" / "one.safetensors")
    edited(copy, "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(held, "parts/one.safetensors"))
    assert sc.load(copy).size == 40


def test_weights_of_another_name(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "own.safetensors")
    assert sc.load(edited(copy, transformers_weights="own.safetensors")).size == 40
    for bad in ("adapter_model.bin", "../x.safetensors", 3, ["own.safetensors"], "own.safetensors.index.json"):
        refused(ModelRefused, r"transformers_weights of config\.json", edited(copy, transformers_weights=bad))


def test_a_shard_that_is_not_there(copy: Path) -> None:
    held = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").rename(copy / "a.safetensors")
    names = {key: "ab"[i % 2] + ".safetensors" for i, key in enumerate(held)}
    edited(copy, "model.safetensors.index.json", metadata={}, weight_map=names)
    refused(ModelRefused, r"names must exist; got .* without b\.safetensors", copy)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "notes.txt"])
def test_links_out_of_the_folder(copy: Path, file: str) -> None:
    elsewhere = copy.parent / "elsewhere"
    (copy / file).touch()
    (copy / file).rename(elsewhere)
    (copy / file).symlink_to(elsewhere)
    refused(ModelRefused, f"files must be in its folder; got {file}", copy)


def test_links_of_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "models--someone--something"
    snapshot = home / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, home / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert sc.load(snapshot).size == 40
    link = tmp_path / "link"
    link.symlink_to(snapshot)
    assert sc.load(link).size == 40


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "merges.txt"])
def test_what_is_no_file(copy: Path, file: str) -> None:
    (copy / file).unlink(missing_ok=True)
    os.mkfifo(copy / file)
    refused(ModelRefused, f"must contain plain files; got {file}", copy)


def test_a_link_to_itself(copy: Path) -> None:
    (copy / "merges.txt").symlink_to("merges.txt")
    refused(ModelRefused, "merges.txt", copy)


def test_an_adapter_beside_a_model(copy: Path) -> None:
    edited(copy, "adapter_config.json", base_model_name_or_path="someone/something", peft_type="LORA")
    refused(ModelRefused, r"must contain one model; got .* a model and an adapter", copy)


def test_parts_of_a_distributed_checkpoint(copy: Path) -> None:
    (copy / "shard-00000-model-00001-of-00001.safetensors").touch()
    refused(ModelRefused, "not split by process", copy)


@pytest.mark.parametrize("key", ["vocab_file", "fast_tokenizer_files"])
def test_a_tokenizers_file_elsewhere(copy: Path, key: str) -> None:
    shutil.copy(copy / "tokenizer.json", copy.parent / "tokenizer.4.json")
    edited(copy, "tokenizer_config.json", special_tokens_map_file=str(copy.parent / "tokenizer.4.json"))
    assert sc.load(copy).size == 40
    name = str(copy.parent / "tokenizer.4.json")
    edited(copy, "tokenizer_config.json", **{key: [name] if key.endswith("s") else name})
    refused(ModelRefused, f"Remove {key} from it", copy)


KERNEL = "kernels-community/flash-attn2"


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": KERNEL}, {"attn_implementation": KERNEL}, {"_attn_implementation": {"": KERNEL}},
        {"attn_implementation": {"": "flash_attention_2"}}, {"_attn_implementation": "flash_attention_2"},
        {"_attn_implementation": "flex_attention"}, {"_attn_implementation": "paged|eager"},
        {"_attn_implementation": "psychic"}, {"_attn_implementation": 3}, {"_attn_implementation": ["sdpa"]},
        {"experts_implementation": "sonicmoe"}, {"_experts_implementation": "deepgemm"},
    ],
)  # fmt: skip
def test_kernels_that_a_config_asks_for(
    copy: Path, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused before a model is made, which fetches them where the package kernels is installed."""
    monkeypatch.setattr("secant.model.loading.AutoModelForCausalLM.from_pretrained", None)  # is not called
    refused(ModelRefused, "must consist of torch functions", edited(copy, **changes))
    result = CliRunner().invoke(app, ["verify", str(copy)])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_an_attention_that_is_chosen_takes_the_place_of_the_configs(copy: Path) -> None:
    edited(copy, _attn_implementation="flash_attention_2")
    assert sc.load(copy, attention="eager").attention == "eager"


def test_kernels_inside_a_config(copy: Path) -> None:
    with_model(copy, "gemma3")
    refused(ModelRefused, f"got '{KERNEL}'", edited(copy, attn_implementation={"vision_config": KERNEL}))
    assert sc.load(copy, attention="eager").attention == "eager"


def test_nothing_is_fetched_for_a_model_by_itself(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some classes look for kernels of the hub when they are made, where the package kernels is installed."""
    from transformers.integrations import hub_kernels

    asked: list[str] = []
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
    monkeypatch.setattr(hub_kernels, "_kernels_enabled", True)
    monkeypatch.setattr(hub_kernels, "get_kernel_hub", lambda name, **_: asked.append(name), raising=False)
    real = AutoModelForCausalLM.from_pretrained

    def made(*args: Any, **kwargs: Any) -> Any:
        if "lazy" in asked:
            hub_kernels.lazy_load_kernel(next(iter(hub_kernels._HUB_KERNEL_MAPPING)), {})
        else:
            hub_kernels.get_kernel("kernels-community/rwkv", version=1)
        return real(*args, **kwargs)

    monkeypatch.setattr("secant.model.loading.AutoModelForCausalLM.from_pretrained", made)
    refused(
        ModelRefused, "run code from the network; got a model that asks for the kernel kernels-community/rwkv", copy
    )
    asked.append("lazy")
    assert sc.load(copy).size == 40  # this one does without
    assert asked == ["lazy"]
    assert hub_kernels._kernels_enabled  # as it was


def test_kernels_of_packed_weights(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secant.model.loading.find_spec", lambda name: SimpleNamespace())
    edited(copy, quantization_config={"quant_method": "eetq"})
    refused(ModelRefused, "run code from the network", copy)


# ------------------------------------------------------------------------------------------- files that are broken

FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json",
         "added_tokens.json", "model.safetensors", "model.safetensors.index.json"]  # fmt: skip
BROKEN = {
    "empty": b"", "half": b"{", "list": b"[]", "null": b"null", "number": b"3", "text": b'"x"', "bytes": b"\xff\xfe\0",
    "deep list": b"[" * 100_000, "deep object": b'{"a":' * 100_000, "long number": b'{"a":' + b"9" * 5000 + b"}",
    "zeros": bytes(1000),
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", BROKEN)
def test_broken_files(copy: Path, file: str, how: str) -> None:
    (copy / file).write_bytes(BROKEN[how])
    refused(ModelRefused, f"{file}|with none that loads", copy)


@pytest.mark.parametrize("file", FILES)
def test_a_folder_in_place_of_a_file(copy: Path, file: str) -> None:
    (copy / file).unlink(missing_ok=True)
    (copy / file).mkdir()
    refused(ModelRefused, file, copy)


SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
         "num_hidden_layers")  # fmt: skip


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", ["64", "x", 0, -1, -64, 10**6, 10**12, 2**63, 1e30, 0.5, [], [64], {}, True])
def test_sizes_that_are_none(copy: Path, key: str, value: object) -> None:
    start = time.monotonic()
    refused((ModelRefused, BadWeights), "", edited(copy, **{key: value}))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": None}, {"hidden_act": "nonsense"}, {"rms_norm_eps": None}, {"rms_norm_eps": "x"}, {"dtype": "x"},
        {"dtype": 3}, {"dtype": "int8"}, {"dtype": "complex64"}, {"dtype": ["float32"]}, {"model_type": None},
        {"model_type": 3}, {"model_type": ["llama"]}, {"rope_parameters": 3}, {"rope_parameters": {"rope_type": "x"}},
        {"rope_scaling": {"type": "yarn"}}, {"auto_map": 3}, {"quantization_config": {"quant_method": "x"}},
        {"quantization_config": 3}, {"quantization_config": []}, {"vocab_size": None}, {"num_hidden_layers": None},
        {"layer_types": ["x"]}, {"tie_word_embeddings": "x"}, {"max_position_embeddings": None},
    ],
)  # fmt: skip
def test_configurations_that_are_none(copy: Path, changes: dict[str, object]) -> None:
    refused(ModelRefused, "", edited(copy, **changes))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {"n_positions": 10**9}), ("gpt2", {"n_layer": 10**12}), ("mixtral", {"num_local_experts": 10**9}),
        ("jamba", {"num_experts": 10**6}), ("gpt_neo", {"attention_types": [[["global"], 10**9]]}),
        ("qwen2", {"num_hidden_layers": 10**9}), ("llama", {"num_hidden_layers": 1000}),
        ("opt", {"max_position_embeddings": 10**12}), ("ctrl", {"n_positions": 10**12}),
    ],
)  # fmt: skip
def test_absurd_sizes_are_refused_at_once(copy: Path, family: str, changes: dict[str, object]) -> None:
    with_model(copy, family)
    start = time.process_time()  # not that of a clock: other programs may run
    rules = "must match the weights of its checkpoint|must fit in memory"
    refused((ModelRefused, TooLarge), rules, edited(copy, **changes))
    assert time.process_time() - start < 5


def test_masks_may_be_larger_than_the_weights(copy: Path) -> None:
    """As those of a tiny GPT-Neo of 2048 positions are."""
    with_model(copy, "gpt_neo", max_position_embeddings=2048)
    assert sc.load(copy).context == 2048


def header(shape: list[int], offsets: list[int], dtype: str = "F32") -> bytes:
    head = json.dumps({"model.norm.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return struct.pack("<Q", len(head)) + head


@pytest.mark.parametrize(
    "data",
    [
        header([10**12], [0, 4 * 10**12]), header([64], [0, 256]), header([64], [0, 128]) + bytes(256),
        header([64], [0, 256], "F99") + bytes(256), header([-64], [0, 256]) + bytes(256),
        header([64], [256, 0]) + bytes(256), header([2**40, 2**40], [0, 256]) + bytes(256),
        struct.pack("<Q", 2**63) + bytes(100), struct.pack("<Q", 10) + b'{"a": null}',
    ],
)  # fmt: skip
def test_damaged_weights(copy: Path, data: bytes) -> None:
    (copy / "model.safetensors").write_bytes(data)
    refused(ModelRefused, "Weights must be complete safetensors files", copy)


def test_weights_beyond_memory_are_not_tried(copy: Path) -> None:
    head = header([10**12], [0, 4 * 10**12])
    with open(copy / "model.safetensors", "wb") as file:
        file.write(head)
        file.truncate(len(head) + 4 * 10**12)  # a hole, of no blocks
    refused(TooLarge, "A model must fit in memory", copy)


def test_what_fits_depends_on_the_type() -> None:
    half = {"a": checkpoint.Stored("BF16", (2**40 // 8, 8))}
    with pytest.raises(TooLarge, match=r"got 8\.0 TiB|got 8,192 GiB"):
        checkpoint.check_size(half, torch.float64, "x")


TOKENIZERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a negative id": lambda held: held["model"]["vocab"].update(The=-1),
    "a broken pattern": lambda held: held.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    ),
    "an unknown special token": lambda held: held.update(
        post_processor={"type": "TemplateProcessing", "pair": [], "special_tokens": {},
                        "single": [{"SpecialToken": {"id": "<z>", "type_id": 0}}]}
    ),
    "a merge that is none": lambda held: held.update(
        model={"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}
    ),
    "an unknown model": lambda held: held.update(model={"type": "Magic"}),
    "no model": lambda held: held.pop("model"),
    "added tokens that are none": lambda held: held.update(added_tokens=3),
}  # fmt: skip


@pytest.mark.parametrize("how", TOKENIZERS)
def test_broken_tokenizers(copy: Path, how: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Some make tokenizers panic, which is no Exception, and prints a traceback of its own."""
    held = json.loads((copy / "tokenizer.json").read_text())
    TOKENIZERS[how](held)
    (copy / "tokenizer.json").write_text(json.dumps(held))
    refused(ModelRefused, "must come with its tokenizer; got .* with none that loads", copy)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": 3}, {"tokenizer_class": {}}, {"unk_token": 3}, {"bos_token": []}, {"model_max_length": "x"},
        {"added_tokens_decoder": []}, {"added_tokens_decoder": {"x": {}}}, {"auto_map": 3}, {"init_inputs": 3},
        {"extra_special_tokens": 3}, {"chat_template": [3]}, {"padding_side": "x"},
    ],
)  # fmt: skip
def test_broken_configurations_of_tokenizers(copy: Path, changes: dict[str, object]) -> None:
    refused(ModelRefused, "must come with its tokenizer", edited(copy, "tokenizer_config.json", **changes))


@pytest.mark.parametrize("name", [None, 3, b"x", ["x"], 1.5, object])
def test_names_that_are_none(name: Any) -> None:
    refused(BadArgument, "load takes a text or a Path as name; got ", name)


@pytest.mark.parametrize(
    "name", ["", " ", "x" * 5000, "a\0b", "~nobody/x", "./x\x1b[31m", "../" * 3000, "a b/c", "x/" * 9]
)
def test_names_of_nothing(name: str) -> None:
    assert "\x1b" not in refused(ModelNotFound, "A model is a folder, a GGUF file or a name", name)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": 3}, {"dtype": []}, {"dtype": torch.int8}, {"dtype": torch.complex64}, {"dtype": "complex64"},
        {"device": 3}, {"device": []}, {"device": "meta"}, {"device": "x"}, {"device": "cuda:99"}, {"attention": 3},
        {"attention": ["sdpa"]}, {"attention": KERNEL}, {"attention": "flash_attention_2"}, {"attention": ""},
        {"allow_pickle": "no"}, {"allow_pickle": 1}, {"allow_remote_code": None}, {"allow_remote_code": "false"},
    ],
)  # fmt: skip
def test_options_that_are_none(folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is refused before anything is read."""
    monkeypatch.setattr("secant.model.loading._opened", None)
    refused(BadArgument, f"(?i){next(iter(options)).split('_')[0]}", folder, **options)


def test_verify_looks_at_the_folder_too(copy: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(edited(copy, num_hidden_layers=10**12))])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "must match the weights of its checkpoint" in result.stderr


# ------------------------------------------------------------------------------------------- the hub


def test_what_is_looked_at_is_what_is_loaded(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model on the hub, small files are fetched first; the commit that they are of is then loaded."""
    snapshot = tmp_path / "snapshots" / "c0ffee"
    asked: list[str] = []

    def cached_file(where: str, file: str, **options: Any) -> str | None:
        asked.append(file)
        assert options.get("revision", "c0ffee") == "c0ffee"
        snapshot.mkdir(parents=True, exist_ok=True)
        if not (copy / file).exists():
            return None
        shutil.copy(copy / file, snapshot / file)
        return str(snapshot / file)

    loaded: list[dict[str, Any]] = []
    real = AutoModelForCausalLM.from_pretrained

    def model(where: str, **options: Any) -> Any:
        loaded.append({"where": where, "revision": options.pop("revision")})
        for file in ("model.safetensors", "tokenizer.json"):
            shutil.copy(copy / file, snapshot)
        return real(snapshot, **options)

    monkeypatch.setattr("secant.model.loading.cached_file", cached_file)
    for name in ("AutoConfig", "AutoTokenizer"):
        kind = getattr(sys.modules["secant.model.loading"], name)
        own = kind.from_pretrained
        monkeypatch.setattr(kind, "from_pretrained", lambda where, own=own, revision=None, **o: own(snapshot, **o))
    monkeypatch.setattr("secant.model.loading.AutoModelForCausalLM.from_pretrained", model)
    assert sc.load("someone/something").name == "someone/something"
    assert loaded == [{"where": "someone/something", "revision": "c0ffee"}]
    assert asked[0] == "config.json"
    changed(copy, lambda held: held.update({"model.norm2.weight": torch.ones(64)}))
    refused(ModelRefused, "A model must use every weight of its checkpoint", "someone/something")
    edited(copy, "model.safetensors.index.json", weight_map={"a": "../x.safetensors"})
    loaded.clear()
    refused(ModelRefused, "safetensors files in the model's folder", "someone/something")
    assert loaded == []


WATCHED = """
import sys
found = []
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen", "os.system"):
        found.append((event, str(args)))
import secant as sc
sys.addaudithook(hook)
lm = sc.load(sys.argv[1])
sc.freeze(lm, "The bridge out of Marin is the")
assert not found, found
"""


@pytest.mark.slow
def test_a_folder_is_loaded_without_the_network(folder: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    result = subprocess.run([sys.executable, "-c", WATCHED, str(folder)], capture_output=True, env=env, check=False)
    assert result.returncode == 0, result.stderr.decode()


@pytest.mark.parametrize(("shown", "watched", "bars"), [(True, True, True), (True, False, False), (False, True, False)])
def test_progress_of_long_loading_is_shown(
    shown: bool, watched: bool, bars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where someone watches; afterwards transformers' setting is as it was."""
    from transformers.utils import logging

    from secant.model import loading

    logging.enable_progress_bar()
    monkeypatch.setattr(loading, "_is_watched", lambda: watched)
    with loading._quiet_transformers(shown):
        assert logging.is_progress_bar_enabled() == bars
    assert logging.is_progress_bar_enabled()
