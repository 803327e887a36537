"""`secant screen`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secant.cli.options import (
    AttentionOption,
    Convention,
    ConventionOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PickleOption,
    RemoteOption,
    SeedOption,
    loaded,
    path_option,
    progressing,
    reported,
)
from secant.cli.printing import print_json, print_line


@reported
def screen(
    prompts: Annotated[str, typer.Argument(help="A text file with a prompt on each line, or - for standard input.")],
    lexicon: Annotated[str, typer.Option("--lexicon", "-l", help="A text file with a word on each line.")],
    model: ModelOption = "atlas",
    out: Annotated[Path | None, path_option("Also write all tests as tables to this folder.")] = None,
    json_: JsonOption = False,
    k: Annotated[int, typer.Option("-k", help="Singular vectors of each block to test.")] = 2,
    top: Annotated[int, typer.Option(help="Decoded words of each vector to look at.")] = 8,
    position: Annotated[int, typer.Option(help="The position that is read; -1 is the last.")] = -1,
    samples: Annotated[int, typer.Option(help="Random directions that vectors are compared with.")] = 10_000,
    level: Annotated[float, typer.Option(help="The share of false ones among those flagged.")] = 0.05,
    dtype: DtypeOption = None,
    convention: ConventionOption = Convention.gate,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    seed: SeedOption = 0,
    allow_remote_code: RemoteOption = False,
    allow_pickle: PickleOption = False,
    debug: DebugOption = False,
) -> None:
    """Look for words of a list in what each layer writes, with chance beside it. Exit code 2 if a prompt is refused."""
    import secant as sc
    from secant.results.files import check_folder
    from secant.results.paths import lines

    if out is not None:
        check_folder(out)
    texts, words = lines(prompts, "Prompts"), lines(lexicon, "Words to screen for")
    lm = loaded(model, dtype, device, attention, allow_remote_code, allow_pickle)
    with progressing() as progress:
        screening = sc.screen(
            lm, texts, words, k=k, top=top, position=position, samples=samples, level=level,
            convention=convention.value, seed=seed, progress=progress,
        )  # fmt: skip
    if out is not None:
        screening.save(out)
    if json_:
        print_json({"model": lm.name, **screening.to_dict()})
    else:
        from secant.cli.terminal import console, show_screening

        show_screening(console(), screening)
        if out is not None:
            print_line(f"Tables are in {out}")
    if len(screening.refused):
        raise typer.Exit(2)
