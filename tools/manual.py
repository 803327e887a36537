"""The pages of the documentation that are generated when mkdocs builds it, and a limit on the size of the site.

mkdocs.yml names this module as a hook. The pages are the commands, from typer; the public names, from docstrings; the
executed notebooks of examples/; and CHANGELOG.md.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]

from notebooks import EXAMPLES, executed_file  # noqa: E402

import secant as sc  # noqa: E402
from secant import errors, figures  # noqa: E402
from secant.cli.site import ARCHIVE  # noqa: E402
from secant.figures.style import FIGURES  # noqa: E402

UNUSED = ["**/*.map", "javascripts/lunr/**/*.js"]
"""Files of the theme that a site in English does not read, in its folder assets."""

MOST = 3_000_000
"""The largest size of the packed site, in bytes."""


def commands() -> str:
    """Returns the page of all commands, from typer's documentation."""
    command = [sys.executable, "-m", "typer", "secant.cli.commands", "utils", "docs", "--name", "secant"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT / "src")
    return done.stdout.replace("# `secant`", "# Commands", 1)


def names(*public: str) -> str:
    """Returns the sections of public names, in mkdocstrings' syntax."""
    return "".join(f"\n::: {name}\n" for name in public)


def modules() -> dict[str, str]:
    """Returns a page of public names for each folder of the package, by the folder's name."""
    pages: dict[str, str] = {}
    for module, public in sc._WHERE.items():
        folder = module.split(".")[0]
        if folder != "errors":
            about = inspect.getdoc(import_module(f"secant.{folder}"))
            pages.setdefault(folder, f"# secant.{folder}\n\n{about}\n")
            pages[folder] += names(*(f"secant.{module}.{name}" for name in public))
    return pages


def figure_page() -> str:
    """Returns the page of all figures."""
    of = [f"{function.__module__}.{name}" for name, function in FIGURES.items()]
    own = names("secant.figures.style.every", "secant.figures.style.save", *of)
    return f"# secant.figures\n\n{inspect.getdoc(figures)}\n{own}"


def error_page() -> str:
    """Returns the page of exit codes, followed by every class of error."""
    own = [
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, errors.SecantError)
    ]
    head = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    return head + names(*(f"secant.errors.{name}" for name in own))


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Returns an executed notebook in Markdown, and its pictures by the names that the text gives them.

    Its links lead from its own folder to docs/.
    """
    resources = {"unique_key": path.stem}
    text, made = MarkdownExporter().from_filename(str(executed_file(path)), resources=resources)
    return text.replace("](../docs/", "](../"), made["outputs"]


def pages() -> dict[str, str]:
    """Returns every generated page in Markdown, by its path."""
    return {
        "reference/commands.md": commands(),
        "reference/errors.md": error_page(),
        "reference/changes.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "reference/python/figures.md": figure_page(),
        "reference/python/results.md": "# What results share\n" + names("secant.results.result.Result"),
        **{f"reference/python/{folder}.md": text for folder, text in modules().items()},
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the notebooks."""
    for path, text in pages().items():
        if old := files.get_file_from_path(path):
            files.remove(old)
        files.append(File.generated(config, path, content=text))
    for file in sorted(EXAMPLES.glob("*.ipynb")):
        text, pictures = notebook(file)
        files.append(File.generated(config, f"notebooks/{file.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Removes files that are never read, and packs the site for the wheel."""
    for pattern in UNUSED:
        for path in Path(config.site_dir, "assets").glob(pattern):
            path.unlink()
    archive = ROOT / "src" / "secant" / ARCHIVE
    with ZipFile(archive, "w", ZIP_DEFLATED, compresslevel=9) as packed:
        for path in sorted(Path(config.site_dir).rglob("*")):
            if path.is_file() and path.suffix != ".gz":
                packed.write(path, path.relative_to(config.site_dir).as_posix())
    size = archive.stat().st_size
    if size > MOST:
        raise PluginError(
            f"{archive.name} has {size / 1e6:.1f} MB, and a wheel must not grow by more than {MOST / 1e6:.0f}."
        )
