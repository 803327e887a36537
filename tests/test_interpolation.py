"""Interpolation between prompts: exact at the first, the model's own output at the second; small angles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from families import LENGTH, model_of, prompt

import secant as sc
from secant.analyses.interpolation import _angles, angle
from secant.errors import BadArgument, BadPrompt, NotExact
from secant.linearize.network import Network, record
from secant.numeric import relative

PROMPT, OTHER = "The bridge out of Marin is the", "The bridge out of London is the"
ERRORS = ["frozen_error", "ordinary_error", "still_error"]
ANGLES = ["y_angle", "u_angle", "u_mean", "v_angle", "v_mean"]


@pytest.fixture(scope="module")
def run(lm: sc.LM) -> sc.Run:
    return sc.freeze(lm, PROMPT)


@pytest.fixture(scope="module")
def way(run: sc.Run) -> sc.Reach:
    return sc.reach(run, OTHER, steps=5, k=3)


def test_at_its_beginning_nothing_has_changed(way: sc.Reach) -> None:
    first = way.table.iloc[0]
    assert first["alpha"] == 0
    assert first[ERRORS].max() <= 1e-12
    assert first[ANGLES].max() <= 1e-10
    assert first["j_distance"] <= 1e-12
    assert first["predicted"] == first["frozen_predicted"] == "Golden"


def test_at_its_end_it_is_the_other_prompt(lm: sc.LM, run: sc.Run, way: sc.Reach) -> None:
    """In a Llama embeddings are all that depends on tokens."""
    other = sc.freeze(lm, OTHER)
    y, to = run.operator(), other.operator()
    last = way.table.iloc[-1]
    assert way.ids == other.ids
    assert last["predicted"] == other.prediction[0].token == "Tower"
    assert last["still_error"] == pytest.approx(relative(y.output, to.output), rel=1e-12)
    assert last["frozen_error"] == pytest.approx(relative(y @ to.input + y.bias, to.output), rel=1e-11)
    J, J1 = y.dense(), to.dense()
    assert last["j_distance"] == pytest.approx(float((J1 - J).norm() / J.norm()), rel=1e-11)
    spans = [np.linalg.svd(M.flatten(1).numpy(), full_matrices=False) for M in (J, J1)]
    cosines = np.linalg.svd(spans[0][0][:, :3].T @ spans[1][0][:, :3], compute_uv=False)
    assert last["u_angle"] == pytest.approx(np.rad2deg(np.arccos(cosines.min())), abs=1e-5)
    assert last["u_mean"] == pytest.approx(np.rad2deg(np.arccos(cosines.clip(max=1)).mean()), abs=1e-5)
    cosines = np.linalg.svd(spans[0][2][:3] @ spans[1][2][:3].T, compute_uv=False)
    assert last["v_angle"] == pytest.approx(np.rad2deg(np.arccos(cosines.min())), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mixtral", "mamba"])
def test_identities_in_between(family: str) -> None:
    """The frozen network is J x + b there too, J' is the slope of the network, and what is frozen anew is exact."""
    lm = model_of(family)
    run = sc.freeze(lm, prompt())
    found = sc.reach(run, (3, 7), steps=[0, 1e-6, 0.3, 1], k=2)
    x, to = run.input, lm.embed(found.ids)
    assert found.ids == [*run.ids[:3], 7, *run.ids[4:]]
    assert found.table["reconstruction"].max() <= 1e-12
    op = run.operator()
    at = torch.lerp(x, to, 0.3)
    recording = record(lm, run.ids, at, "gate", torch.float64)
    y = recording.values["norm"][-1]
    row = found.table.set_index("alpha").loc[0.3]
    assert row["frozen_error"] == pytest.approx(relative(op @ at + op.bias, y), rel=1e-10)
    assert row["y_angle"] == pytest.approx(angle(op.output, y), rel=1e-10)
    J = Network.of(lm, recording, at, torch.float64).operator("norm", [-1]).dense()
    assert row["j_distance"] == pytest.approx(relative(J, op.dense()), rel=1e-10)
    small = found.table.iloc[1]
    assert small["still_error"] > 1e-9  # the token matters at the last position
    assert small["ordinary_error"] <= 1e-3 * small["still_error"]  # of second order, where the network is smooth
    end, swapped = record(lm, run.ids, to, "gate", torch.float64).values, sc.freeze(lm, found.ids)
    torch.testing.assert_close(end["logits"], swapped.logits, rtol=1e-12, atol=1e-12)
    y = swapped.operator().output
    assert found.table.iloc[-1]["still_error"] == pytest.approx(relative(op.output, y), rel=1e-11)


def test_a_linear_model_has_no_neighbourhood(lm: sc.LM) -> None:
    """Without layers' blocks and with the norm's division taken away, all that is left is linear: no error anywhere."""
    linear = model_of("llama", num_hidden_layers=1)
    base = linear.model.model
    base.norm = torch.nn.Identity()
    base.layers[0].mlp = torch.nn.Linear(32, 32).double()
    base.layers[0].post_attention_layernorm = torch.nn.Identity()
    base.layers[0].self_attn.o_proj.weight.data.zero_()
    linear.model.eval()
    run = sc.freeze(linear, prompt())
    table = sc.reach(run, (LENGTH - 1, 5), steps=4, k=2).table
    assert table[["frozen_error", "ordinary_error"]].to_numpy().max() <= 1e-12
    assert table[["u_angle", "v_angle", "j_distance"]].to_numpy().max() <= 1e-9
    assert table["still_error"].iloc[-1] > 0.1


def test_small_angles_keep_their_digits() -> None:
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for size in (1e-12, 1e-8, 1e-3, 1.0):
        b = torch.tensor([np.cos(size), np.sin(size)], dtype=torch.float64)
        assert angle(a, 3 * b) == pytest.approx(np.rad2deg(size), rel=1e-3 if size < 1e-10 else 1e-7)
        assert _angles(a[:, None], b[:, None])[0] == pytest.approx(np.rad2deg(size), rel=1e-3 if size < 1e-10 else 1e-7)
    assert angle(a, -a) == pytest.approx(180)


def test_the_same_call_gives_the_same_answer_and_says_how_far_it_is(run: sc.Run) -> None:
    said: list[tuple[str, int, int]] = []
    one = sc.reach(run, OTHER, steps=3, k=2, progress=lambda *a: said.append(a))
    assert said == [("steps", 1, 3), ("steps", 2, 3), ("steps", 3, 3)]
    pd.testing.assert_frame_equal(one.table, sc.reach(run, OTHER, steps=(0, 0.5, 1), k=2).to_pandas())


def test_without_room_for_j_all_but_its_distance(run: sc.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sc.reach(run, OTHER, steps=2, k=2).table
    monkeypatch.setattr("secant.analyses.interpolation.allowance", lambda device: 1.0)
    table = sc.reach(run, OTHER, steps=2, k=2).table
    assert table["j_distance"].isna().all()
    np.testing.assert_allclose(table[ANGLES], whole[ANGLES], atol=1e-6)


def test_precision_above_the_models_own(folder: Path) -> None:
    run = sc.freeze(sc.load(folder, dtype="bfloat16"), PROMPT, precision="float32")
    table = sc.reach(run, OTHER, steps=3, k=2).table
    assert table["reconstruction"].max() < 0.1
    assert table["frozen_error"].iloc[0] < 0.1
    assert table["frozen_error"].iloc[-1] > 0.1


def test_save(way: sc.Reach, tmp_path: Path) -> None:
    way.save(tmp_path / "out")
    saved = pd.read_parquet(tmp_path / "out" / "reach.parquet").astype(way.table.dtypes.to_dict())
    pd.testing.assert_frame_equal(saved, way.table)
    assert len(pd.read_csv(tmp_path / "out" / "reach.csv")) == 5


def test_refusals(lm: sc.LM, run: sc.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadPrompt, match="the same number of tokens; got 8 and 4"):
        sc.reach(run, "The bridge in")
    with pytest.raises(BadPrompt, match="vocabulary"):
        sc.reach(run, (5, "zzqq"))
    with pytest.raises(BadArgument, match="one of the prompt's 8 tokens; got 8"):
        sc.reach(run, (8, "London"))
    with pytest.raises(BadArgument, match="singular triplets; got k = 65"):
        sc.reach(run, OTHER, k=65)
    for steps in (1, [], [0, 2]):
        with pytest.raises(BadArgument, match=r"from 0 to 1|at least two"):
            sc.reach(run, OTHER, steps=steps)
    monkeypatch.setattr("secant.operators.operator.Operator.reconstruction", 1.0)
    with pytest.raises(NotExact, match="at α = 0"):
        sc.reach(run, OTHER, steps=2)
