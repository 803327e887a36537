"""What must hold on real language models, which `make models` fetches: exactness, sums, sweeps, spectra, and counts.

`make test-real` runs it. Everything here also has a test on small models, which says more where it fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import absent
from models import MODELS
from test_case import BESIDE, CONTRIBUTIONS, FROZEN, LENS, ONCE, SAMPLES, Counts

import secant as sc
from secant.linearize.conventions import CONVENTIONS
from secant.memory import unannounced
from secant.operators.decomposition import TOLERANCE
from secant.stream import sweep
from secant.stream.scores import is_tied
from secant.stream.sweep import STREAM

pytestmark = pytest.mark.real

FOLDER = Path(os.environ.get("SECANT_REAL_MODELS", Path(__file__).parents[1] / "build" / "models"))
FILES = [packed.file for packed in MODELS.values()]
PROMPT, SHORT = "The bridge out of Marin is the", "The bridge"


@pytest.fixture(scope="module", params=FILES)
def file(request: pytest.FixtureRequest) -> Path:
    path: Path = FOLDER / request.param
    if not any((FOLDER / name).is_file() for name in FILES):
        absent("no real model: make models")
    if not path.is_file():
        pytest.skip(f"no {request.param}: make models")
    return path


@pytest.fixture(scope="module")
def wide(file: Path) -> sc.LM:
    return sc.load(file, dtype="float64")


@pytest.fixture(scope="module")
def lm(file: Path) -> sc.LM:
    return sc.load(file, dtype="float32")


@pytest.fixture(scope="module")
def explained(lm: sc.LM) -> tuple[sc.Explanation, Counts]:
    """A prompt explained once for all tests, with what that took."""
    with pytest.MonkeyPatch.context() as patch:
        counts = Counts(patch)
        e = sc.explain(lm, PROMPT)
        e.to_dict()
        e.show()
    return e, counts


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    """One test after the other, with all cores and no announcements."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    with unannounced():
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_exact_in_float64_with_both_sums(wide: sc.LM, convention: str) -> None:
    run = sc.freeze(wide, PROMPT, convention=convention)
    certificate = run.certificate
    assert certificate.forward_equal
    assert max(certificate.reconstruction, certificate.affinity, certificate.readout) < 1e-12
    a = sc.attribute(run)
    size = a.table[a.table["kind"].isin(["token", "constant"])]["contribution"].abs().sum()
    assert abs(a.total - a.logit) < 1e-12 * size
    assert a.direct is not None
    assert abs(a.direct - a.logit) < 1e-12 * size


def test_the_sweep_against_backward_passes(wide: sc.LM) -> None:
    """Random rows of J at three depths: the sweep carries columns forward, the operator pulls rows back."""
    run = sc.freeze(wide, SHORT)
    depths, position = {0, len(run.inside.layers) // 2, len(run.inside.layers) - 1}, len(run.ids) - 1
    u = torch.randn(run.input.shape[1], 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = set()
    with torch.inference_mode(False), torch.enable_grad():
        for i, span, found in sweep.operators(run.inside, position, "forward"):
            assert span == "cumulative"
            if i in depths:
                seen.add(i)
                pulled = run.operator("embed", f"layers.{i}", position).T @ u
                carried = found[STREAM].flatten(1).T @ u
                assert torch.linalg.norm(carried - pulled) < 1e-12 * torch.linalg.norm(pulled)
    assert seen == depths


def test_residuals_of_decompositions(explained: tuple[sc.Explanation, Counts]) -> None:
    """As measured by products with J itself, whatever the solver."""
    e, _ = explained
    op = e.run.operator().solidified()
    assert len(e.svds) == len(e.run.ids)
    for t, f in enumerate(e.svds):
        block = op.block(t)
        right = torch.linalg.norm(block @ f.V - f.U * f.S, dim=0)
        left = torch.linalg.norm(block.T @ f.U - f.V * f.S, dim=0)
        assert (torch.maximum(left, right) <= 1.1 * f.residuals + 1e-5 * f.S[0]).all()
        assert (f.residuals <= TOLERANCE[torch.float32] * f.S[0]).all()


def test_counts(explained: tuple[sc.Explanation, Counts]) -> None:
    """Explaining takes the passes that it takes on small models, and decodes no direction twice."""
    e, counts = explained
    assert counts.formed == 1
    assert counts.passes == FROZEN + CONTRIBUTIONS + BESIDE + LENS - ONCE
    counts.assert_each_direction_once()
    T = len(e.run.ids)
    drawn = SAMPLES // 2 if is_tied(e.run.lm) else SAMPLES
    assert len(counts.scored) == drawn + T + 2 * T * 4 + 2 * 8  # the largest columns and rows


def test_the_page_has_at_most_a_megabyte(explained: tuple[sc.Explanation, Counts], tmp_path: Path) -> None:
    """With all layers, and without J's image."""
    e = replace(explained[0], layers=explained[0].case.every_layer)
    e.report(tmp_path / "report.html", e.evidence(image=False))
    assert (tmp_path / "report.html").stat().st_size <= 1e6
