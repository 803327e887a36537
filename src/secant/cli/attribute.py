"""`secant attribute`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secant.cli.options import (
    AttentionOption,
    ChatOption,
    Convention,
    ConventionOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PickleOption,
    PrecisionOption,
    RemoteOption,
    SeedOption,
    loaded,
    path_option,
    reported,
)
from secant.cli.printing import print_json, print_line


@reported
def attribute(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    target: Annotated[str | None, typer.Option(help="The token to explain; by default the predicted one.")] = None,
    versus: Annotated[str | None, typer.Option(help="Another token, whose logit is taken off.")] = None,
    flow: Annotated[bool, typer.Option("--flow", help="Also what each token makes of each part.")] = False,
    model: ModelOption = "atlas",
    out: Annotated[Path | None, path_option("Also write the tables to this folder.")] = None,
    json_: JsonOption = False,
    dtype: DtypeOption = None,
    precision: PrecisionOption = None,
    convention: ConventionOption = Convention.gate,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    chat: ChatOption = False,
    seed: SeedOption = 0,
    allow_remote_code: RemoteOption = False,
    allow_pickle: PickleOption = False,
    debug: DebugOption = False,
) -> None:
    """A token's logit as an exact sum: over tokens, over layers, heads and constants."""
    import secant as sc
    from secant.results.files import check_folder

    if out is not None:
        check_folder(out)
    lm = loaded(model, dtype, device, attention, allow_remote_code, allow_pickle)
    run = sc.freeze(
        lm,
        [{"role": "user", "content": prompt}] if chat else prompt,
        convention=convention.value,
        precision=precision and precision.value,
        seed=seed,
    )
    attribution = sc.attribute(run, target, versus, flow=flow)
    if out is not None:
        attribution.save(out)
    if json_:
        print_json(attribution.to_dict())
        return
    from secant.cli.terminal import console, show_attribution, show_flow

    show_attribution(console(), attribution)
    if flow:
        show_flow(console(), attribution, run.tokens)
    if out is not None:
        print_line(f"Tables are in {out}")
