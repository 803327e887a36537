"""What several tests need: freezing a bare function, comparing operators with matrices, and installed models and
programs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

import secant as sc
from secant.errors import SecantError
from secant.linearize.conventions import CONVENTIONS, Convention
from secant.linearize.replay import Replay, Visit
from secant.linearize.tape import Record, Tape
from secant.operators.operator import Operator

REQUIRED = os.environ.get("SECANT_TEST_REQUIRED", "") not in ("", "0")
"""Whether tests that need a trained model or a program fail where it is absent. By default they are skipped."""

CHROMIUM = Path("/usr/bin/chromium")
"""Debian's browser."""

REAL = Path(os.environ.get("SECANT_TEST_MODELS", Path(__file__).parents[2] / "shared" / "models"))


def refused(kind: type[SecantError] | tuple[type[SecantError], ...], match: str, *args: Any, **kwargs: Any) -> str:
    """What `load` says where it refuses, in one line: the rule, what came, what to do next."""
    with pytest.raises(kind, match=match) as caught:
        sc.load(*args, **kwargs)
    said = str(caught.value)
    assert "\n" not in said
    assert "; got " in said
    assert said.endswith(".")
    return said


def heeding_signals() -> None:
    """In a new process: signals end it, also where the tests run behind a shell or nohup, which ignore some."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def absent(reason: str) -> NoReturn:
    """Skip the test that needs what is not installed here, or fail it where SECANT_TEST_REQUIRED is set."""
    if REQUIRED:
        pytest.fail(f"{reason}, and SECANT_TEST_REQUIRED is set", pytrace=False)
    pytest.skip(reason)


def real(name: str) -> Path:
    """The folder of a small trained model."""
    if not (REAL / name).is_dir():
        absent(f"no trained model {name} in SECANT_TEST_MODELS or {REAL.parent.name}/{REAL.name}")
    return REAL / name


def chromium() -> str:
    """The path of a browser."""
    if not CHROMIUM.exists():
        absent(f"no browser at {CHROMIUM}: apt install chromium")
    return str(CHROMIUM)


def recorded(
    function: Callable[[Tensor], object],
    x: Tensor,
    convention: Convention = CONVENTIONS["gate"],
    precision: torch.dtype | None = None,
) -> tuple[object, Tape]:
    """A function run on a live input under Record, as a model's forward is."""
    mode = Record(nn.Module(), nn.Linear(1, 1), convention, precision)
    live = mode.enter(x)
    with torch.enable_grad(), mode:
        out = function(live)
    return out, mode.tape


def replayed(function: Callable[[Tensor], object], tape: Tape, v: Tensor) -> object:
    mode = Replay(tape)
    live = mode.enter(v)
    with torch.enable_grad(), mode:
        return function(live)


def visited(function: Callable[[Tensor], object], tape: Tape, v: Tensor) -> object:
    """A function run at a reference, which its open forms see."""
    mode = Visit(tape)
    live = mode.enter(v)
    with torch.enable_grad(), mode:
        return function(live)


def assert_matches(op: Operator, J: Tensor, tolerance: float = 1e-12) -> None:
    """An operator equals a dense matrix `[d_out, T * d_in]`: from both sides, for vectors and matrices; dot test."""
    n_out, n_in = J.shape
    assert op.shape == (n_out, n_in)
    assert op.T.shape == (n_in, n_out)
    generator = torch.Generator().manual_seed(3)
    v, u = (torch.randn(n, 3, generator=generator, dtype=torch.float64).to(J) for n in (n_in, n_out))
    scale = torch.linalg.matrix_norm(J) * tolerance
    close = partial(torch.testing.assert_close, rtol=0, atol=float(scale) * 10)
    close(op @ v, J @ v)
    close(op @ v[:, 0], J @ v[:, 0])
    close(op @ v[:, 0].reshape(op.input.shape), J @ v[:, 0])
    close(op.T @ u, J.T @ u)
    close(op.T @ u[:, 0], J.T @ u[:, 0])
    close(op.dense().flatten(1), J)
    torch.testing.assert_close((u * (op @ v)).sum(), ((op.T @ u) * v).sum(), rtol=0, atol=float(scale) * 100)


class Parsed(HTMLParser):
    """The tags and texts of HTML, which must be well formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
