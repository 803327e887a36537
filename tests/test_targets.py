"""What is attributed: tokens, differences, weighted sums and vectors, from each baseline, at every point."""

from __future__ import annotations

import pytest
import torch
from families import LENGTH, frozen, model_of, prompt

import secant as sc
from secant.analyses.origins import origin_of
from secant.analyses.targets import BASELINES
from secant.errors import BadArgument, BadPrompt, NoPoint

FAMILIES = ("llama", "gpt2", "gemma3_text")
BASES = ("vocabulary", "none")


@pytest.fixture(scope="module", params=FAMILIES)
def run(request: pytest.FixtureRequest) -> sc.Run:
    return frozen(request.param)


def weights(run: sc.Run, chosen: dict[int, float], baseline: str) -> torch.Tensor:
    """The functional of the logits, by its definition."""
    logits = run.logits[-1]
    base = {"none": 0 * logits, "vocabulary": torch.full_like(logits, 1 / len(logits)), "expected": logits.softmax(0)}
    return sum(
        w * (torch.nn.functional.one_hot(torch.tensor(i), len(logits)) - base[baseline]) for i, w in chosen.items()
    )


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize(
    ("target", "chosen"),
    [(11, {11: 1.0}), ([11, 5], {11: 0.5, 5: 0.5}), ({11: 2.0, 5: -1.0}, {11: 2.0, 5: -1.0}), ((7,), {7: 1.0})],
)
def test_contributions_are_the_blocks_of_the_functional(
    run: sc.Run, baseline: str, target: object, chosen: dict[int, float]
) -> None:
    a = sc.attribute(run, target, baseline=baseline, origin="mean")
    e = weights(run, chosen, baseline)
    op = run.operator(target="logits")
    moved = op.input - origin_of(run, "mean").embeddings
    J = op.dense()
    close = {"abs": 1e-12 * a.table["contribution"].abs().sum(), "rel": 0}
    expected = torch.einsum("v,vtd,td->t", e, J, moved)
    assert a.of("token")["contribution"].tolist() == pytest.approx(expected.tolist(), **close)
    assert a.logit == pytest.approx(float(e @ run.logits[-1]), **close)
    assert (a.total, a.direct) == pytest.approx((a.logit, a.logit), **close)


def test_a_difference_does_not_depend_on_the_baseline(run: sc.Run) -> None:
    found = [sc.attribute(run, 11, 5, baseline=baseline) for baseline in BASELINES]
    assert {a.baseline for a in found} == {"none"}
    assert [a.logit for a in found] == [found[0].logit] * 3
    same = sc.attribute(run, {11: 1.0, 5: -1.0})
    assert same.table["contribution"].tolist() == found[0].table["contribution"].tolist()


def test_a_shift_of_all_logits_is_not_seen() -> None:
    """By default contributions do not change if the same vector is added to every row of the head."""
    lm = model_of("llama")
    assert not lm.model.config.tie_word_embeddings
    before = sc.attribute(sc.freeze(lm, prompt()), 11, parts=False).of("token")["contribution"]
    with torch.no_grad():
        lm.head.weight += torch.linspace(-1, 1, lm.head.weight.shape[1], dtype=torch.float64)
    run = sc.freeze(lm, prompt())
    after, bare = (sc.attribute(run, 11, baseline=b, parts=False).of("token")["contribution"] for b in BASES)
    assert after.tolist() == pytest.approx(before.tolist(), abs=1e-12)
    assert bare.tolist() != pytest.approx(before.tolist(), abs=1e-3)


@pytest.mark.parametrize("point", ["norm", "layers.0", "layers.1.mlp", "logits"])
def test_a_vector_at_any_point(run: sc.Run, point: str) -> None:
    op = run.operator("embed", point, 2)
    u = torch.randn(len(op.bias), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = sc.attribute(run, u, point=point, position=2, parts=False)
    close = {"abs": 1e-12 * a.table["contribution"].abs().sum(), "rel": 0}
    assert a.of("token")["contribution"].tolist() == pytest.approx(
        [float(u @ op.block(t).output) for t in range(LENGTH)], **close
    )
    assert a.constant == pytest.approx(float(u @ op.bias), **close)
    assert (a.logit, a.total) == pytest.approx((float(u @ op.output),) * 2, **close)
    assert (a.point, a.baseline) == (point, "none")


def test_a_token_inside_is_read_out(run: sc.Run) -> None:
    """The logits of a stream inside, by the readout at its own statistics; the sum is exact."""
    a = sc.attribute(run, 11, point="layers.0", baseline="none")
    op = run.operator("embed", "layers.0", readout="logits", tokens=[11])
    close = {"abs": 1e-12 * a.table["contribution"].abs().sum(), "rel": 0}
    assert a.of("token")["contribution"].tolist() == pytest.approx(
        [float(op.block(t).output) for t in range(LENGTH)], **close
    )
    assert a.logit == pytest.approx(float(op.output), **close)
    assert a.direct is None
    assert sc.attribute(run, 11, point="norm").logit == sc.attribute(run, 11).logit


def test_no_shares_of_a_small_sum() -> None:
    run = frozen("llama")
    a = sc.attribute(run, 11)
    tiny = sc.attribute(run, {11: 1.0, 5: -float(run.logits[-1, 11] / run.logits[-1, 5]) + 1e-9}, baseline="none")
    assert tiny.shareless.startswith("no shares: the sum")
    assert "no shares" in str(tiny.view().facts["shares"])
    assert tiny.share(1.0) != tiny.share(1.0)
    assert a.shareless or a.share(a.logit) == 1.0


def test_wrong_targets() -> None:
    run = frozen("llama")
    cases: list[tuple[type[Exception], str, dict[str, object]]] = [
        (BadArgument, "A baseline is one of", {"baseline": "mean"}),
        (BadArgument, "Each token is given once", {"target": [5, 5]}),
        (BadArgument, "At least one token", {"target": []}),
        (BadArgument, "A weight is a number", {"target": {5: float("nan")}}),
        (BadArgument, "A vector at norm has .* elements", {"target": torch.zeros(3, dtype=torch.float64)}),
        (BadArgument, "finite elements", {"target": torch.full((run.hidden.shape[1],), torch.nan)}),
        (BadArgument, "not compared with a token", {"target": run.hidden[-1], "versus": 5}),
        (BadArgument, "Only logits are split", {"flow": True, "point": "layers.0"}),
        (BadArgument, "A token must be compared with a different one", {"target": [5, 6], "versus": 6}),
        (NoPoint, "The points of this model", {"point": "layers.77"}),
        (BadPrompt, "token", {"target": {10**7: 1.0}}),
    ]
    for kind, rule, arguments in cases:
        with pytest.raises(kind, match=rule):
            sc.attribute(run, **arguments)  # type: ignore[arg-type]
