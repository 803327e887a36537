"""Save the top of a page that secant wrote as the picture in README.md.

    secant explain "The Eiffel Tower is in the city of" --model SmolLM2-135M-Instruct.Q4_1.gguf --out DIR
    python tools/screenshot.py DIR/report.html docs/images/page.png

It requires Debian's chromium. Colours are reduced to a palette, so that the picture stays small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"


def main(
    page: Annotated[Path, typer.Argument(help="The page.")],
    picture: Annotated[Path, typer.Argument(help="The PNG.")],
    width: Annotated[int, typer.Option(help="In CSS pixels.")] = 1000,
    height: Annotated[int, typer.Option(help="In CSS pixels.")] = 810,
) -> None:
    """Open a page in a browser of one size, and save what is seen."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        seen = browser.new_page(
            viewport={"width": width, "height": height}, device_scale_factor=1.5, color_scheme="light"
        )
        seen.goto(page.resolve().as_uri())
        seen.wait_for_load_state("networkidle")
        picture.parent.mkdir(parents=True, exist_ok=True)
        seen.screenshot(path=str(picture))
        browser.close()
    Image.open(picture).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(picture, optimize=True)
    typer.echo(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    typer.run(main)
