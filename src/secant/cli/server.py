"""The server of the Model Context Protocol that `secant mcp` runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import TYPE_CHECKING, Any

from secant import __version__
from secant.cli.border import ending
from secant.cli.printing import finite
from secant.cli.tools import Tools
from secant.foreign import required

if TYPE_CHECKING:
    from mcp.server import MCPServer

    from secant.model.lm import LM

USE = (
    "secant explains the next token of a language model at a prompt by an exact linear system. Start with `explain` or "
    "`attribute`. Contributions sum to the logit without a remainder, and depend on the convention that is named; "
    "compare them with `by_convention` and with what deleting a token does before you draw conclusions."
)
"""What the server says about itself to an agent."""


def server(load: Callable[[], LM]) -> MCPServer:
    """Returns the server, with every tool.

    Args:
        load: Loads the model. It is called when the first tool runs.

    Raises:
        SecantError: The package mcp is not installed.
    """
    required("secant mcp", "mcp", "mcp")
    from mcp.server import MCPServer

    made = MCPServer("secant", version=__version__, instructions=USE, log_level="WARNING")
    lock = Lock()  # tools run in threads, and only one at a time may freeze a prompt
    for tool in Tools(load).every:
        made.add_tool(_guarded(tool, lock))
    return made


def _guarded(tool: Callable[..., dict[str, Any]], lock: Lock) -> Callable[..., dict[str, Any]]:
    """The tool, limited to one call at a time. Its JSON has no NaN, and errors have one line."""
    from mcp.server.mcpserver.exceptions import ToolError

    @wraps(tool)
    def call(*args: Any, **given: Any) -> dict[str, Any]:
        try:
            with lock:
                found: dict[str, Any] = finite(tool(*args, **given))
                return found
        except Exception as error:
            raise ToolError(ending(error)[1]) from None

    return call
