"""Quantised weights, adapters and offloaded weights: exact, or refused with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import packed
import pytest
import torch
from families import model_of, prompt
from helpers import refused
from torch import nn
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import secant as sc
from secant.cli import app
from secant.errors import BadArgument, BadWeights, ModelRefused, NoPoint
from secant.model import quantization, weights

pytestmark = pytest.mark.filterwarnings("ignore")
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}  # few bits come in blocks of 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 Llama in several shards."""
    where = tmp_path_factory.mktemp("weights") / "llama"
    model_of("llama", dtype=torch.float32, **WIDE).model.save_pretrained(where, max_shard_size="500KB")
    assert len(list(where.glob("*.safetensors"))) > 1
    return where


def loaded(where: Path, **options: object) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(where, **{"dtype": torch.float32, **options}).eval()


def assert_exact(model: nn.Module, ids: list[int] | None = None) -> sc.Run:
    run = sc.freeze(sc.LM(model), ids or prompt())
    assert run.certificate.forward_equal
    assert run.certificate.reconstruction <= 1e-5
    assert run.certificate.affinity <= 1e-5
    return run


# ------------------------------------------------------------------------------------------- few bits


def four_bits(**options: object) -> object:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"bnb_4bit_quant_type": "nf4"},
        {"bnb_4bit_quant_type": "fp4"},
        {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ],
)
def test_four_bits_are_what_they_stand_for(checkpoint: Path, options: dict[str, object]) -> None:
    model = loaded(checkpoint, quantization_config=four_bits(**options))
    weights.prepare_(model, torch.float32)
    run = assert_exact(model)
    assert run.certificate.operations["whole_linear: unpacked"] == 21
    assert not any("forward" in vars(module) for module in model.modules())
    J = run.operator().dense()
    plain = assert_exact(model.dequantize().eval()).operator().dense()
    torch.testing.assert_close(J, plain, rtol=0, atol=1e-5 * float(plain.norm()))


def test_a_head_of_four_bits(checkpoint: Path) -> None:
    model = loaded(checkpoint, quantization_config=four_bits(llm_int8_skip_modules=[]))
    weights.prepare_(model, torch.float32)
    assert "Linear4bit" in type(model.lm_head).__name__
    run = assert_exact(model)
    assert run.certificate.operations["whole_linear: unpacked"] == 22
    torch.testing.assert_close(run.hidden @ run.lm.unembedding.T, run.logits, rtol=1e-4, atol=1e-4)


def test_four_bits_are_seen_in_a_wider_type(checkpoint: Path) -> None:
    model = loaded(checkpoint, quantization_config=four_bits())
    weights.prepare_(model, torch.float32)
    certificate = sc.freeze(sc.LM(model), prompt(), precision="float64").certificate
    assert certificate.affinity <= 1e-12
    assert certificate.reconstruction <= 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("done", [False, True])
def test_a_kernel_that_packs_weights_anew_is_refused(checkpoint: Path, done: bool, dtype: str) -> None:
    """bitsandbytes does on CPUs that have the instructions, in place, at the first pass, and computes in bfloat16: in
    float32 the output is off by 3e-2. So nothing is run.
    """
    model = loaded(checkpoint, quantization_config=four_bits(), dtype=getattr(torch, dtype))
    weights.prepare_(model, getattr(torch, dtype))
    layer = model.model.layers[1].mlp.up_proj
    before = layer.weight.data.clone()
    if done:
        layer.weight.quant_state.packing_format_for_cpu = True
    else:
        layer.support_avx512bf16_for_cpu = True
    with pytest.raises(
        sc.NotExact, match=r"layers\.1\.mlp\.up_proj, .* secant\.load.* anew.*support_avx512bf16_for_cpu"
    ):
        sc.freeze(sc.LM(model), prompt())
    assert torch.equal(layer.weight.data, before)


def test_what_the_refusal_of_such_a_kernel_says_to_do_helps(checkpoint: Path) -> None:
    model = loaded(checkpoint, quantization_config=four_bits())
    model.model.layers[0].mlp.up_proj.support_avx512bf16_for_cpu = True
    with pytest.raises(sc.NotExact) as refusal:
        sc.freeze(sc.LM(model), prompt())
    model = loaded(checkpoint, quantization_config=four_bits())
    exec(refusal.value.todo.split("first runs: ")[1].removesuffix("."), {"model": model, "torch": torch})
    assert_exact(model)


def test_a_layer_told_to_compute_in_bfloat16_is_refused(checkpoint: Path) -> None:
    model = loaded(checkpoint, quantization_config=four_bits())
    weights.prepare_(model, torch.bfloat16)
    with pytest.raises(sc.NotExact, match=r"computes in torch\.bfloat16"):
        sc.freeze(sc.LM(model), prompt())


def test_eight_bits_of_bitsandbytes_round_activations_and_are_refused(checkpoint: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    model = loaded(checkpoint, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    with pytest.raises(
        sc.NotExact, match=r"q_proj, a Linear8bitLt that rounds them\. .* model\.dequantize\(\)\.eval\(\)"
    ):
        sc.freeze(sc.LM(model), prompt())
    assert_exact(model.dequantize().eval())


def test_a_four_bit_folder_loads(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    loaded(folder, quantization_config=four_bits()).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    lm = sc.load(tmp_path, dtype="float32")
    assert any("Linear4bit" in type(module).__name__ for module in lm.model.modules())
    certificate = sc.freeze(lm, "The bridge out of Marin is the").certificate
    assert max(certificate.reconstruction, certificate.affinity) <= 1e-5


def test_packed_folders_are_verified_in_their_own_type(folder: Path, tmp_path: Path) -> None:
    """And in float32, where that is wider."""
    from transformers import AutoTokenizer

    loaded(folder, quantization_config=four_bits(), dtype=torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["verify", str(tmp_path), "--json", "--convention", "gate"])
    rows = json.loads(result.stdout)["certificates"]
    kinds = [("bfloat16", "bfloat16", True), ("bfloat16", "float32", True)]
    assert [(row["dtype"], row["precision"], row["exact"]) for row in rows] == kinds
    assert result.exit_code == 0
    result = CliRunner().invoke(app, ["verify", str(tmp_path), "--convention", "gate"])
    assert "precision" in result.stdout
    result = CliRunner().invoke(app, ["verify", str(tmp_path), "--json", "--dequantize", "--dtype", "float64",
                                      "--convention", "gate"])  # fmt: skip
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)["certificates"]
    assert (row["dtype"], row["exact"]) == ("float64", True)
    assert row["reconstruction"] <= 1e-12


@pytest.mark.parametrize(("name", "exact"), [("Int8WeightOnlyConfig", True), ("IntxWeightOnlyConfig", True),
    ("Int8DynamicActivationInt8WeightConfig", False), ("Int8DynamicActivationIntxWeightConfig", False)])  # fmt: skip
def test_torchao_rounds_weights_or_is_refused(checkpoint: Path, name: str, exact: bool) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = loaded(checkpoint)
    quantization.quantize_(model if exact else model.model.layers, getattr(quantization, name)())  # the head, too
    if exact:
        run = assert_exact(model)
        torch.testing.assert_close(run.hidden @ run.lm.unembedding.T, run.logits, rtol=1e-4, atol=1e-4)
    else:
        with pytest.raises(sc.NotExact, match="q_proj, a Linear that rounds them"):
            sc.freeze(sc.LM(model), prompt())


def test_hqq_is_what_it_stands_for(checkpoint: Path) -> None:
    hqq = pytest.importorskip("hqq.core.quantize")
    model = loaded(checkpoint)
    for layer in model.model.layers:
        layer.mlp.up_proj = hqq.HQQLinear(
            layer.mlp.up_proj, hqq.BaseQuantizeConfig(nbits=4, group_size=64), compute_dtype=torch.float32, device="cpu"
        )
    run = assert_exact(model.eval())
    assert run.certificate.operations["whole_linear: unpacked"] == 3


class Kernel(torch.autograd.Function):
    """A product with signs and a scale for each row, whose inside no torch function sees."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor, signs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x @ (signs * scale[:, None]).T


class Ternary(nn.Module):
    """A linear layer of a format that is made up: -1, 0 and 1, and a scale for each row."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.scale = nn.Parameter(layer.weight.detach().abs().mean(1))
        weight = (layer.weight.detach() / self.scale[:, None]).round().clamp(-1, 1).to(torch.int8)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), None
        self.out_features = layer.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Kernel.apply(x, self.weight.to(x.dtype), self.scale)


def test_a_packed_format_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's, too; without the row its kernel is refused."""
    model = model_of("llama").model
    for layer in model.model.layers:
        layer.mlp.down_proj = Ternary(layer.mlp.down_proj)
    model.lm_head = Ternary(model.lm_head)
    model.eval()
    layers = len(model.model.layers)
    with pytest.raises((sc.NoRule, sc.NotExact, NoPoint)):
        sc.freeze(sc.LM(model), prompt())
    row = weights.Packing(lambda module: module.weight * module.scale[:, None])
    monkeypatch.setitem(weights.PACKED, f"{__name__}.Ternary", row)
    lm = sc.LM(model)
    run = sc.freeze(lm, prompt())
    assert max(run.certificate.reconstruction, run.certificate.affinity) <= 1e-12
    assert run.certificate.operations["whole_linear: unpacked"] == layers + 1
    assert lm.outputs == len(lm.unembedding)
    torch.testing.assert_close(run.hidden @ lm.unembedding.T, run.logits, rtol=0, atol=1e-12)
    weights.dequantize_(model)
    assert {type(layer) for layer in (model.lm_head, model.model.layers[0].mlp.down_proj)} == {nn.Linear}
    torch.testing.assert_close(sc.freeze(sc.LM(model), run.ids).logits, run.logits, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------- methods


def test_every_method_that_transformers_registers_has_a_row() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    assert set(AUTO_QUANTIZER_MAPPING) <= set(quantization.METHODS)  # older ones register fewer


@pytest.mark.parametrize("method", [*packed.DEQUANTISED, "mxfp4"])
def test_packed_weights_are_exact_once_dequantised(method: str, folder: Path, tmp_path: Path) -> None:
    """Weight by weight what they stand for; refused if that is not asked for: layers round activations on GPUs."""
    if method == "mxfp4":
        stands = packed.experts(tmp_path, folder)
    else:
        packing, pack, package = packed.DEQUANTISED[method]
        pytest.importorskip(package or "torch")
        stands = packed.written(tmp_path, folder, packing, pack)
    said = refused(ModelRefused, f"packed as {method} must be dequantised", tmp_path)
    assert "dequantize=True (--dequantize)" in said
    lm = sc.load(tmp_path, dequantize=True, dtype="float32")
    for key, weight in lm.model.state_dict().items():
        torch.testing.assert_close(weight, stands[key], rtol=1e-6, atol=1e-7, msg=key)
    assert_exact(lm.model, [3, 4, 5])
    certificate = sc.freeze(sc.load(tmp_path, dequantize=True, dtype="float64"), [3, 4, 5]).certificate
    assert max(certificate.reconstruction, certificate.affinity) <= 1e-12


@pytest.mark.parametrize("method", packed.PACKED)
def test_packed_weights_are_exact_as_they_are(method: str, folder: Path, tmp_path: Path) -> None:
    packing, pack, package, dtype = packed.PACKED[method]
    pytest.importorskip(package)
    packed.written(tmp_path, folder, packing, pack)
    lm = sc.load(tmp_path, dtype=dtype)
    certificate = sc.freeze(lm, [3, 4, 5]).certificate
    assert max(certificate.reconstruction, certificate.affinity) <= (1e-6 if dtype == "float32" else 3e-2)


def test_gptq_can_be_dequantised(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel")
    stands = packed.written(tmp_path, folder, packed.GPTQ, packed.by_gptq)
    model = sc.load(tmp_path, dtype="float32", dequantize=True).model
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(weight, stands[key], rtol=1e-6, atol=1e-7, msg=key)
    assert_exact(model, [3, 4, 5])


def test_eight_bits_are_exact_once_dequantised(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoTokenizer, BitsAndBytesConfig

    loaded(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    refused(ModelRefused, "packed as bitsandbytes_8bit must be dequantised", tmp_path)
    lm = sc.load(tmp_path, dequantize=True, dtype="float32")
    assert_exact(lm.model, [3, 4, 5])
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(lm.logits([3, 4]), plain(torch.tensor([[3, 4]])).logits[0], rtol=0.1, atol=0.5)


def test_four_bits_can_be_dequantised(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    loaded(folder, quantization_config=four_bits()).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    packed_too = sc.load(tmp_path, dtype="float32")
    lm = sc.load(tmp_path, dtype="float32", dequantize=True)
    assert not any("Linear4bit" in type(module).__name__ for module in lm.model.modules())
    torch.testing.assert_close(lm.logits([3, 4]), packed_too.logits([3, 4]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [name for name, row in quantization.METHODS.items() if row.result == "refused"])
def test_methods_that_round_activations_are_refused(method: str, copy_of: Path) -> None:
    edit(copy_of, quantization_config={"quant_method": method})
    refused(ModelRefused, f"packed as {method}: its layers round activations", copy_of)


@pytest.mark.parametrize("method", ["hqq", "sinq"])
def test_methods_that_are_exact_in_memory_only(method: str, copy_of: Path) -> None:
    edit(copy_of, quantization_config={"quant_method": method})
    refused(ModelRefused, f"packed as {method} cannot be loaded here.*give secant.LM the model", copy_of)


def test_what_cannot_be_dequantised_says_so(copy_of: Path) -> None:
    edit(copy_of, quantization_config={"quant_method": "vptq"})
    refused(BadArgument, "dequantize requires .* packed as vptq", copy_of, dequantize=True)


def test_plain_weights_may_be_asked_for_anyway(folder: Path) -> None:
    assert torch.equal(sc.load(folder, dequantize=True).logits([3]), sc.load(folder).logits([3]))


def test_methods_are_documented() -> None:
    """docs/reference/quantization.md is what tools/quantization.py writes."""
    page = (Path(__file__).parents[1] / "docs" / "reference" / "quantization.md").read_text()
    for name, row in quantization.METHODS.items():
        assert f"| {name} | {row.result} |" in page


@pytest.fixture
def copy_of(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


# ------------------------------------------------------------------------------------------- wrappers


@pytest.mark.parametrize("wrap", [nn.DataParallel, "ddp"])
def test_wrappers_are_taken_off(wrap: Any) -> None:
    """What they wrap is the model; they only spread batches."""
    model = model_of("llama").model
    if wrap == "ddp":
        wrapped = object.__new__(nn.parallel.DistributedDataParallel)
        nn.Module.__init__(wrapped)
        wrapped.module = model
    else:
        wrapped = wrap(model)
    lm = sc.LM(wrapped)
    assert lm.model is model
    run = sc.freeze(lm, prompt())
    assert max(run.certificate.reconstruction, run.certificate.affinity) <= 1e-12


def test_compiled_models_say_what_they_wrap() -> None:
    compiled = torch.compile(model_of("llama").model)
    with pytest.raises(ModelRefused, match=r"a compiled region.*model\._orig_mod"):
        sc.LM(compiled)
    assert sc.freeze(sc.LM(compiled._orig_mod), prompt()).certificate.reconstruction <= 1e-12


# ------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": ["o_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["k_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_adapters_merged_and_not(options: dict[str, object]) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    lm = model_of("llama")
    adapted = peft.get_peft_model(lm.model, peft.LoraConfig(r=4, init_lora_weights=False, **options)).double().eval()
    apart = sc.LM(adapted)
    run = sc.freeze(apart, prompt())
    assert max(run.certificate.reconstruction, run.certificate.affinity) <= 1e-12
    J, head, table = run.operator().dense(), apart.unembedding, apart.embedding
    merged = sc.LM(adapted.merge_and_unload())
    torch.testing.assert_close(J, sc.freeze(merged, prompt()).operator().dense(), rtol=0, atol=1e-12 * float(J.norm()))
    torch.testing.assert_close(head, merged.unembedding, rtol=0, atol=1e-12)
    torch.testing.assert_close(table, merged.embedding, rtol=0, atol=1e-12)


def test_adapters_on_four_bits(checkpoint: Path) -> None:
    peft = pytest.importorskip("peft")
    model = loaded(checkpoint, quantization_config=four_bits(llm_int8_skip_modules=[]))
    weights.prepare_(model, torch.float32)
    config = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "up_proj", "lm_head"])
    run = assert_exact(peft.get_peft_model(model, config).eval())
    torch.testing.assert_close(run.hidden @ run.lm.unembedding.T, run.logits, rtol=1e-4, atol=1e-4)


def test_a_folder_of_an_adapter_alone_says_how_to_load_it(checkpoint: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    peft.get_peft_model(loaded(checkpoint), peft.LoraConfig(r=4)).save_pretrained(tmp_path)
    with pytest.raises(ModelRefused, match=r"only an adapter\. .*AutoPeftModelForCausalLM"):
        sc.load(tmp_path)


def test_virtual_tokens_are_refused(checkpoint: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(num_virtual_tokens=11, task_type="CAUSAL_LM")
    with pytest.raises(NoPoint, match="22 positions for 11 tokens"):
        sc.freeze(sc.LM(peft.get_peft_model(loaded(checkpoint), config).eval()), prompt())


# ------------------------------------------------------------------------------------------- placement


def placed(checkpoint: Path, tmp_path: Path, kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    accelerate = pytest.importorskip("accelerate")
    if kind == "auto":
        return loaded(checkpoint, device_map="auto", dtype=dtype)
    if kind == "memory":
        return accelerate.cpu_offload(loaded(checkpoint, dtype=dtype), execution_device=torch.device("cpu"))
    if kind == "disk":
        return accelerate.disk_offload(loaded(checkpoint, dtype=dtype), tmp_path, execution_device=torch.device("cpu"))
    where = {"model.embed_tokens": "disk", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    return loaded(checkpoint, device_map={**where, "lm_head": "disk"}, offload_folder=tmp_path, dtype=dtype)


@pytest.mark.parametrize("kind", ["auto", "memory", "disk", "map"])
def test_wherever_weights_are_kept(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    here = sc.freeze(sc.LM(loaded(checkpoint)), prompt())
    model = placed(checkpoint, tmp_path, kind)
    kept = {name: p.is_meta for name, p in model.named_parameters()}
    assert any(kept.values()) == (kind != "auto")
    lm = sc.LM(model)
    run = sc.freeze(lm, prompt(), ordinary=True)
    assert torch.equal(run.logits, here.logits)
    assert max(run.certificate.reconstruction, run.certificate.affinity) <= 1e-5
    assert run.certificate.ordinary == pytest.approx(sc.freeze(here.lm, prompt(), ordinary=True).certificate.ordinary)
    torch.testing.assert_close(run.operator().dense(), here.operator().dense())
    one, other = (sc.decode(each, here.hidden[-1:].T, "output")[0] for each in (lm, here.lm))
    assert [word.id for word in one] == [word.id for word in other]
    assert {name: p.is_meta for name, p in model.named_parameters()} == kept


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_fingerprint_is_the_same_wherever_weights_are_kept(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    away = placed(checkpoint, tmp_path, kind)
    assert all(p.is_meta for p in away.parameters())
    assert weights.fingerprint(away) == weights.fingerprint(loaded(checkpoint))
    other = loaded(checkpoint)
    with torch.no_grad():
        next(other.parameters())[3, 2] += 1e-3
    assert weights.fingerprint(other) != weights.fingerprint(away)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "disk", "map"])
@pytest.mark.parametrize(("own", "wide"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float64")])
def test_a_wider_system_leaves_offloaded_weights_alone(
    checkpoint: Path, tmp_path: Path, kind: str, own: str, wide: str
) -> None:
    """What accelerate loads during a wider replay, it must not keep in the wider type."""
    model = placed(checkpoint, tmp_path, kind, dtype=getattr(torch, own))
    before = dict(model.named_parameters())
    lm = sc.LM(model)
    for _ in range(2):
        certificate = sc.freeze(lm, prompt(), precision=wide, ordinary=True).certificate
        assert (certificate.dtype, certificate.precision) == (own, wide)
        assert certificate.affinity <= (1e-12 if wide == "float64" else 1e-5)
    after = dict(model.named_parameters())
    assert all(after[name] is p and p.dtype == getattr(torch, own) for name, p in before.items())


def test_the_head_is_the_head_wherever_its_weight_is(checkpoint: Path) -> None:
    """Offloaded weights and empty tensors have no address, weights in one block the same one."""
    accelerate, peft = pytest.importorskip("accelerate"), pytest.importorskip("peft")
    here = sc.freeze(sc.LM(loaded(checkpoint)), prompt())
    adapted = peft.get_peft_model(loaded(checkpoint), peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"])).eval()
    flat, start = loaded(checkpoint), 0
    block = torch.cat([p.detach().flatten() for p in flat.parameters()])
    for p in flat.parameters():
        p.data = block[start : start + p.numel()].view_as(p)
        start += p.numel()
    cpu = torch.device("cpu")
    whole = accelerate.cpu_offload(loaded(checkpoint), execution_device=cpu, preload_module_classes=["LlamaMLP"])
    empty = accelerate.cpu_offload(loaded(checkpoint), execution_device=cpu)
    empty.model.layers[0].mlp.register_forward_hook(
        lambda m, x, out: torch.cat([out, out[:, torch.tensor([]).long()]], 1)
    )
    for model in (flat, whole, empty, accelerate.cpu_offload(adapted, execution_device=cpu)):
        run = sc.freeze(sc.LM(model), prompt())
        torch.testing.assert_close(run.hidden, here.hidden)
        torch.testing.assert_close(run.operator().dense(), here.operator().dense())
        torch.testing.assert_close(run.lm.unembedding, here.lm.unembedding)


def test_weights_kept_elsewhere_are_checked(checkpoint: Path, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = loaded(checkpoint)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(BadWeights, match=r"NaN or infinity in model\.layers\.2\.mlp\.up_proj\.weight"):
        sc.LM(accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu")))


def test_weights_that_were_never_loaded_are_refused() -> None:
    model = model_of("llama").model.to("meta")
    with pytest.raises(BadWeights, match="without elements"):
        sc.LM(model)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_spread_and_tied(folder: Path, dtype: str) -> None:
    pytest.importorskip("accelerate")
    lm = sc.load(folder, dtype=dtype, device="auto")
    assert str(lm.dtype) == f"torch.{dtype}"
    assert sc.freeze(lm, "The bridge out of Marin is the").certificate.forward_equal
    tied = model_of("llama", tie_word_embeddings=True)
    assert tied.embedding.data_ptr() == tied.unembedding.data_ptr()
    assert sc.freeze(tied, prompt()).certificate.reconstruction <= 1e-12


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_on_a_device(device: str) -> None:
    if not getattr(torch, device).is_available():
        pytest.skip(f"no {device} here")
    lm = model_of("qwen3", "sdpa", torch.float32)
    here = sc.freeze(lm, prompt()).operator().dense()
    run = sc.freeze(sc.LM(lm.model.to(device)), prompt())
    assert run.certificate.forward_equal
    assert run.certificate.reconstruction <= 1e-5
    torch.testing.assert_close(run.operator().dense().cpu(), here, rtol=1e-3, atol=1e-4)
