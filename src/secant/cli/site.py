"""The documentation, as a zip file that ships with the wheel: served on the loopback interface, or unpacked.

`make docs` builds the site and writes the file. Nothing outside the zip file can be requested.
"""

from __future__ import annotations

import mimetypes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from secant.errors import DamagedFile, SecantError

ARCHIVE = "site.zip"
"""The file's name, in the package."""

LOOPBACK = "127.0.0.1"


def pages(archive: Path | None = None) -> dict[str, bytes]:
    """Returns the files of the site by their paths.

    Args:
        archive: The zip file; by default that of this installation.

    Raises:
        SecantError: This installation has no documentation.
        DamagedFile: The file is not a zip file.
    """
    path = archive or Path(str(files("secant").joinpath(ARCHIVE)))
    if not path.is_file():
        raise SecantError(
            "The documentation ships with wheels of secant", "an installation from a folder", "Run make docs there."
        )
    try:
        with ZipFile(path) as found:
            return {name: found.read(name) for name in found.namelist() if not name.endswith("/")}
    except BadZipFile:
        raise DamagedFile("The documentation is a zip file", str(path), "Install secant again.") from None


def server(site: dict[str, bytes], port: int = 0) -> ThreadingHTTPServer:
    """Returns a server of the site on the loopback interface, which `serve_forever` runs.

    Args:
        site: The files by their paths.
        port: The port; 0 is any that is free.

    Raises:
        SecantError: The port is in use.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers GET requests from the site."""

        def do_GET(self) -> None:
            name = self.path.split("?")[0].split("#")[0].lstrip("/") or "index.html"
            body = site.get(name)
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/plain" if body is None else kind)
            self.end_headers()
            self.wfile.write(b"Not found" if body is None else body)

        def log_message(self, format: str, *args: object) -> None:
            """Prints nothing."""

    try:
        return ThreadingHTTPServer((LOOPBACK, port), Handler)
    except (OSError, OverflowError) as error:
        raise SecantError("The documentation is served on a free port", f"{port} ({error})", "Omit --port.") from None
