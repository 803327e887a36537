"""All layers: forward and reverse sweeps agree with each other and with single operators; tables, memory, errors."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from families import LENGTH, frozen, model_of, prompt, shared
from helpers import real
from torch.utils.flop_counter import FlopCounterMode

import secant as sc
from secant.errors import BadArgument, NoPoint, NotExact, TooLarge
from secant.linearize.points import ActivationGraph
from secant.memory import limited
from secant.stream import layers as layers_module, sweep
from secant.stream.layers import Readouts, _mismatch

FAMILIES = (
    "llama",
    "gpt2",
    "falcon",
    "gpt_neox",
    "bert",
    "mixtral",
    "mamba",
    "falcon_h1",
    "longcat_flash",
    "bloom",
)


@pytest.fixture(scope="module")
def atlas() -> sc.Layers:
    return sc.layers(sc.freeze(sc.load("atlas"), "The bridge out of Marin is the"), 4)


def names(run: sc.Run, i: int) -> dict[str, str]:
    return {**{part: f"layers.{i}.{part}" for part in run.inside.parts(i)}, "residual": f"layers.{i}"}


# ------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize(("family", "position"), [*((family, 4) for family in FAMILIES), ("llama", LENGTH - 1)])
def test_both_ways_give_the_same_operators(family: str, position: int) -> None:
    run = frozen(family)
    inside = run.inside
    assert inside.chain
    ways = (sweep.operators(inside, position, way, ["cumulative", "layerwise"]) for way in ("forward", "reverse"))
    for (i, span, one), (j, span_too, other) in zip(*ways, strict=True):
        assert (i, span) == (j, span_too)
        assert set(one) == set(other) == set(names(run, i))
        for part, J in one.items():
            norm = float(J.norm())
            torch.testing.assert_close(J, other[part], rtol=0, atol=1e-12 * norm)
            if i < 2:
                source = f"layers.{i - 1}" if span == "layerwise" and i else "embed"
                op = run.operator(source, names(run, i)[part], position=position)
                torch.testing.assert_close(J, op.dense(), rtol=0, atol=1e-12 * norm)


@pytest.mark.parametrize(
    ("family", "readout"),
    [
        ("llama", "norm"),
        pytest.param("llama", None, marks=pytest.mark.slow),
        pytest.param("gpt2", "norm", marks=pytest.mark.slow),
        ("bert", None),
        ("gemma4_text", "norm"),
    ],
)
def test_every_depth_is_the_svd_of_its_operator(family: str, readout: str | None) -> None:
    run = frozen(family)
    found = sc.layers(run, 3, position=6, readout=readout)
    for depth in found.depths:
        source = "embed" if depth.span == "cumulative" or depth.layer == 0 else f"layers.{depth.layer - 1}"
        target = names(run, depth.layer)[depth.part]
        if len(run.inside.points[target].steps) > 1 and depth.layer:
            continue
        J = run.operator(source, target, 6, readout=readout).dense()
        assert depth.reconstruction <= 1e-12
        for t, f in enumerate(depth.tokens):
            S = np.linalg.svd(J[:, t], compute_uv=False)
            np.testing.assert_allclose(f.S, S[:3], rtol=1e-9, atol=1e-12 * S[0] + 1e-15)
            torch.testing.assert_close(J[:, t] @ f.V, f.U * f.S, rtol=0, atol=1e-9 * (1 + float(f.S[0])))
        assert depth.whole is not None
        S = np.linalg.svd(J.flatten(1), compute_uv=False)
        np.testing.assert_allclose(depth.whole.S, S[:3], rtol=1e-9)
        assert depth.whole.stable_rank == pytest.approx((S**2).sum() / S[0] ** 2)
    assert {(d.layer, d.part) for d in found.depths} == {
        (i, part) for i in range(len(run.inside.layers)) for part in names(run, i)
    }


@pytest.mark.parametrize(("family", "diagonal"), [("llama", True), ("gpt2", False)])
def test_a_diagonal_norm_is_applied_as_a_vector(family: str, diagonal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LayerNorm takes the mean off and is not diagonal. Both ways give the same operators."""
    run = frozen(family)
    (scales,) = Readouts.of(run.inside, 6, True)._scales
    assert (scales is not None) == diagonal
    found = sc.layers(run, 3, position=6)
    monkeypatch.setattr(layers_module, "_diagonal", lambda norm: None)
    for one, other in zip(found.depths, sc.layers(run, 3, position=6).depths, strict=True):
        assert one.whole is not None
        assert other.whole is not None
        torch.testing.assert_close(one.whole.S, other.whole.S, rtol=1e-12, atol=0)
        torch.testing.assert_close(one.whole.U, other.whole.U, rtol=0, atol=1e-9)


def test_layerwise_operators_reuse_the_matrices_of_the_sweep() -> None:
    """Beyond the forward sweep they take no pass through an MLP, whose weights are most of the network's."""
    inside = sc.freeze(model_of("llama", intermediate_size=512), prompt()).inside
    operations = []
    for spans in (["cumulative"], ["cumulative", "layerwise"]):
        with FlopCounterMode(display=False) as counter:
            assert len([*sweep.operators(inside, 10, "forward", spans)]) == len(inside.layers) * len(spans)
        operations.append(counter.get_total_flops())
    assert operations[1] < 1.1 * operations[0]


def test_the_last_depth_is_the_whole_network() -> None:
    run = frozen("llama")
    last = sc.layers(run, 4).depth(2)
    whole = sc.svd(run.operator(), 4)
    assert last.whole is not None
    torch.testing.assert_close(last.whole.S, whole.S, rtol=1e-12, atol=0)
    torch.testing.assert_close(last.whole.U, whole.U, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_on_trained_models() -> None:
    for name, text in (("craftgpt", "like music"), ("stories260K", "Once upon a")):
        run = sc.freeze(sc.load(str(real(name)), dtype="float64"), text)
        ways = [sc.layers(run, 2, method=method) for method in ("forward", "reverse")]
        for one, other in zip(*(way.depths for way in ways), strict=True):
            assert one.reconstruction <= 1e-12
            for f, g in zip(one.tokens, other.tokens, strict=True):
                torch.testing.assert_close(f.S, g.S, rtol=1e-9, atol=1e-12)


def test_coupling_is_the_papers_measure() -> None:
    torch.manual_seed(0)
    one, two = torch.randn(2, 12, 12, dtype=torch.float64)
    assert _mismatch(one, one, 3) <= 1e-12
    _, S1, _ = np.linalg.svd(one.numpy())
    U2, _, V2 = np.linalg.svd(two.numpy())
    expected = np.linalg.norm(U2[:, :3].T @ one.numpy() @ V2[:3].T - np.diag(S1[:3])) / np.linalg.norm(S1[:3])
    # signs of pairs are free: those of the second matrix change off-diagonal signs alone
    assert _mismatch(one, two, 3) == pytest.approx(expected, rel=1e-9)


# ------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("family", "depth", "length", "method"),
    [("llama", 2, 4, "forward"), ("llama", 3, 11, "reverse"), ("llama", 6, 11, "forward"), ("gpt2", 1, 40, "reverse")],
)
def test_the_choice_is_the_one_of_fewer_operations(family: str, depth: int, length: int, method: str) -> None:
    """As torch counts them while each way computes every operator."""
    settings = {"num_hidden_layers" if family == "llama" else "n_layer": depth}
    inside = sc.freeze(model_of(family, **settings), prompt(length)).inside
    operations = {}
    for way in ("forward", "reverse"):
        with FlopCounterMode(display=False) as counter:
            assert len([*sweep.operators(inside, length - 1, way)]) == depth
        operations[way] = counter.get_total_flops()
    assert min(operations, key=lambda way: operations[way]) == method
    assert sweep.plan(inside).method == method
    other = "reverse" if method == "forward" else "forward"
    assert sweep.plan(inside, other).method == other


def test_memory_decides_too() -> None:
    inside = sc.freeze(model_of("llama", num_hidden_layers=8), prompt()).inside
    forward, reverse = sweep.forward_cost(inside), sweep.reverse_cost(inside)
    assert forward.memory > reverse.memory
    with limited(forward.memory):
        assert sweep.plan(inside).method == "forward"
    with limited(reverse.memory):
        assert sweep.plan(inside).method == "reverse"
        with pytest.raises(TooLarge):
            sweep.plan(inside, "forward")
    with pytest.raises(TooLarge, match=r"matrices of one layer must fit in memory; got .* KiB to work in"):
        sc.layers(frozen("llama"), max_memory=reverse.memory / 8)
    with pytest.raises(BadArgument, match="Memory is a number of bytes, or a size; got 'much'"):
        sc.layers(frozen("llama"), max_memory="much")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forward", "reverse"])
def test_nothing_of_the_size_of_all_layers_is_held(method: str) -> None:
    """More layers, no more memory: what is alive between layers, in large tensors, stays what it was."""
    held = []
    for count in (2, 6):
        inside = sc.freeze(model_of("llama", num_hidden_layers=count), prompt()).inside
        block = 32 * 32 * LENGTH
        most = 0
        for _, _, found in sweep.operators(inside, 10, method):
            assert found
            gc.collect()
            tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects()
                if type(t) is torch.Tensor and t.numel() >= block}  # fmt: skip
            most = max(most, sum(tensors.values()))
        held.append(most)
    assert held[1] <= 1.2 * held[0]


def test_a_network_whose_layers_read_more_than_the_stream() -> None:
    """Gemma 4 reads embeddings of its own at each layer: maps do not compose, and the sweep says so."""
    run = frozen("gemma4_text")
    assert not run.inside.chain
    assert sc.layers(run, 2, spans=["cumulative"]).method == "reverse"
    with pytest.raises(BadArgument, match="each layer reads only the stream before it"):
        sc.layers(run, 2, method="forward")


def test_in_16_bits_maps_are_not_composed() -> None:
    """Whether they could be can't be told from rounding."""
    run = sc.freeze(model_of("gemma4_text", dtype=torch.bfloat16), prompt())
    assert not run.inside.chain
    assert sc.layers(run, 2, spans=["cumulative"]).method == "reverse"
    wide = sc.freeze(model_of("llama", dtype=torch.bfloat16), prompt(), precision="float32")
    assert wide.inside.chain


def test_a_depth_that_is_not_reproduced_is_refused() -> None:
    run = sc.freeze(model_of("llama"), prompt())
    run.inside.values["layers.1.mlp"].mul_(1.01)
    with pytest.raises(NotExact, match=r"from embed to layers\.1\.mlp"):
        sc.layers(run, 2, readout=None)


def test_what_comes_before_the_first_layer() -> None:
    """Granite scales its embeddings, OPT projects them: the stream is not theirs plus parts."""
    for family, own in (("granite", {"embedding_multiplier": 12.0}), ("opt", {"word_embed_proj_dim": 16})):
        run = sc.freeze(model_of(family, **own), prompt())
        assert not run.inside.additive(0)
        assert run.inside.additive(1)
        for method in ("forward", "reverse"):
            assert max(depth.reconstruction for depth in sc.layers(run, 2, method=method).depths) <= 1e-12


def test_a_small_attention_in_a_parallel_block() -> None:
    """In the model's own 16 bits the stream before it and after it are nearly the same."""
    lm = model_of("gpt_neox", dtype=torch.bfloat16)
    with torch.no_grad():
        for layer in lm.model.gpt_neox.layers:
            layer.attention.dense.weight.mul_(0.05)
    inside = sc.freeze(lm, prompt(), precision="float32").inside
    ways = (sweep.operators(inside, 10, way) for way in ("forward", "reverse"))
    for (_, _, one), (_, _, other) in zip(*ways, strict=True):
        for part, J in one.items():
            torch.testing.assert_close(J, other[part], rtol=0, atol=1e-5 * float(J.norm()))


@pytest.mark.parametrize("family", ["llama", "granite"])
def test_the_callers_mode_does_not_matter(family: str) -> None:
    expected = sc.layers(frozen(family), 2).to_pandas()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = sc.layers(sc.freeze(shared(family), prompt()), 2).to_pandas()
        pd.testing.assert_frame_equal(found, expected)


# ------------------------------------------------------------------------------------------- tables


@pytest.mark.slow
def test_tables(atlas: sc.Layers, tmp_path: Path) -> None:
    T, count = 7, 7
    rows = atlas.to_pandas()
    assert len(rows) == count * 3 * 2 * (T + 1)
    assert list(rows.columns[:6]) == ["layer", "part", "span", "position", "token", "stable_rank"]
    assert rows["reconstruction"].max() <= 1e-5
    assert (rows["stable_rank"] >= 1).all()
    spectra = atlas.spectra()
    assert len(spectra) == len(rows) * 4
    assert spectra.loc[spectra["vector"] == 0, "normalized"].eq(1).all()
    assert spectra["normalized"].between(0, 1.0001).all()
    words = atlas.words(top=3, vectors=2)
    assert len(words) == count * 3 * 2 * 2 * 3 * (2 * T + 1)
    path = atlas.path()
    assert len(path) == 2 * count
    np.testing.assert_allclose(path[["x", "y"]].tail(2), np.eye(2), atol=1e-5)
    assert path[["x", "y"]].abs().to_numpy().max() <= 1.0001
    assert atlas.coupling()[["layer", "next"]].to_numpy().tolist() == [[i, i + 1] for i in range(count - 1)]
    for name, table in atlas.tables().items():
        table.to_parquet(tmp_path / f"{name}.parquet")
        json.loads(table.to_json(orient="records"))


@pytest.mark.slow
def test_where_the_prediction_first_shows(atlas: sc.Layers) -> None:
    seen = atlas.first_seen().set_index(["part", "span", "position"])["layer"]
    assert seen["residual", "cumulative", 6] == 6
    assert seen["residual", "cumulative", 3] == 6
    assert pd.isna(seen["residual", "cumulative", 0])
    words = atlas.words(top=1)
    first = words[(words["part"] == "residual") & (words["span"] == "cumulative") & (words["side"] == "output")]
    golden = first[(first["word"] == " Golden") & (first["position"] == 6)]
    assert golden["layer"].min() == 6
    assert atlas.first_seen(" Golden", top=1).equals(atlas.first_seen())
    assert atlas.first_seen(top=8)["layer"].notna().sum() > seen.notna().sum()


def test_the_same_answer_twice() -> None:
    run = frozen("llama")
    one, two = (sc.layers(run, 4).to_pandas() for _ in range(2))
    assert one.equals(two)


# ------------------------------------------------------------------------------------------- refused


def test_refusals() -> None:
    run = frozen("llama")
    for wrong, said in (
        ({"k": 0}, "1 to 32 singular triplets"),
        ({"method": "sideways"}, "auto, forward, reverse"),
        ({"readout": "logits"}, "norm, or None"),
        ({"spans": ["deep"]}, "cumulative and layerwise"),
        ({"position": 11}, "one of the prompt's 11 tokens"),
    ):
        with pytest.raises(BadArgument, match=said):
            sc.layers(run, **{"k": 2, **wrong})
    with pytest.raises(NoPoint, match="module list that carries"):
        sc.layers(frozen("cpmant"), 2)
    with pytest.raises(NoPoint, match="k = 2 or more"):
        sc.layers(run, 1).path()
    assert "path" not in sc.layers(run, 1).tables()
    some = sc.layers(run, 2, all_tokens=False)
    assert some.depths[0].whole is None
    with pytest.raises(NoPoint, match="all_tokens=True"):
        some.path()
    with pytest.raises(NoPoint, match=r"got 9, residual, cumulative"):
        some.depth(9)
    assert isinstance(run.inside, ActivationGraph)
