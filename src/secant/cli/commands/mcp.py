"""`secant mcp`"""

from __future__ import annotations

from secant.cli.options import Model
from secant.cli.verb import verb


@verb
def mcp(model: Model) -> None:
    """Serve tools to agents over the Model Context Protocol. Uses standard input and output; requires secant[mcp]."""
    from secant.cli.server import server

    server(model.loaded).run()
