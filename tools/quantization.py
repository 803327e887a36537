"""Try every method of quantisation that runs on a CPU, and write docs/reference/quantization.md.

    python tools/quantization.py [METHOD ...]

Each method packs a small Llama, which is then opened and frozen in float32. If a method requires a package that is not
installed, its figures on the page are kept.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import secant as sc
from secant.model import quantization, weights
from secant.model.gguf_config import ARCHITECTURES

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests")]
PAGE = ROOT / "docs" / "reference" / "quantization.md"
IDS = [3, 4, 5, 6, 7, 8, 9, 10]
HEAD = """# Packed weights

This table lists every quantisation method that transformers {version} registers, and what secant does with its
checkpoints.

- *exact*: for the weights that it represents.
- *exact after dequantize=True*: `sc.load(..., dequantize=True)` and `--dequantize` replace the packed weights with the
  plain ones that they represent; without it, the checkpoint is refused.
- *refused*: its layers round activations, which no linear map does, and transformers cannot dequantise it.
- *exact in memory*: secant does not load it from a folder, but is exact on a model that the method's package packed
  (`secant.LM`).
- *not tried*: it requires a GPU. It is loaded if transformers can, and the certificate of each run decides: a kernel
  without a rule is refused, and so is a pass that is not affine.

The errors are those of the certificate of a small Llama (gpt-oss for mxfp4) in float32 (auto-round: bfloat16), under
`gate`. `python tools/quantization.py` writes this page from the table in `src/secant/model/quantization.py`, which also
decides what is loaded.

| method | result | reconstruction | affinity | |
|---|---|---|---|---|
"""
FILES = """
## GGUF files

The package gguf dequantises their weights, whatever the types. secant reads the configuration itself, because
transformers leaves out rotary scaling, windows, softcaps and biases. An unknown key in the metadata is an error, and so
is a tensor that has no place in the model.

secant reads these architectures (llama.cpp's names): {architectures}.
"""


def certified(model: Any) -> tuple[str, str]:
    """The errors of a model's certificate."""
    certificate = sc.freeze(sc.LM(model.eval()), IDS).certificate
    return f"{certificate.reconstruction:.1e}", f"{certificate.affinity:.1e}"


def plain(folder: Path) -> Path:
    """A small model that is not packed."""
    import packed
    from families import model_of

    model_of("llama", dtype=torch.float32, **packed.WIDE).model.save_pretrained(folder)
    return folder


def dequantised(method: str) -> Callable[[Path], Any]:
    """Opens a checkpoint that is packed by a method."""

    def opened(folder: Path) -> Any:
        import packed
        import tiny_model

        tiny_model.main(folder / "tokenizer")
        if method == "mxfp4":
            packed.experts(folder / "model", folder / "tokenizer")
        else:
            packing, pack, _ = packed.DEQUANTISED[method]
            packed.written(folder / "model", folder / "tokenizer", packing, pack)
        return sc.load(folder / "model", dequantize=True, dtype="float32").model

    return opened


def as_packed(method: str) -> Callable[[Path], Any]:
    """Opens a checkpoint that is packed by a method, and leaves it packed."""

    def opened(folder: Path) -> Any:
        import packed
        import tiny_model

        tiny_model.main(folder / "tokenizer")
        packing, pack, _, dtype = packed.PACKED[method]
        packed.written(folder / "model", folder / "tokenizer", packing, pack)
        return sc.load(folder / "model", dtype=dtype).model

    return opened


def of_hqq(folder: Path) -> Any:
    """A model of 4 bits that is packed in memory."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model = AutoModelForCausalLM.from_pretrained(plain(folder), dtype=torch.float32)
    packing = BaseQuantizeConfig(nbits=4, group_size=64)
    for name, layer in list(model.named_modules()):
        if name.endswith("_proj"):
            packed = HQQLinear(layer, packing, compute_dtype=torch.float32, device="cpu")
            model.set_submodule(name, packed)
    return model


def of_sinq(folder: Path) -> Any:
    """A model of 4 bits that is packed in memory."""
    from transformers import SinqConfig

    packing = SinqConfig(nbits=4, group_size=64, modules_to_not_convert=["lm_head"])
    return AutoModelForCausalLM.from_pretrained(plain(folder), quantization_config=packing, dtype=torch.float32)


def of_bitsandbytes(folder: Path) -> Any:
    """A model of 4 bits."""
    packing = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(plain(folder), quantization_config=packing, dtype=torch.float32)
    weights.prepare_(model, torch.float32)
    return model


def of_eight_bits(folder: Path) -> Any:
    """A model of 8 bits, dequantised."""
    packing = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(plain(folder), quantization_config=packing, dtype=torch.float32)
    return model.dequantize()


def of_torchao(folder: Path) -> Any:
    """A model whose weights are integers of 8 bits."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = AutoModelForCausalLM.from_pretrained(plain(folder), dtype=torch.float32)
    quantize_(model, Int8WeightOnlyConfig())
    return model


def of_quanto(folder: Path) -> Any:
    """The same, by quanto."""
    from transformers import QuantoConfig

    packing = QuantoConfig(weights="int8")
    return AutoModelForCausalLM.from_pretrained(plain(folder), quantization_config=packing, dtype=torch.float32)


def of_gguf(folder: Path) -> Any:
    """A GGUF file of 8 bits."""
    import gguf_files
    import packed
    from families import model_of

    model = model_of("llama", dtype=torch.float32, **packed.WIDE).model
    return sc.load(gguf_files.write(folder / "model.gguf", model, "Q8_0")).model


TRIALS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "bitsandbytes_4bit": ("bitsandbytes", of_bitsandbytes),
    "bitsandbytes_8bit": ("bitsandbytes", of_eight_bits),
    "torchao": ("torchao", of_torchao),
    "quanto": ("optimum.quanto", of_quanto),
    "gguf": ("gguf", of_gguf),
    "fp8": ("accelerate", dequantised("fp8")),
    "mxfp8": ("accelerate", dequantised("mxfp8")),
    "metal": ("accelerate", dequantised("metal")),
    "mxfp4": ("accelerate", dequantised("mxfp4")),
    "gptq": ("gptqmodel", as_packed("gptq")),
    "aqlm": ("aqlm", dequantised("aqlm")),
    "auto-round": ("auto_round", as_packed("auto-round")),
    "quark": ("quark", as_packed("quark")),
    "hqq": ("hqq", of_hqq),
    "sinq": ("sinq", of_sinq),
    "awq": ("gptqmodel", dequantised("awq")),
    "compressed-tensors": ("compressed_tensors", dequantised("compressed-tensors")),
}


def there(package: str) -> bool:
    """Whether a package is installed."""
    return find_spec(package.partition(".")[0]) is not None and find_spec(package) is not None


def page(figures: dict[str, tuple[str, str]]) -> str:
    """The page with these errors, by method."""
    lines = [
        f"| {name} | {row.result} | {' | '.join(figures.get(name, ('', '')))} | {row.why} |"
        for name, row in sorted(quantization.METHODS.items())
    ]
    names = ", ".join(f"`{name}`" for name in sorted(ARCHITECTURES))
    return HEAD.format(version=transformers.__version__) + "\n".join(lines) + "\n" + FILES.format(architectures=names)


def written() -> dict[str, tuple[str, str]]:
    """The errors in the present page, by method."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    found = re.findall(r"^\| (\S+) \| [^|]+ \| (\d\S+) \| (\d\S+) \|", text, re.MULTILINE)
    return {name: (reconstruction, affinity) for name, reconstruction, affinity in found}


def main() -> None:
    """Try all methods, and write the page."""
    transformers.logging.set_verbosity_error()
    figures = written()
    for name in sys.argv[1:] or TRIALS:
        package, opened = TRIALS[name]
        if not there(package):
            print(f"{name}: {package} is not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = certified(opened(Path(folder)))
        print(name, *figures[name])
    PAGE.write_text(page(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
