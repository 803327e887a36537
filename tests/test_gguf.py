"""GGUF files load as the models that they were written from, whatever transformers' converter omits, or are refused."""

from __future__ import annotations

import json
import logging
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
import torch
from families import model_of, prompt
from helpers import REAL, absent, real, refused
from typer.testing import CliRunner

import secant as sc
from secant import memory as resources
from secant.cli import app
from secant.errors import BadArgument, BadWeights, ModelNotFound, ModelRefused
from secant.model import converter
from secant.model.gguf import File
from secant.model.gguf_config import ARCHITECTURES
from secant.model.gguf_tokens import SPLITS, WHOLE

gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers.integrations.gguf")
pytestmark = pytest.mark.filterwarnings("ignore")
TEXT = gguf_files.text
PLAIN = {"use_sliding_window": False, "max_window_layers": 3}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LAYERS = {"num_hidden_layers": 7, "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]}
GEMMA = {**LAYERS, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": False, "mlp_bias": False}),
    "llama, biased": ("llama", {}),
    "llama, tied": ("llama", {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 4.0}}),
    "qwen2": ("qwen2", PLAIN),
    "qwen3": ("qwen3", PLAIN),
    "qwen3, yarn": ("qwen3", {**PLAIN, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                                           "original_max_position_embeddings": 16}}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 8, "tie_word_embeddings": True, "final_logit_softcapping": 7.0}),
    "gemma3": ("gemma3_text", GEMMA),
    "gemma3, linear": ("gemma3_text", {**GEMMA, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}, "sliding_attention": LOCAL}}),
    "qwen2moe": ("qwen2_moe", PLAIN),
    "qwen3moe": ("qwen3_moe", {**PLAIN, "norm_topk_prob": True}),
    "phi3": ("phi3", {"sliding_window": 6, "original_max_position_embeddings": 64}),
    "phi3, long": ("phi3", {"sliding_window": None, "original_max_position_embeddings": 16, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "short_factor": [1.0, 1.2],
        "long_factor": [1.5, 3.0], "original_max_position_embeddings": 16, "attention_factor": 1.25}}),
    "gpt2": ("gpt2", {"n_inner": 128}),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "stablelm": ("stablelm", {"use_qkv_bias": True, "use_parallel_residual": True}),
    "bloom": ("bloom", {}),
    "nemotron": ("nemotron", {"attention_bias": True}),
    "mamba": ("mamba", {}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False}),
}  # fmt: skip


QUICK = ("llama", "llama, biased", "llama 3", "qwen3", "gemma3, linear", "phi3, long")


def original(case: str) -> Any:
    family, options = CASES[case]
    sizes = {} if family in ("gpt2", "bloom", "mamba") else {"intermediate_size": 64}
    return model_of(family, dtype=torch.float32, **sizes, **options).model


def written(path: Path, case: str = "llama", kind: str = "F32", **metadata: Any) -> Path:
    return gguf_files.write(path / "model.gguf", original(case), kind, **metadata)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([prompt() + prompt()[::-1]])).logits


# ------------------------------------------------------------------------------------------- the model in a file


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_file_is_the_model_that_it_was_written_from(case: str, tmp_path: Path) -> None:
    """Every tensor, and what the model computes from them: rotary scaling, softcaps, windows and scales included."""
    model, loaded = original(case), sc.load(written(tmp_path, case), attention="eager").model
    here, there = model.state_dict(), loaded.state_dict()
    assert here.keys() == there.keys()
    for name, weight in here.items():
        shift = (
            2e-7 if name.endswith("norm.weight") and case.startswith(("gemma", "nemotron")) else 0
        )  # stored plus one
        shift = 2e-7 if name.endswith("A_log") else shift
        torch.testing.assert_close(there[name], weight, rtol=0, atol=shift, msg=name)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=2e-6 * float(logits(model).abs().max()))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_packed_weights_are_those_of_ggufs_own_dequantiser(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind=kind)
    loaded = sc.load(path).model
    kinds = set()
    config, own = loaded.config, dict(loaded.state_dict())
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, weight in own.items():
        stem, _, end = name.rpartition(".")
        tensor = stored[f"{table.get_name(stem)}.{end}"]
        kinds.add(tensor.tensor_type.name)
        array = weight.numpy()
        if ".q_proj." in name or ".k_proj." in name:
            array = gguf_files.permuted(
                array, config.num_attention_heads if ".q_" in name else config.num_key_value_heads
            )
        assert np.array_equal(array, gguf.dequantize(tensor.data, tensor.tensor_type)), name
    assert kinds == {kind, "F32"}


@pytest.mark.parametrize(
    "dtype", ["float64", *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float32", "bfloat16", "float16"))]
)
def test_a_file_loads_in_any_type(dtype: str, tmp_path: Path) -> None:
    lm = sc.load(written(tmp_path, "gemma3", "Q8_0"), dtype=dtype)
    assert str(lm.dtype) == f"torch.{dtype}"
    certificate = sc.freeze(lm, prompt()).certificate
    assert certificate.forward_equal
    if dtype == "float64":
        assert max(certificate.reconstruction, certificate.affinity) <= 1e-12
        norms = {name: values for name, values in File.read(tmp_path / "model.gguf", "x").weights() if "_norm" in name}
        own = lm.model.state_dict()["model.layers.1.input_layernorm.weight"]
        assert np.array_equal((own + 1).numpy(), norms["blk.1.attn_norm.weight"].astype(np.float64))


@pytest.mark.parametrize("case", ["llama 3", "qwen3, yarn"])
def test_scaled_rotary_embeddings_are_exact(case: str, tmp_path: Path) -> None:
    certificate = sc.freeze(sc.load(written(tmp_path, case), dtype="float64"), prompt()).certificate
    assert max(certificate.reconstruction, certificate.affinity) <= 1e-12


def test_gemmas_norms_and_llamas_pairs_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first test compares would be seen: a file without the permutation is another model."""
    model = original("llama")
    monkeypatch.setattr(gguf_files, "permuted", lambda weight, heads: weight)
    assert not torch.allclose(logits(sc.load(written(tmp_path)).model), logits(model), atol=1e-3)


def test_a_file_loads_on_any_device(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    path = written(tmp_path)
    assert torch.equal(sc.load(path, device="auto").logits(prompt()), sc.load(path, device="cpu").logits(prompt()))


def test_the_weights_are_plain(tmp_path: Path) -> None:
    """So a model from a file has the fingerprint of the same model from a folder but for what only one of them says."""
    lm = sc.load(written(tmp_path, kind="Q8_0"), dequantize=True)
    assert not getattr(lm.model, "is_quantized", False)
    assert not hasattr(lm.model.config, "quantization_config")
    assert lm.ends == {2}
    assert lm.name == str(tmp_path / "model.gguf")


def test_what_a_file_takes_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, kind="Q8_0")
    with caplog.at_level(logging.WARNING, "secant"):
        sc.load(path)
        assert not caplog.records
        monkeypatch.setattr(resources, "LONG", 0.0)
        sc.load(path)
    (said,) = {record.getMessage() for record in caplog.records}
    elements = sum(p.numel() for p in original("llama").parameters())
    assert said.startswith(f"Dequantising {path}: about 0 s, {resources.bytes_in_words(4 * elements)} of memory (")


# ------------------------------------------------------------------------------------------- texts


def test_the_tokenizer_comes_from_the_file(tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    lm = sc.load(written(tmp_path, tokenizer__chat_template=template))
    assert lm.encode("ab a") == [5, 6, 3]
    assert lm.tokens.tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "[ab]"
    lm = sc.load(written(tmp_path, tokenizer__ggml__add_bos_token=True))
    assert lm.encode("ab") == [1, 5]


def test_files_that_are_opened_at_the_same_time_keep_their_own_vocabularies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is opened while the first is being read, and its reading ends after that."""
    import transformers.integrations.gguf as integration

    (tmp_path / "second").mkdir()
    paths = [written(tmp_path), written(tmp_path / "second", tokens=["q", "a", "b", "ab"])]
    files = [File.read(path, path.name) for path in paths]
    alone = [converter.tokenizer_of(file).get_vocab() for file in files]
    assert alone[0] != alone[1]
    own, read = integration.get_gguf_tokenizer, integration.reader.read_gguf_metadata
    began, ended = [threading.Event(), threading.Event()], threading.Event()

    def slow(path: str) -> Any:
        mine = [str(each) for each in paths].index(path)
        began[mine].set()
        (ended if mine else began[1]).wait(0.3)
        other = str(paths[1 - mine])
        assert len(integration.reader.read_gguf_metadata(other, ("tokenizer.ggml.tokens",))[1]) == len(files[0].tensors)
        return own(path)

    monkeypatch.setattr(integration, "get_gguf_tokenizer", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(converter.tokenizer_of, files[0])
        began[0].wait()
        second = pool.submit(converter.tokenizer_of, files[1])
        found = [first.result().get_vocab()]
        ended.set()
        found.append(second.result().get_vocab())
    assert found == alone
    assert integration.reader.read_gguf_metadata is read


@pytest.mark.parametrize("word", ["llama-bpe", "tekken"])
def test_vocabularies_that_start_with_bos_without_saying_so(word: str, tmp_path: Path) -> None:
    assert sc.load(written(tmp_path, tokenizer__ggml__pre=word)).encode("ab")[0] == 1
    path = written(tmp_path, tokenizer__ggml__pre=word, tokenizer__ggml__add_bos_token=False)
    assert sc.load(path).encode("ab") == [5]


def test_patterns_that_are_unknown_are_refused(tmp_path: Path) -> None:
    refused(ModelRefused, "tokenizer.ggml.pre = 'brand-new'", written(tmp_path, tokenizer__ggml__pre="brand-new"))


def test_digits_are_split_as_the_file_says(tmp_path: Path) -> None:
    """transformers splits SmolLM's texts like GPT-2's, so that digits stay together."""
    tokens = ["1", "2", "12", "Ġ", "a", "b", "ab"]
    assert sc.load(written(tmp_path, tokens=tokens, tokenizer__ggml__merges=["1 2"])).encode("12") == [5]
    path = written(tmp_path, tokens=tokens, tokenizer__ggml__merges=["1 2"], tokenizer__ggml__pre="smollm")
    assert sc.load(path).encode("12") == [3, 4]


SPM = {
    "tokenizer__ggml__model": "llama", "tokenizer__ggml__merges": None, "tokenizer__ggml__pre": "default",
    "tokenizer__ggml__scores": [float(-i) for i in range(97)],
}  # fmt: skip


@pytest.mark.parametrize(("prefix", "ids"), [(None, [[1, 7], [1, 3, 7]]), (True, [[1, 7], [1, 3, 7]]),
                                             (False, [[1, 6], [1, 7]])])  # fmt: skip
def test_spaces_before_a_text(prefix: bool | None, ids: list[list[int]], tmp_path: Path) -> None:
    """A vocabulary of sentencepiece's kind has one before each text, also before a space, unless the file says not."""
    own = {} if prefix is None else {"tokenizer__ggml__add_space_prefix": prefix}
    lm = sc.load(written(tmp_path, tokens=["▁", "a", "b", "ab", "▁ab"], **SPM, **own))
    assert [lm.encode("ab"), lm.encode(" ab")] == ids
    assert lm.tokens.tokenizer.decode(lm.encode("ab"), skip_special_tokens=True) == "ab"


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("case", "metadata", "said"),
    [
        ("llama", {"llama__expert_count": 8}, "expert_count = 8"),
        ("llama", {"llama__attention__clamp_kqv": 8.0}, "attention.clamp_kqv = 8.0"),
        ("llama", {"llama__attention__sliding_window": 4}, "attention.sliding_window = 4"),
        ("llama", {"llama__attention__value_length": 16}, "attention.value_length = 8"),
        ("llama", {"llama__attention__causal": False}, "attention.causal = True"),
        ("llama", {"llama__rope__scaling__type": "brand-new"}, "rope.scaling.type"),
        ("llama", {"llama__rope__dimension_count": 4}, "rope.dimension_count"),
        ("llama 3", {"llama__rope__scaling__factor": 4.0}, "rope.scaling.factor = 1.0; got rope.scaling.factor = 4.0"),
        ("llama", {"llama__rope__scaling__attn_factor": 1.5}, "rope.scaling.attn_factor = 1.5"),
        ("llama", {"llama__feed_forward_length": [64, 64, 32]}, "the same sizes in all layers"),
        ("llama", {"llama__block_count": None}, "a positive size; got block_count = None"),
        ("llama", {"general__architecture": "brand-new"}, "must be of one of the architectures bloom, .* 'brand-new'"),
        ("llama", {"general__architecture": "clip"}, "must contain a language model"),
        ("llama", {"general__type": "adapter"}, "another kind, 'adapter'"),
        ("llama", {"split__count": 3}, "one of 3 parts"),
        ("gemma3", {"gemma3__attention__sliding_window_pattern": 3}, "sliding_window_pattern = 6"),
    ],
)  # fmt: skip
def test_what_would_be_another_model_is_refused(case: str, metadata: dict[str, Any], said: str, tmp_path: Path) -> None:
    refused(ModelRefused, said, written(tmp_path, case, **metadata))


def test_no_experts_are_no_experts(tmp_path: Path) -> None:
    assert sc.load(written(tmp_path, llama__expert_count=0)).size == 97


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    model = original("llama")
    model.model.layers[0].mlp.gate = torch.nn.Linear(32, 4, bias=False)  # of a router
    path = gguf_files.write(tmp_path / "model.gguf", model)
    said = refused(ModelRefused, "A model must use every weight of its GGUF file", path)
    assert "blk.0.ffn_gate_inp.weight" in said


def test_a_file_without_a_tensor_is_refused(tmp_path: Path) -> None:
    model = original("llama")
    del model.model.layers[1].mlp.up_proj
    refused(ModelRefused, r"without model\.layers\.1\.mlp\.up_proj",
            gguf_files.write(tmp_path / "model.gguf", model))  # fmt: skip


def test_files_of_fewer_layers_than_they_have(tmp_path: Path) -> None:
    refused(ModelRefused, "for which transformers has no place", written(tmp_path, llama__block_count=2))
    refused(ModelRefused, "", written(tmp_path, llama__block_count=10**6))


ARCHITECTURE = ("general.architecture", 8, TEXT("llama"))
BROKEN = {
    "empty": (b"", "a damaged one|starts with the letters"),
    "of another kind": (b"PK\3\4" + bytes(100), "starts with the letters GGUF"),
    "short": (b"GGUF\3\0\0\0", "its header goes past its end"),
    "of version 1": (gguf_files.header([], version=1), "which has version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "which has big-endian order"),
    "without an architecture": (gguf_files.header([]), "must name its architecture"),
    "with a long text": (gguf_files.header([("a", 8, b"\xff" * 7 + b"\0")]), "its header goes past its end"),
    "with a long list": (gguf_files.header([("a", 9, struct.pack("<IQ", 4, 2**60))]), "its header goes past its end"),
    "with a cut list of texts": (
        gguf_files.header([("a", 9, struct.pack("<IQ", 8, 2) + TEXT("b") + bytes(2))]), "its header goes past its end"
    ),
    "with a long text in a list": (
        gguf_files.header([("a", 9, struct.pack("<IQQ", 8, 1, 2**63))]), "its header goes past its end"
    ),
    "with bytes that are no text": (gguf_files.header([("a", 9, struct.pack("<IQQ", 8, 1, 1) + b"\xff")]), "'utf-8'"),
    "with an unknown type": (gguf_files.header([("a", 77, b"")]), "a value of type 77"),
    "with nested lists": (gguf_files.header([("a", 9, struct.pack("<IQ", 9, 1) * 20_000)]), "a damaged one"),
    "with many values": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "its header goes past its end"),
    "with no axes": (gguf_files.header([ARCHITECTURE], TEXT("t") + bytes(16), 1), "has 0 axes"),
    "with a huge axis": (
        gguf_files.header([ARCHITECTURE], TEXT("t") + struct.pack("<IQIQ", 1, 2**62, 0, 0), 1), "has the shape"
    ),
    "with its tensor outside": (
        gguf_files.header([ARCHITECTURE], TEXT("t") + struct.pack("<IQIQ", 1, 2**20, 0, 0), 1), "without all of t"
    ),
    "of bad alignment": (gguf_files.header([ARCHITECTURE, ("general.alignment", 4, bytes(4))]), "an alignment of 0"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_broken_files(how: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(BROKEN[how][0])
    refused(ModelRefused, BROKEN[how][1], path)


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    refused(ModelRefused, "A GGUF file must be complete; got .* bytes, without all of", path)


@pytest.mark.parametrize("kind", [26, 999])
def test_weights_of_types_that_are_none(kind: int, tmp_path: Path) -> None:
    head = gguf_files.header([ARCHITECTURE], TEXT("t") + struct.pack("<IQIQ", 1, 8, kind, 0), 1)
    (tmp_path / "model.gguf").write_bytes(head + bytes(100))
    refused(BadWeights, r"t of .* in (I32|type 999)", tmp_path / "model.gguf")


def test_gguf_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(BadArgument, r"pip install 'secant\[gguf\]'", path)


def test_names_of_files(tmp_path: Path) -> None:
    path = written(tmp_path)
    refused(ModelRefused, f"Give one of its GGUF files, such as {path}", tmp_path)
    refused(ModelNotFound, "Check the path", tmp_path / "none.gguf")
    refused(BadArgument, "A revision belongs to a name on the hub", path, revision="main")


# ------------------------------------------------------------------------------------------- the command line


@pytest.mark.slow
def test_commands_open_files(tmp_path: Path) -> None:
    path = str(written(tmp_path, kind="Q8_0"))
    result = CliRunner().invoke(app, ["verify", path, "--json", "--convention", "gate"])
    rows = json.loads(result.stdout)["certificates"]
    assert [(row["dtype"], row["exact"]) for row in rows] == [
        (dtype, True) for dtype in ("float64", "float32", "bfloat16", "float16")
    ]
    result = CliRunner().invoke(app, ["attribute", "ab a", "--model", path, "--json"])
    assert result.exit_code == 0
    result = CliRunner().invoke(app, ["verify", str(written(tmp_path, general__architecture="brand-new"))])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


# ------------------------------------------------------------------------------------------- llama.cpp


def llama_cpp() -> Any:
    """llama.cpp, where it is installed."""
    try:
        import llama_cpp as found
    except ImportError:
        pytest.skip("llama-cpp-python is not installed")
    return found


ODD = [
    "In 1999, 12345 people  paid $3.50!",
    "def f(x):\n    return x ** 2\n",
    " naïve café — “quoted”…",
    "ab\tcd\r\n\n  e",
]
TEXTS = [
    "I'LL they've we're don't 'S x'", "a1b22c333d4444 5 66 777 8888", "Привет, мир! 你好，世界。 こんにちは مرحبا،",
    "   three   spaces   ", "snake_case camelCase HTTPServer2", "f(x)=x^2+1; a<b>c~d|e`f`", "e\u0301 नमस्ते 👍🏽 ½ ²",
    "http://a.b/c?d=e&f=%20", "\n\n\n x\n", "12,345.67 (8)", "", "ÀÉÎ ñandú ßtraße",
]  # fmt: skip
"""Texts on which ways to split differ."""

FILES = sorted((REAL.parents[1] / "models-real").glob("*.gguf"))


@pytest.mark.slow
@pytest.mark.parametrize("word", sorted({*SPLITS, *WHOLE, "qwen2", "qwen35", "gpt-4o"}))
def test_texts_are_split_as_llama_cpp_splits_them(word: str, tmp_path: Path) -> None:
    """SmolLM2's vocabulary under every word for patterns, on texts in which they differ."""
    library = llama_cpp()
    found = [path for path in FILES if "SmolLM2" in path.name]
    if not found:
        absent("no SmolLM2 as a GGUF file in models-real")
    path, key = tmp_path / "model.gguf", TEXT("tokenizer.ggml.pre") + struct.pack("<I", 8)
    data = gguf_files.metadata_of(found[0])
    assert data.count(key + TEXT("smollm")) == 1
    none = data[:8] + bytes(8) + data[16:]  # tensors
    path.write_bytes(none.replace(key + TEXT("smollm"), key + TEXT(word)))
    other = library.Llama(str(path), vocab_only=True, verbose=False)
    own = sc.LM(original("llama"), converter.tokenizer_of(File.read_header(path, "x"))).tokens.tokenizer
    for text in (*ODD, *TEXTS):
        assert own(text)["input_ids"] == other.tokenize(text.encode(), special=True), text


@pytest.mark.slow
@pytest.mark.parametrize("own", [{}, {"add_space_prefix": False}, {"add_bos_token": False}])
@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_sentencepieces_texts_are_those_of_llama_cpp(architecture: str, own: dict[str, bool], tmp_path: Path) -> None:
    library = llama_cpp()
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    found = gguf_files.sentencepiece(json.loads((real("stories260K") / "tokenizer.json").read_text()))
    said = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0, f"{architecture}.context_length": 64,
        f"{architecture}.embedding_length": 64, f"{architecture}.block_count": 1, f"{architecture}.rope.freq_base": 1e4,
        f"{architecture}.feed_forward_length": 64, f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        **{f"tokenizer.ggml.{key}": value for key, value in (found | own).items()},
    }  # fmt: skip
    for key, value in said.items():
        gguf_files.add(writer, key, value)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.close):
        step()
    other = library.Llama(str(path), vocab_only=True, verbose=False)
    tokenizer = converter.tokenizer_of(File.read_header(path, "x"))
    for text in (*ODD, *TEXTS, "Once upon a time.", "  hi", "hi  there ", " a", "</s> hi<s>a b", "a</s>"):
        assert tokenizer(text)["input_ids"] == other.tokenize(text.encode(), special=True), text


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_next_tokens_are_those_of_llama_cpp(path: Path, tmp_path: Path) -> None:
    llama_cpp()
    from next_tokens import compare, prompts

    lm = sc.load(path)
    assert compare(lm, path, ODD)[0] == len(ODD)
    tokens, nexts, _, largest = compare(lm, gguf_files.plain(path, tmp_path / "plain.gguf"), prompts())
    assert (tokens, nexts) == (len(prompts()), len(prompts()))
    assert largest < 5e-2  # llama.cpp keeps keys and values in half precision


def test_architectures_are_listed() -> None:
    """docs/reference/quantization.md names them."""
    page = (Path(__file__).parents[1] / "docs" / "reference" / "quantization.md").read_text()
    assert ", ".join(f"`{name}`" for name in sorted(ARCHITECTURES)) in page
