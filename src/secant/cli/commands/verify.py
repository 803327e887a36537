"""`secant verify`"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.cli.options import Conventions, Dtype, Opening, models
from secant.cli.output import Printing
from secant.cli.progress import progressing
from secant.cli.schemas import TEXT, Schema, printing
from secant.cli.verb import Help, verb
from secant.linearize.conventions import CONVENTIONS

if TYPE_CHECKING:
    from secant.model.lm import LM
    from secant.results.view import View


@dataclass(frozen=True)
class Certificates:
    """The certificates of a model at a prompt: one for each dtype and convention, or the reason why there is none."""

    model: str
    tokens: list[str]
    rows: list[dict[str, Any]]

    def show(self) -> None:
        """Print the certificates on standard output."""
        from secant.results.terminal import show

        show(self.view())

    def to_dict(self) -> dict[str, Any]:
        """All certificates, ready for JSON."""
        return {"model": self.model, "tokens": self.tokens, "certificates": self.rows}

    def view(self) -> View:
        """The view: a line for each certificate, and the reason for each missing one."""
        from secant.results.view import Cell, Grid, Shown, Tokens, View

        sharpened = any(row["precision"] != row["dtype"] for row in self.rows)
        columns = [
            *(Shown(name) for name in ("dtype", *(["precision"] if sharpened else []), "convention", "forward")),
            Shown("reconstruction", "error"), Shown("affinity", "error"), Shown("tolerance", "error", spare=1),
            Shown("ordinary J", "number", spare=2),
        ]  # fmt: skip
        rows: list[list[Any]] = [
            [
                *(
                    row["dtype"],
                    *([row["precision"]] if sharpened else []),
                    row["convention"],
                    "equal" if row["forward_equal"] else "differs",
                ),
                *(row["reconstruction"], row["affinity"], f"{row['tolerance']:.0e}", f"{row['ordinary']:.2f}"),
            ]
            if row["exact"]
            else [
                *(row["dtype"], *([row["precision"]] if sharpened else []), row["convention"]),
                *(Cell("not exact", "bad"), None, None, None, None),
            ]
            for row in self.rows
        ]
        facts = {"model": self.model, "prompt": Tokens(self.tokens)}
        return View("", facts, [Grid(columns, rows)], warnings=sorted({r["why"] for r in self.rows if not r["exact"]}))


def _schema(command: str) -> Schema:
    """What `--json` prints: each certificate, or why there is none."""
    from secant.linearize.certificate import Certificate
    from secant.results.json_schema import dataclass_schema, object_schema

    exact = dataclass_schema(Certificate)
    exact["properties"]["exact"] = {"const": True}
    failed = {"exact": {"const": False}, "dtype": TEXT, "precision": TEXT, "convention": TEXT, "why": TEXT}
    inexact = {"type": "object", "properties": failed, "required": list(failed), "additionalProperties": False}
    parts = {
        "model": TEXT,
        "tokens": {"type": "array", "items": TEXT},
        "certificates": {"type": "array", "items": {"oneOf": [exact, inexact]}},
    }
    return object_schema(command, parts, list(parts), "The certificates of a model, one for each type and convention.")


@printing(_schema)
@verb
def verify(
    model: Annotated[
        str,
        typer.Argument(help="A folder, a GGUF file, a name on the Hugging Face hub, or atlas.", autocompletion=models),
    ],
    opening: Opening,
    freezing: Annotated[
        Conventions,
        Help(
            convention="Check only this convention (default: all that have names of their own). Repeatable.",
            precision="Evaluate the linear systems of narrower types in this one.",
            chat="Send the prompt of --prompt as a user's chat message.",
        ),
    ],
    output: Printing,
    prompt: Annotated[str | None, typer.Option(help="The prompt; by default 8 random tokens.")] = None,
    dtype: Annotated[
        list[Dtype] | None,
        typer.Option(help="Check only this type (default: all, or the type of packed weights). Repeatable."),
    ] = None,
) -> None:
    """Check that secant reproduces a model exactly. Covers each dtype and convention; exit code 2 if it does not."""
    import secant as sc
    from secant.model.loading import is_packed

    if freezing.chat and prompt is None:
        raise sc.SecantError("--chat requires a prompt", "none", "Add --prompt.")
    given = None if prompt is None else freezing.prompt(prompt)
    how = {"dequantize": opening.dequantize, **opening.where, "allow_remote_code": opening.allow_remote_code}
    packed = is_packed(model, **how)
    chosen: list[Any] = dtype or ([None] if packed else list(Dtype))  # packed weights have only their own type
    conventions = list(dict.fromkeys(freezing.convention or CONVENTIONS))
    rows: list[dict[str, Any]] = []
    with progressing() as progress:
        for wanted in chosen:
            lm = opening.load(model, wanted)
            ids = _random_tokens(lm, freezing.seed) if given is None else lm.encode(given)
            name = Dtype(str(lm.dtype).removeprefix("torch."))
            systems = [_wider(freezing.precision, name)]
            if packed and freezing.precision is None:  # it has only this type: also evaluate it in float32
                systems = list(dict.fromkeys([None, _wider(Dtype.float32, name)]))
            pairs = [(system, which) for system in systems for which in conventions]
            for system, which in pairs:
                how = {**freezing.how, "precision": system, "ordinary": True}
                try:
                    certificate = sc.freeze(lm, ids, convention=which, **how).certificate
                    rows.append({"exact": True, **asdict(certificate)})
                except (sc.NotExact, sc.NoRule) as error:
                    said = {"dtype": name.value, "precision": system or name.value, "convention": which}
                    rows.append({"exact": False, **said, "why": str(error)})
                progress("certificates", len(rows), len(chosen) * len(pairs))
    output.finish(Certificates(model, [lm.text(i) for i in ids], rows))
    if not all(row["exact"] for row in rows):
        raise typer.Exit(2)


def _wider(precision: Dtype | None, dtype: Dtype) -> str | None:
    """The precision of a model's linear system, if it is wider than the model's own type."""
    order = list(Dtype)
    return precision.value if precision and order.index(precision) < min(2, order.index(dtype)) else None


def _random_tokens(lm: LM, seed: int) -> list[int]:
    import torch

    length = min(8, lm.context or 8)
    drawn = torch.randint(lm.size, (2, length), generator=torch.Generator().manual_seed(seed))
    return drawn[1].tolist()  # drawn[0] is the reference of secants, which must differ
