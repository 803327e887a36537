"""The documentation that ships: served on the loopback interface, unpacked, and consistent with the code."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen
from zipfile import ZipFile

import pytest
from typer.testing import CliRunner

from secant.cli import app, site
from secant.errors import DamagedFile, SecantError

ROOT = Path(__file__).parents[1]
SITE = {"index.html": "<h1>Start</h1>", "assets/site.css": "h1 {}", "how-to/gpus.html": "GPUs"}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "site.zip"
    with ZipFile(path, "w") as packed:
        for name, text in SITE.items():
            packed.writestr(name, text)
    monkeypatch.setattr(site, "files", lambda package: tmp_path)
    return path


@pytest.fixture
def address(archive: Path) -> Iterator[str]:
    with site.server(site.pages()) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join(10)


def test_it_is_served(address: str) -> None:
    for path, kind, text in (("/", "text/html", "Start"), ("/assets/site.css?v=1", "text/css", "h1")):
        with urlopen(address + path, timeout=10) as answer:
            assert answer.headers["Content-Type"] == kind
            assert text in answer.read().decode()


@pytest.mark.parametrize("path", ["/nothing.html", "/../site.zip", "/assets", "//etc/passwd"])
def test_nothing_else_is_served(address: str, path: str) -> None:
    with pytest.raises(HTTPError, match="404"):
        urlopen(address + path, timeout=10)


@pytest.mark.slow
def test_an_interrupt_ends_it(archive: Path, tmp_path: Path) -> None:
    """It is how the command ends, and no failure."""
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from pathlib import Path; "
        f"from secant.cli import main, site; site.files = lambda package: Path({str(tmp_path)!r}); main()"
    )
    command = [sys.executable, "-c", script, "docs", "--no-browser"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/index\.html", line)
        assert address, line
        with urlopen(address[0], timeout=10) as answer:
            assert b"Start" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_it_is_unpacked(archive: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["docs", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    found = {p.relative_to(tmp_path / "out").as_posix(): p.read_text() for p in (tmp_path / "out").rglob("*.*")}
    assert found == SITE


def test_what_is_refused(archive: Path, tmp_path: Path) -> None:
    with site.server(site.pages()) as serving, pytest.raises(SecantError, match="a free port"):
        site.server({}, serving.server_port)
    with pytest.raises(SecantError, match="a free port"):
        site.server({}, 70_000)
    archive.write_text("no zip file")
    with pytest.raises(DamagedFile):
        site.pages()
    archive.unlink()
    result = CliRunner().invoke(app, ["docs"])
    assert (result.exit_code, "Run make docs" in result.output) == (2, True)


def test_pages_that_code_names_exist() -> None:
    """In messages, docstrings, tools and tests."""
    named = {
        (path.relative_to(ROOT).as_posix(), name)
        for folder in ("src", "tools", "tests", "benchmarks", ".github")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yml", ".csv")
        for name in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert named
    assert not {(path, name) for path, name in named if not (ROOT / name).is_file()}


def test_links_of_the_first_pages_exist() -> None:
    """mkdocs checks those of docs/."""
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "AGENTS.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert link.startswith("https://") or (ROOT / link).exists(), (page, link)


def test_readme_is_short_and_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["run"].prediction[0].token == " Golden"
    assert (tmp_path / "report.html").is_file()
