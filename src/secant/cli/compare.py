"""`secant compare`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secant.cli.options import (
    AttentionOption,
    ChatOption,
    Convention,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    PickleOption,
    PrecisionOption,
    RemoteOption,
    SeedOption,
    loaded,
    path_option,
    progressing,
    reported,
)
from secant.cli.printing import print_json, print_line


@reported
def compare(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A folder, a name on the Hugging Face hub, or atlas; once for each."),
    ] = None,
    convention: Annotated[
        list[Convention] | None, typer.Option(help="What a gated product holds; may be given again. gate")
    ] = None,
    out: Annotated[Path | None, path_option("Also write the tables to this folder.")] = None,
    json_: JsonOption = False,
    k: Annotated[int, typer.Option("-k", help="Singular vectors of each block to keep.")] = 4,
    top: Annotated[int, typer.Option(help="Decoded words of each vector.")] = 8,
    dtype: DtypeOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Memory to work in, such as 4GiB; by default half of what is free.")
    ] = None,
    chat: ChatOption = False,
    seed: SeedOption = 0,
    allow_remote_code: RemoteOption = False,
    allow_pickle: PickleOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare models, or conventions of one, at one prompt: predictions, spectra, words, depths and shares."""
    import secant as sc
    from secant.results.files import check_folder

    if out is not None:
        check_folder(out)
    names, conventions = model or ["atlas"], [c.value for c in convention or [Convention.gate]]
    if len(names) * len(conventions) < 2:
        raise sc.SecantError(
            "A comparison is of two models or more, or of one in several conventions", "one", "Add --model."
        )
    if len(set(names)) < len(names):
        raise sc.SecantError("A model is compared with others", "one of them twice", "Name each once.")
    with progressing() as progress:
        comparison = sc.compare(
            [{"role": "user", "content": prompt}] if chat else prompt,
            (loaded(name, dtype, device, attention, allow_remote_code, allow_pickle) for name in names),
            conventions=conventions,
            k=k,
            top=top,
            precision=precision and precision.value,
            seed=seed,
            max_memory=max_memory,
            progress=progress,
        )
    if out is not None:
        comparison.save(out)
    if json_:
        print_json(comparison.to_dict())
        return
    from secant.cli.terminal import console, show_comparison

    show_comparison(console(), comparison)
    if out is not None:
        print_line(f"Tables are in {out}")
