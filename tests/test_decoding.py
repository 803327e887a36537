"""Decoding: metrics, centring, filters, random directions, and the largest rows and columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import LENGTH, frozen, model_of, prompt

import secant as sc
from secant.errors import BadArgument
from secant.operators.operator import Operator


@pytest.fixture(scope="module")
def lm() -> sc.LM:
    return model_of("llama", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def tables(lm: sc.LM) -> dict[str, np.ndarray]:
    return {"output": lm.unembedding.detach().numpy(), "input": lm.embedding.detach().numpy()}


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("side", ["output", "input"])
def test_decoding_by_hand(lm: sc.LM, tables: dict[str, np.ndarray], side: str, metric: str, centered: bool) -> None:
    table = tables[side] - tables[side].mean(0) * centered
    D = np.random.default_rng(0).normal(size=(32, 70))  # more than are decoded together
    scores = table @ D
    if metric == "cosine":
        scores = scores / np.linalg.norm(table, axis=1)[:, None] / np.linalg.norm(D, axis=0)
    found = sc.decode(lm, torch.from_numpy(D), side, 5, metric=metric, centered=centered)
    for c, words in enumerate(found):
        order = np.argsort(-scores[:, c], kind="stable")[:5]
        assert [w.id for w in words] == order.tolist()
        np.testing.assert_allclose([w.score for w in words], scores[order, c], rtol=1e-10)
        assert all(w.z is None for w in words)


def test_centring_is_what_a_softmax_does_not_see(lm: sc.LM, tables: dict[str, np.ndarray]) -> None:
    """A shift common to all rows changes cosines, not what is predicted; centring takes it away."""
    shifted = model_of("llama", tie_word_embeddings=False)
    shift = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    with torch.no_grad():
        shifted.model.lm_head.weight.copy_(lm.unembedding + shift)
    u = torch.randn(32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    own = sc.decode(lm, u, "output", 5)[0]
    other = sc.decode(shifted, u, "output", 5)[0]
    assert [w.id for w in own] == [w.id for w in other]
    np.testing.assert_allclose([w.score for w in own], [w.score for w in other], rtol=1e-9)
    raw = sc.decode(shifted, u, "output", 5, centered=False)[0]
    assert [w.id for w in raw] != [w.id for w in own]


def test_tokens_can_be_left_out(lm: sc.LM) -> None:
    u = torch.randn(32, 3, dtype=torch.float64)
    even = {lm.text(i) for i in range(0, lm.size, 2)}
    found = sc.decode(lm, u, "output", 6, keep=even.__contains__)
    every = sc.decode(lm, u, "output", lm.size)
    for kept, words in zip(found, every, strict=True):
        assert kept == [w for w in words if w.token in even][:6]
    assert sc.decode(lm, u, "output", 6, keep=lambda text: False) == [[], [], []]


def test_the_null_is_what_random_directions_decode_to(lm: sc.LM, tables: dict[str, np.ndarray]) -> None:
    null = sc.null(lm, "output", 4, samples=400, seed=3)
    drawn = np.random.default_rng(0).normal(size=(32, 4000))
    rows = tables["output"] - tables["output"].mean(0)
    rows = rows / np.linalg.norm(rows, axis=1)[:, None]
    best = -np.sort(-(rows @ (drawn / np.linalg.norm(drawn, axis=0))), axis=0)[:4]
    np.testing.assert_allclose(null.mean, best.mean(1), rtol=0.03)
    np.testing.assert_allclose(null.std, best.std(1), rtol=0.15)
    assert len(null.words) == 400
    assert torch.equal(null.mean, sc.null(lm, "output", 4, samples=400, seed=3).mean)
    assert not torch.equal(null.mean, sc.null(lm, "output", 4, samples=400, seed=4).mean)


def test_z_scores(lm: sc.LM, tables: dict[str, np.ndarray]) -> None:
    """Of a random direction near 0; of a token's own row far above; the length of a direction does not matter."""
    null = sc.null(lm, "output", 4)
    rows = torch.from_numpy(tables["output"]) - torch.from_numpy(tables["output"]).mean(0)
    longest = rows.norm(dim=1).argmax()
    (own,), (longer,) = (sc.decode(lm, rows[longest] * c, "output", 4, null=null) for c in (1, 7))
    assert own[0].id == int(longest)
    assert own[0].z is not None
    assert own[0].z > 5
    assert longer[0].z == pytest.approx(own[0].z)
    assert own[0].score == pytest.approx(1)
    assert own[1].z == pytest.approx(float((own[1].score - null.mean[1]) / null.std[1]))
    drawn = torch.randn(32, 500, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    z = np.array([words[0].z for words in sc.decode(lm, drawn, "output", 1, null=null)])
    assert abs(z.mean()) < 0.3
    assert 0.7 < z.std() < 1.4


def test_a_null_is_of_the_same_settings(lm: sc.LM) -> None:
    u, null = torch.randn(32), sc.null(lm, "output", 4)
    for how in ({"side": "input"}, {"metric": "dot"}, {"centered": False}, {"keep": str.isalpha}, {"top": 5}):
        with pytest.raises(BadArgument, match="A null must have the same side, metric, centring and filter"):
            sc.decode(lm, u, **{"side": "output", "top": 4, **how}, null=null)


def test_a_null_of_few_tokens(lm: sc.LM) -> None:
    """Fewer words than were asked for, in the null too."""
    three = {lm.text(i) for i in (3, 5, 8)}.__contains__
    null = sc.null(lm, "output", 8, keep=three)
    (words,) = sc.decode(lm, torch.randn(32), "output", 8, keep=three, null=null)
    assert len(words) == 3
    assert all(word.z is not None for word in words)


def test_norms_are_taken_in_float32() -> None:
    lm = model_of("llama", dtype=torch.float16)
    J = torch.full((32, 2, 32), 2e4, dtype=torch.float16)
    J[:, 1] = 1e4
    table = sc.largest(lm, Operator.from_dense(J, torch.ones(2, 32, dtype=torch.float16)), count=40, top=1).table
    assert table["token"].isna().all()
    assert np.isfinite(table["norm"]).all()
    assert (np.diff(table["norm"]) <= 0).all()
    assert set(table["position"][:32]) == {0}


def test_bad_settings(lm: sc.LM) -> None:
    with pytest.raises(BadArgument, match="at least one top token; got top = 0"):
        sc.decode(lm, torch.randn(32), "output", 0)
    with pytest.raises(BadArgument, match="samples = 1"):
        sc.null(lm, "output", samples=1)


def test_largest_columns_and_rows_are_each_in_their_own_order() -> None:
    """Trap 4 of the reference code: rows were looked up in the order of the columns."""
    run = sc.freeze(model_of("llama", tie_word_embeddings=False), prompt())
    op = run.operator()
    J = op.dense().numpy()
    columns, rows = (sc.largest(run.lm, op, of, count=3, top=2).table for of in ("columns", "rows"))
    assert list(columns["token"]) == [run.tokens[t] for t in columns["position"]]
    norms = np.linalg.norm(J, axis=0)
    for rank, place in enumerate(np.argsort(-norms, axis=None)[:3]):
        t, unit = np.unravel_index(place, norms.shape)
        own = columns[columns["rank"] == rank]
        assert set(own["position"]) == {t}
        assert set(own["unit"]) == {unit}
        np.testing.assert_allclose(own["norm"], norms[t, unit])
        expected = sc.decode(run.lm, torch.from_numpy(J[:, t, unit]), "output", 2)[0]
        assert own["id"].tolist() == [w.id for w in expected]
    norms = np.linalg.norm(J, axis=2)
    for rank, place in enumerate(np.argsort(-norms, axis=None)[:3]):
        unit, t = np.unravel_index(place, norms.shape)
        own = rows[rows["rank"] == rank]
        assert (set(own["position"]), set(own["unit"])) == ({t}, {unit})
        expected = sc.decode(run.lm, torch.from_numpy(J[unit, t]), "input", 2)[0]
        assert own["id"].tolist() == [w.id for w in expected]
        np.testing.assert_allclose(own["score"], [w.score for w in expected])


def test_largest_of_a_block_knows_its_token() -> None:
    run = frozen("llama")
    table = sc.largest(run.lm, run.operator().block(4), "rows", count=2, top=1).table
    assert set(zip(table["position"], table["token"], strict=True)) == {(4, run.tokens[4])}
    assert len(table) == 2
    with pytest.raises(BadArgument, match=f"There are {32 * LENGTH} rows; got count = 0"):
        sc.largest(run.lm, run.operator(), "rows", count=0)
    with pytest.raises(BadArgument, match="Directions on the output side"):
        sc.largest(run.lm, Operator.from_dense(torch.randn(7, 2, 3), torch.ones(2, 3)), count=2)
