"""Starting and ending the workbench's server."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from secant.errors import BadArgument, quoted
from secant.model.lm import LM
from secant.text import named
from secant.workbench.server import application
from secant.workbench.session import Session
from secant.workbench.tasks import Model


@contextmanager
def serving(
    models: Iterable[LM],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    max_tokens: int = 512,
    runs: int = 8,
    k: int = 4,
    top: int = 8,
    max_memory: str | None = None,
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Prepare the workbench's server, which listens from here on.

    Args:
        models: The models that users can choose. An iterator loads them once the address is taken.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        max_tokens: The most tokens of a prompt.
        runs: How many runs are kept.
        k: The number of singular triplets of each token's block.
        top: The number of top tokens of each direction.
        max_memory: Bytes to work in, or a size; by default half of the free memory.

    Yields:
        The address to open, with its token; and a function that serves until an interrupt or a signal arrives.

    Raises:
        BadArgument: The server can't listen at that address and port.

    """
    token = secrets.token_urlsafe(32)
    with _listening(host, port) as listener:
        session = Session(_by_name(models, max_tokens, k=k, top=top, memory=max_memory), runs=runs)
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            application(session, token=token, host=host, port=port), log_level="warning", access_log=False,
            server_header=False, ws="none", lifespan="on", timeout_graceful_shutdown=1, timeout_keep_alive=30,
        )  # fmt: skip
        server = uvicorn.Server(config)
        try:
            yield f"http://{host}:{port}/?token={token}", lambda: server.run(sockets=[listener])
        finally:
            session.end()


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens. Raises BadArgument."""
    try:
        if host != "localhost" and ipaddress.ip_address(host).is_unspecified:
            raise BadArgument(
                "The workbench listens on one address of this computer", host, "Give that address, such as 127.0.0.1."
            )
    except ValueError:
        raise BadArgument("A host is an address of this computer", quoted(host), "Use 127.0.0.1.") from None
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        got = f"{host}:{port}, {error.strerror or error}"
        raise BadArgument("The workbench listens on an address of this computer and a free port", got,
                          "Choose another one; port 0 takes any that is free.") from None  # fmt: skip
    with listener:
        yield listener


def _by_name(models: Iterable[LM], max_tokens: int, **how: Any) -> dict[str, Model]:
    """The models by the names that browsers see. If names are equal, the later ones are numbered."""
    found: dict[str, Model] = {}
    for lm in models:
        name = own = named(lm.name)
        number = 2
        while name in found:
            name, number = f"{own} ({number})", number + 1
        found[name] = Model(lm, min(max_tokens, lm.context or max_tokens), **how)
    return found
