"""The models that benchmarks run on: two real ones, which `make models` fetches, and the small trained ones."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests"), str(ROOT / "tools")]
from helpers import REAL  # noqa: E402
from models import MODELS  # noqa: E402

FETCHED = Path(os.environ.get("SECANT_REAL_MODELS", ROOT / "build" / "models"))
"""Where `make models` puts the real models."""

REAL_MODELS = {name: FETCHED / packed.file for name, packed in MODELS.items()}
"""The GGUF file of each real model, by name."""

SMALL_MODELS: dict[str, str | Path] = {"craftgpt": REAL / "craftgpt", "atlas": "atlas"}


def models(given: Sequence[str], known: Sequence[str] = (*REAL_MODELS, *SMALL_MODELS)) -> Iterator[tuple[str, str]]:
    """Yields the name, and the file or folder, of each model, and prints which known models are absent.

    Args:
        given: Names of known models, or files and folders.
        known: The names of the models to use if none are given.

    """
    for name in given or known:
        place = REAL_MODELS.get(name, SMALL_MODELS.get(name))
        if place is None:
            yield Path(name).name, name
        elif name == "atlas" or Path(place).exists():
            yield name, str(place)
        else:
            print(f"{name} was not run: {place} is missing (make models)")
