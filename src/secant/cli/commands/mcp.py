"""`secant mcp`"""

from __future__ import annotations

from secant.cli.options import Model
from secant.cli.verb import verb


@verb
def mcp(model: Model) -> None:
    """Serve tools to agents on standard input and output, over the Model Context Protocol. Requires secant[mcp]."""
    from secant.cli.server import server

    server(model.loaded).run()
