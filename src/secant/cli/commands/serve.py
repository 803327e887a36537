"""`secant serve`"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from secant.cli.options import MaxMemory, Models, Spectra, count_option
from secant.cli.printing import print_line
from secant.cli.verb import verb
from secant.signals import Ended


@verb
def serve(
    models: Models,
    spectra: Spectra,
    host: Annotated[
        str, typer.Option(help="The address of this computer to listen on. Only 127.0.0.1 keeps other computers out.")
    ] = "127.0.0.1",
    port: Annotated[int, count_option("port", "The port; 0 picks a free one.")] = 0,
    max_tokens: Annotated[int, count_option("max-tokens", "The longest prompt, in tokens.")] = 512,
    runs: Annotated[int, count_option("runs", "How many runs to keep in memory.")] = 8,
    max_memory: MaxMemory = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = False,
) -> None:
    """Explain prompts live in a browser on this computer. Ctrl-C ends it."""
    from secant.foreign import required

    required("secant serve", "workbench", "starlette", "uvicorn", "sse_starlette")
    from secant.workbench.serving import serving

    loaded = (models.load(name, models.dtype) for name in models.names)
    how: dict[str, Any] = {"max_tokens": max_tokens, "runs": runs, "max_memory": max_memory}
    with serving(loaded, host=host, port=port, k=spectra.k, top=spectra.top, **how) as (address, wait):
        print(address, flush=True)
        print_line("The workbench is at this address. Whoever has it can use the workbench; Ctrl-C ends it.")
        if browser:
            typer.launch(address)
        try:
            wait()
        except KeyboardInterrupt as interrupt:
            if isinstance(interrupt, Ended):
                raise
            print_line("The workbench has ended.")
