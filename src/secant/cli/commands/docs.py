"""`secant docs`"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from secant.cli.options import path_option
from secant.cli.printing import print_line
from secant.cli.verb import verb


@verb
def docs(
    out: Annotated[Path | None, path_option("Unpack the documentation to this folder instead of showing it.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser.")] = True,
    port: Annotated[int, typer.Option(help="The port on this computer; by default any that is free.")] = 0,
) -> None:
    """Show the documentation in a browser, without the network. Ctrl-C ends it."""
    import webbrowser

    from secant.cli.site import pages, server
    from secant.results.paths import check

    if out is not None:
        check(out)
    site = pages()
    if out is not None:
        _unpack(site, out)
        print_line(f"Open {out / 'index.html'}")
        return
    with server(site, port) as serving:
        address = f"http://127.0.0.1:{serving.server_port}/index.html"
        print_line(f"The documentation is at {address}. Press Ctrl-C to end.")
        if browser:
            webbrowser.open(address)
        with suppress(KeyboardInterrupt):
            serving.serve_forever()


def _unpack(site: dict[str, bytes], out: Path) -> None:
    """Write the files to a folder. Raises OutputFailed."""
    from secant.results.paths import replacing

    with replacing(out) as new:
        for name, content in site.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
