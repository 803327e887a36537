"""`secant verify`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from secant.cli.options import (
    AttentionOption,
    Convention,
    DebugOption,
    DeviceOption,
    Dtype,
    JsonOption,
    PickleOption,
    RemoteOption,
    SeedOption,
    loaded,
    progressing,
    reported,
)
from secant.cli.printing import print_json

if TYPE_CHECKING:
    from secant.model.lm import LM


@reported
def verify(
    model: Annotated[str, typer.Argument(help="A folder, a name on the Hugging Face hub, or atlas.")],
    prompt: Annotated[str | None, typer.Option(help="A prompt; by default 8 random tokens.")] = None,
    dtype: Annotated[
        list[Dtype] | None,
        typer.Option(help="Only this type; may be given again. Without it, all; of packed weights, their own."),
    ] = None,
    convention: Annotated[list[Convention] | None, typer.Option(help="Only this one; may be given again.")] = None,
    precision: Annotated[Dtype | None, typer.Option(help="Evaluate the systems of lower types in this one.")] = None,
    json_: JsonOption = False,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    seed: SeedOption = 0,
    allow_remote_code: RemoteOption = False,
    allow_pickle: PickleOption = False,
    debug: DebugOption = False,
) -> None:
    """Certify a model: is its forward pass reproduced, in each dtype and convention? Exit code 2 if any is not."""
    from dataclasses import asdict

    import secant as sc
    from secant.model.loading import configuration

    packed = hasattr(configuration(model, allow_remote_code), "quantization_config")
    chosen: list[Any] = dtype or ([None] if packed else list(Dtype))  # packed weights have a type of their own
    held = convention or list(Convention)
    rows: list[dict[str, Any]] = []
    with progressing() as progress:
        for wanted in chosen:
            lm = loaded(model, wanted, device, attention, allow_remote_code, allow_pickle)
            ids = _random_tokens(lm, seed) if prompt is None else lm.encode(prompt)
            order, name = list(Dtype), Dtype(str(lm.dtype).removeprefix("torch."))
            wider = precision.value if precision and order.index(precision) < min(2, order.index(name)) else None
            for which in held:
                how: dict[str, Any] = {"convention": which.value, "precision": wider, "ordinary": True, "seed": seed}
                try:
                    rows.append({"exact": True, **asdict(sc.freeze(lm, ids, **how).certificate)})
                except sc.NotExact as error:
                    rows.append({"exact": False, "dtype": name.value, "convention": which.value, "why": str(error)})
                progress("certificates", len(rows), len(chosen) * len(held))
    if json_:
        print_json({"model": model, "tokens": [lm.text(i) for i in ids], "certificates": rows})
    else:
        from secant.cli.terminal import console, show_certificates

        show_certificates(console(), model, [lm.text(i) for i in ids], rows)
    if not all(row["exact"] for row in rows):
        raise typer.Exit(2)


def _random_tokens(lm: LM, seed: int) -> list[int]:
    import torch

    length = min(8, lm.context or 8)
    return torch.randint(lm.size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
