"""`secant architectures`"""

from __future__ import annotations

from secant.cli.options import (
    DebugOption,
    JsonOption,
    reported,
)
from secant.cli.printing import print_json


@reported
def architectures(json_: JsonOption = False, debug: DebugOption = False) -> None:
    """Which model types are exact, as measured on a small model of each; which are refused, and why."""
    import csv
    from importlib.resources import files

    lines = files("secant").joinpath("architectures.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(lines))
    if json_:
        print_json(rows)
        return
    from secant.cli.terminal import console, show_architectures

    show_architectures(console(140), rows)
