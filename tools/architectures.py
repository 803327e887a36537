"""Certify a small model of every causal language model type, and write the table that secant ships and documents.

    python tools/architectures.py [TYPE ...]

Without types, this certifies all and writes src/secant/architectures.csv and docs/reference/architectures.md; with
types, it prints their rows.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import sys
from pathlib import Path

import torch
import transformers
from rich.progress import track

import secant as sc
from secant.linearize.conventions import CONVENTIONS

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE / "tests"))
from families import EXCLUDED, model_of, prompt, types  # noqa: E402

TABLE = HERE / "src" / "secant" / "architectures.csv"
PAGE = HERE / "docs" / "reference" / "architectures.md"
COLUMNS = ("type", "result", "layers", "reconstruction", "affinity", "constants", "secants", "reason")

KINDS = {"recurrent": "Rwkv", "LSTM": "LSTM", "latent attention": "MLA", "Mamba": "Mamba", "attention": "Attention"}

HEAD = """# Architectures

This table lists every causal language model type that transformers {version} registers. Each was measured on a small
random model, with weights, norms, biases and decays moved off their initial values, and a prompt that is longer than
windows, chunks and kernels (`tests/families.py`).

- *exact*: in float64 the frozen network reproduces the model (reconstruction) and is affine (affinity), relative to the
  norm of y; in float32 the recorded pass equals the plain one bit for bit. The errors are the largest of `gate`, `up`
  and `half` with eager attention and of `gate` with sdpa, where the type has both. constants: ‖b‖ / ‖y‖ under `gate`.
- *secants*: the largest error of either kind under `halves` and `secant`; *no* where an operation is hidden from
  secant, in a custom autograd function that is exact only with frozen factors. Such a prompt raises `NotExact`.
- *refused*: the last column has the reason. *excluded*: does not decode text on its own.

`python tools/architectures.py` writes this page; `secant architectures` prints the table.

{exact} types are exact, {refused} refused, and {excluded} do not decode text on their own.

| type | result | layers | reconstruction | affinity | constants | secants | reason |
|---|---|---|---|---|---|---|---|
"""


def layers(lm: sc.LM) -> str:
    """The kinds of layers, from the configuration or else from the classes of modules, and whether it has experts."""
    config, classes = lm.model.config.get_text_config(), {type(module).__name__ for module in lm.model.modules()}
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not kinds:
        kinds = [kind for kind, name in KINDS.items() if any(name in one for one in classes)][:1]
    experts = ["experts"] if any("Expert" in one or "MoE" in one for one in classes) else []
    return ", ".join(dict.fromkeys([*(kind.replace("_", " ") for kind in kinds), *experts]))


def certified(family: str) -> dict[str, str]:
    """A row of the table."""
    row = dict.fromkeys(COLUMNS, "") | {"type": family}
    try:
        lm = model_of(family)
        row["layers"] = layers(lm)
        certificate = sc.freeze(lm, prompt()).certificate
        certificates = [
            certificate,
            *(sc.freeze(lm, prompt(), convention=c).certificate for c in ("up", "half")),
        ]
        with contextlib.suppress(ValueError):  # it does not support this attention
            certificates += [sc.freeze(model_of(family, "sdpa"), prompt()).certificate]
        sc.freeze(model_of(family, dtype=torch.float32), prompt())  # raises if the passes differ in a bit
    except sc.SecantError as error:
        return row | {"result": "refused", "reason": " ".join(str(error).split())}
    row["secants"] = secants(lm)
    worst = {name: max(getattr(c, name) for c in certificates) for name in ("reconstruction", "affinity")}
    exact = worst["reconstruction"] <= 1e-12 and worst["affinity"] <= 1e-11
    figures = {name: f"{value:.1e}" for name, value in (worst | {"constants": certificate.constants}).items()}
    return row | figures | {"result": "exact" if exact else "inexact"}


def secants(lm: sc.LM) -> str:
    """The worst error under the conventions with secants, or no."""
    try:
        found = [sc.freeze(lm, prompt(), convention=c).certificate for c, of in CONVENTIONS.items() if of.secants]
    except sc.NotExact:
        return "no"
    return f"{max(max(c.reconstruction, c.affinity) for c in found):.1e}"


def write(rows: list[dict[str, str]]) -> None:
    """Write the table and the page."""
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, (*COLUMNS, "transformers"), lineterminator="\n")
        out.writeheader()
        out.writerows(row | {"transformers": transformers.__version__} for row in rows)
    PAGE.write_text(page(read()), encoding="utf-8")


def read() -> list[dict[str, str]]:
    """The table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def page(rows: list[dict[str, str]]) -> str:
    """The table as a page."""
    count = {result: sum(row["result"] == result for row in rows) for result in ("exact", "refused", "excluded")}
    lines = ["| " + " | ".join(row[column].replace("|", "\\|") for column in COLUMNS) + " |" for row in rows]
    return HEAD.format(version=rows[0]["transformers"], **count) + "\n".join(lines) + "\n"


def main(chosen: list[str]) -> None:
    """Certify the given types and print them, or certify all and write them."""
    transformers.logging.set_verbosity_error()
    rows = []
    for family in track(chosen or types(), "certificates"):
        rows.append(certified(family))
        if chosen:
            print("  ".join(rows[-1].values()))
        gc.collect()
    if not chosen:
        excluded = [
            dict.fromkeys(COLUMNS, "") | {"type": t, "result": "excluded", "reason": EXCLUDED[t]} for t in EXCLUDED
        ]
        write(sorted(rows + excluded, key=lambda row: row["type"]))


if __name__ == "__main__":
    main(sys.argv[1:])
