"""Models of real sizes with random weights on a GPU: times and peak memory, as lines of a table.

- Llama-3.2-3B's shape, float32, T 8: J in full, at most 1.5 times the matrix products that it consists of.
- Llama-3.1-8B's shape, bfloat16: J in full, all layers, top 8 at T 427 and at T 4,096.
- Qwen3-14B's shape, float64, T 8: the certificate.
- Llama-3.3-70B's shape in 4 bits, T 8: the certificate and the top 8.

    python benchmarks/gpu.py [3b] [8b] [14b] [70b] [--small]  # --small: tiny, on a CPU too, to try the script
"""

import argparse
import copy
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import TypeVar

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config

import secant as sc

LLAMA = {"num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 8192}
SHAPES = {
    "3b": LlamaConfig(
        hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24, head_dim=128,
        tie_word_embeddings=True, **LLAMA,
    ),
    "8b": LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, **LLAMA
    ),
    "14b": Qwen3Config(
        hidden_size=5120, intermediate_size=17408, num_hidden_layers=40, num_attention_heads=40, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, max_position_embeddings=8192,
    ),
    "70b": LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, **LLAMA
    ),
}  # fmt: skip
SMALL = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1000,
}  # fmt: skip
TYPES = {"3b": torch.float32, "8b": torch.bfloat16, "14b": torch.float64, "70b": torch.bfloat16}

Result = TypeVar("Result")


def model(name: str, small: bool, device: torch.device) -> sc.LM:
    config = SHAPES[name]
    if small:
        own = {key: value for key, value in config.to_dict().items() if key != "layer_types"}
        config = type(config).from_dict({**own, **SMALL})
    layers = config.num_hidden_layers
    if name == "70b":
        config.num_hidden_layers = 1  # the others are copies of it, in 4 bits
    torch.manual_seed(0)
    with device:
        torch.set_default_dtype(TYPES[name])
        made = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        torch.set_default_dtype(torch.float32)
    if name == "70b":
        quantise(made, layers, device)
    return sc.LM(made.eval().requires_grad_(False), name=name)


def quantise(made: LlamaForCausalLM, layers: int, device: torch.device) -> None:
    """Pack the one layer's weights as bitsandbytes does, and make the others like it."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    (layer,) = made.model.layers
    for path, linear in [(p, m) for p, m in layer.named_modules() if isinstance(m, torch.nn.Linear)]:
        packed = Linear4bit(
            linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
        )
        packed.weight = Params4bit(linear.weight.data.cpu(), requires_grad=False, quant_type="nf4")
        layer.set_submodule(path, packed.to(device))
    for i in range(1, layers):
        made.model.layers.append(copy.deepcopy(layer))
        made.model.layers[i].self_attn.layer_idx = i
    made.config.num_hidden_layers = layers


def measured(what: str, device: torch.device, work: Callable[[], Result]) -> Result | None:
    """Run the work, and print its seconds and peak memory; None if secant refuses it."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    try:
        result = work()
    except sc.SecantError as error:
        print(f"| {what} | {error} | |", flush=True)
        return None
    if on_gpu:
        torch.cuda.synchronize(device)
    memory = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if on_gpu else ""
    print(f"| {what} | {time.perf_counter() - start:.2f} s | {memory} |", flush=True)
    return result


def products_alone(lm: sc.LM, T: int, device: torch.device) -> None:
    """The matrix products of which J consists, in the chunks that `dense` uses."""
    c = lm.model.config
    d, heads = c.hidden_size, c.num_attention_heads * c.head_dim
    kv = c.num_key_value_heads * c.head_dim
    shapes = [(d, heads), (d, kv), (d, c.intermediate_size), (d, c.intermediate_size), (d, c.intermediate_size)]
    weights = [torch.randn(shape, device=device, dtype=lm.dtype) for shape in shapes]
    rows = [torch.randn(256 * T, shape[0], device=device, dtype=lm.dtype) for shape in shapes]
    for _ in range(c.num_hidden_layers * d // 256):
        for row, weight in zip(rows, weights, strict=True):
            row @ weight


def leading(run: sc.Run) -> sc.SVD:
    """The top 8 of the whole operator."""
    return sc.svd(run.operator(), 8)


def lines(name: str, small: bool, device: torch.device) -> None:
    """All lines of one model."""
    lm = measured(f"{name}: random weights, {TYPES[name]}", device, partial(model, name, small, device))
    if lm is None:
        return
    run = measured(f"{name}: freeze, T 8", device, partial(sc.freeze, lm, list(range(1, 9))))
    if run is None:
        return
    c = run.certificate
    print(f"| {name}: reconstruction, affinity | {c.reconstruction:.1e}, {c.affinity:.1e} | |")
    op = run.operator()
    if name in ("3b", "8b"):
        measured(f"{name}: J, T 8", device, op.dense)
        measured(f"{name}: its matrix products alone", device, partial(products_alone, lm, 8, device))
    if name == "8b":
        measured(f"{name}: all layers, T 8, top 8", device, partial(sc.layers, run, 8))
        for T in (42, 409) if small else (427, 4096):
            ids = [i % 900 + 1 for i in range(T)]
            frozen = partial(sc.freeze, lm, ids, precision="float32")
            wide = measured(f"{name}: freeze, T {T}, system in float32", device, frozen)
            if wide is not None:
                measured(f"{name}: top 8 of the whole operator, T {T}", device, partial(leading, wide))
            del wide
    if name == "70b":
        measured(f"{name}: top 8 of the whole operator, T 8", device, partial(sc.svd, op, 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(SHAPES)}; by default all")
    parser.add_argument("--small", action="store_true", help="tiny models, on a CPU too")
    args = parser.parse_args()
    if unknown := set(args.models) - set(SHAPES):
        parser.error(f"models are {', '.join(SHAPES)}; got {', '.join(unknown)}")
    if not torch.cuda.is_available() and not args.small:
        print("There is no GPU here: nothing was measured.")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {date.today().isoformat()}\n")
    print("| what | time | peak memory |\n| --- | --- | --- |")
    for name in args.models or SHAPES:
        lines(name, args.small, device)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
