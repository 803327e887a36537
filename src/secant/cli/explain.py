"""`secant explain`"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    check_figures,
    drawn,
    kept,
    loaded,
    path_option,
    progressing,
    reported,
)
from secant.cli.printing import print_json, print_line

if TYPE_CHECKING:
    from secant.analyses.explain import Evidence, Explanation
    from secant.model.lm import LM


@reported
def explain(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    model: ModelOption = "atlas",
    out: Annotated[
        Path | None, path_option("Also write the tables, the tensors and a page, report.html, to this folder.")
    ] = None,
    json_: JsonOption = False,
    k: Annotated[int, typer.Option("-k", help="Singular vectors of each token's block to keep.")] = 4,
    dtype: DtypeOption = None,
    precision: PrecisionOption = None,
    convention: ConventionOption = Convention.gate,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also look at every layer: what is written by each depth.")
    ] = False,
    steps: Annotated[
        int, typer.Option(help="Follow the model's own continuation: so many tokens, each decomposed.")
    ] = 1,
    highlight: Annotated[
        list[str] | None, typer.Option(help="A word to mark in the layers' map; may be given again. The predicted one.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Memory to work in, such as 4GiB; by default half of what is free.")
    ] = None,
    chat: ChatOption = False,
    figures: Annotated[
        bool, typer.Option("--figures", help="With --out, also draw: PNG and PDF, in its folder figures.")
    ] = False,
    image: Annotated[
        bool, typer.Option("--image/--no-image", help="With --out, J as an image, which takes every row of it.")
    ] = True,
    seed: SeedOption = 0,
    allow_remote_code: RemoteOption = False,
    allow_pickle: PickleOption = False,
    debug: DebugOption = False,
) -> None:
    """Explain the next token: what each token of the prompt contributes, exactly, and what its block decodes to."""
    import secant as sc
    from secant.results.files import check_folder

    if out is not None:
        check_folder(out)
    if figures:
        check_figures(out)
    if highlight and not layers:
        raise sc.SecantError("Words are marked in the map of layers", "--highlight without --layers", "Add --layers.")
    lm = loaded(model, dtype, device, attention, allow_remote_code, allow_pickle)
    marked = _marked(lm, highlight or ())
    with progressing() as progress:
        explanation = sc.explain(
            lm,
            [{"role": "user", "content": prompt}] if chat else prompt,
            k=k,
            convention=convention.value,
            precision=precision and precision.value,
            seed=seed,
            layers=layers,
            steps=steps,
            max_memory=max_memory,
            progress=progress,
        )
        if out is not None:
            explanation.save(out)
            with kept(out):
                evidence = explanation.evidence(image=image, max_memory=max_memory, progress=progress)
                evidence.save(out)
                page = _reported(explanation, evidence, out)
                if figures:
                    _draw(explanation, out / "figures")
    if json_:
        print_json(explanation.to_dict())
        return
    from secant.cli.terminal import console, show_explanation, show_layers, show_steps

    show_explanation(console(), explanation)
    if explanation.layers is not None:
        show_layers(console(), explanation.layers, marked)
    if explanation.steps is not None:
        show_steps(console(), explanation.steps)
    if out is not None:
        print_line(f"Tables and tensors are in {out}{page}")


def _marked(lm: LM, words: Sequence[str]) -> list[int]:
    """The tokens of words to mark. Raises BadPrompt where one is no token."""
    from secant.errors import BadPrompt

    try:
        return [i for word in words for i in lm.spelled(word)]
    except BadPrompt as error:
        raise BadPrompt("A word to mark is a token of the vocabulary", error.got, "Give another.") from error


def _reported(explanation: Explanation, evidence: Evidence, out: Path) -> str:
    """Write the page too, and say where it is, or on stderr why there is none."""
    if find_spec("plotly") is None:
        print_line("There is no page: it needs plotly. pip install 'secant[report]'")
        return ""
    explanation.report(out / "report.html", evidence)
    return f"; the page is {out / 'report.html'}"


def _draw(explanation: Explanation, folder: Path) -> None:
    """Every figure of an explanation, as PNG and as PDF."""
    from secant.figures import every

    drawn(every(explanation), folder)
