"""The workbench: the page of an explanation, live, in a browser on this computer; and the same page in notebooks."""

from __future__ import annotations

from importlib.util import find_spec

from secant.errors import SecantError


def check(what: str, extra: str, *packages: str) -> None:
    """Check that the packages of an extra are installed.

    Args:
        what: What requires them.
        extra: The extra.
        packages: The packages, as they are imported.

    Raises:
        SecantError: One of them is not installed.

    """
    if absent := [name for name in packages if find_spec(name) is None]:
        raise SecantError(
            f"{what} requires {', '.join(packages)}", f"an installation without {', '.join(absent)}",
            f"Install them: pip install 'secant[{extra}]'.",
        )  # fmt: skip
