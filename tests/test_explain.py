"""`explain`: spectra, top tokens, contributions, and the files with them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from families import frozen, model_of
from helpers import real
from safetensors.torch import load_file

import secant as sc
from secant.errors import BadArgument, OutputFailed, TooLarge


@pytest.fixture(scope="module")
def run() -> sc.Run:
    return frozen("gpt2", "sdpa")


# ------------------------------------------------------------------------------------------- words


def with_rows(E: torch.Tensor, W: torch.Tensor) -> sc.LM:
    lm = model_of("llama", "sdpa", torch.float64, vocab_size=len(E))
    with torch.no_grad():
        lm.model.get_input_embeddings().weight.copy_(E)
        lm.head.weight.copy_(W)
    return lm


def test_words_are_the_nearest_in_order() -> None:
    """Against numpy, for every direction: the reference code's merge was wrong in 200 of 200 trials (trap 3)."""
    rng = np.random.default_rng(0)
    E, W, D = (rng.normal(size=s) for s in ((97, 32), (97, 32), (32, 20)))
    lm, directions = with_rows(torch.from_numpy(E), torch.from_numpy(W)), torch.from_numpy(D)
    C = E - E.mean(0)
    cosine = (C @ D) / np.linalg.norm(C, axis=1)[:, None] / np.linalg.norm(D, axis=0)
    for side, scores, how in (("output", W @ D, {"metric": "dot", "centered": False}), ("input", cosine, {})):
        for c, words in enumerate(sc.decode(lm, directions, side=side, top=9, **how)):
            order = np.argsort(-scores[:, c], kind="stable")[:9]
            assert [w.id for w in words] == order.tolist()
            assert [w.score for w in words] == pytest.approx(scores[order, c].tolist())


def test_zero_rows_are_left_out_and_ties_go_by_id() -> None:
    E = torch.zeros(97, 32, dtype=torch.float64)
    E[[7, 3, 50]] = torch.ones(32, dtype=torch.float64)
    E[20] = -1
    u = torch.ones(32, dtype=torch.float64)
    assert [w.id for w in sc.decode(with_rows(E, E), u, side="input")[0]] == [3, 7, 50, 20]
    (words,) = sc.decode(with_rows(E, E), u, side="input", top=8, centered=False)
    assert [(w.id, round(w.score, 12)) for w in words] == [(3, 1), (7, 1), (50, 1), (20, -1)]
    (words,) = sc.decode(with_rows(E, E), torch.zeros(32), side="input")
    assert words == []


def test_decode_refuses(lm: sc.LM) -> None:
    with pytest.raises(BadArgument, match=r"64 .*; got 5"):
        sc.decode(lm, torch.ones(5, 2), side="output")


# ------------------------------------------------------------------------------------------- explanations


def test_a_difference_of_logits_is_explained(lm: sc.LM) -> None:
    """As by `attribute`, with all that is compared with it: other conventions, deletions, evidence, the page."""
    text = "The bridge out of Marin is the"
    e = sc.explain(lm, text, target="Golden", versus="Tower", k=1, top=2)
    wanted = sc.attribute(e.run, "Golden", "Tower")
    logits = e.run.logits[-1].double()
    apart = float(logits[lm.token("Golden")] - logits[lm.token("Tower")])
    assert e.attribution.logit == pytest.approx(apart, rel=1e-5)
    assert e.attribution.label == "Golden over Tower"
    pd.testing.assert_frame_equal(e.attribution.of("token"), wanted.of("token"))
    for label in ("gate", "half"):
        own = sc.attribute(e.run, "Golden", "Tower", convention=label).of("token")["contribution"]
        assert e.sensitivity.contributions(label) == pytest.approx(own.tolist())
    shorter = lm.logits(e.run.ids[:2] + e.run.ids[3:])[-1].double()
    left = float(shorter[lm.token("Golden")] - shorter[lm.token("Tower")])
    assert e.sensitivity.effects is not None
    assert e.sensitivity.effects[2] == pytest.approx(apart - left, rel=1e-4)
    evidence = e.evidence(image=False)
    assert evidence.attribution.versus == "Tower"
    assert "Tower" not in [each.versus for each in evidence.versus]
    assert "Golden over Tower" in str(e.view().facts["logit"])
    assert e.about()["versus"] == "Tower"
    assert e.contents(evidence)["about"]["versus"] == "Tower"
    with pytest.raises(BadArgument, match="a different one"):
        sc.explain(lm, text, versus="Golden")


def test_the_trained_model_is_explained(explanation: sc.Explanation) -> None:
    e = explanation
    assert e.run.prediction[0].token == e.attribution.target == "Golden"
    table = e.to_pandas()
    paper = sc.attribute(e.run, convention="paper").of("token")["contribution"].reset_index(drop=True)
    assert paper.idxmax() == e.run.tokens.index("Marin")
    assert e.outputs[5][0][0].token == "Golden"
    assert e.inputs[5][0][0].token == "Marin"
    constant = e.attribution.constant
    assert table["contribution"].sum() + constant == pytest.approx(e.attribution.logit, abs=1e-12)
    assert table["share"].sum() + constant / e.attribution.logit == pytest.approx(1, abs=1e-12)
    op = e.run.operator()
    assert table["norm"].tolist() == pytest.approx([float(op.block(t).output.norm()) for t in range(len(table))])


def test_everything_is_written(explanation: sc.Explanation, tmp_path: Path) -> None:
    explanation.save(tmp_path / "out")
    explanation.save(tmp_path / "out")  # again, over the first
    names = ["columns.csv", "explanation.json", "explanation.safetensors"]
    tables = ("predictions", "singular_values", "tokens", "words", "written", "by_convention", "agreement", "deletion")
    tables += ("lens", "lens_words", "lens_terms")
    names += [f"{name}.{kind}" for name in tables for kind in ("csv", "parquet")]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(names)
    assert os.listdir(tmp_path) == ["out"]
    said = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert said["certificate"]["reconstruction"] <= 1e-13
    assert sum(t["share"] for t in said["tokens"]) + said["constant"]["share"] == pytest.approx(1)
    for name, table in (("tokens", explanation.to_pandas()), ("words", explanation.words())):
        saved = pd.read_parquet(tmp_path / "out" / f"{name}.parquet").astype(table.dtypes.to_dict())
        pd.testing.assert_frame_equal(saved, table)
        assert len(pd.read_csv(tmp_path / "out" / f"{name}.csv")) == len(table)
    tensors = load_file(tmp_path / "out" / "explanation.safetensors")
    assert tensors["U"].shape == (8, 64, 4)
    op = explanation.run.operator()
    block = op.block(5).dense()[:, 0]
    torch.testing.assert_close(
        block @ tensors["V"][5], tensors["U"][5] * tensors["S"][5], rtol=0, atol=1e-12 * float(tensors["S"][5][0])
    )


def test_no_room_leaves_nothing_behind(
    explanation: sc.Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputFailed, match="No space left"):
        explanation.save(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_memory_that_does_not_suffice_is_said_beforehand(lm: sc.LM) -> None:
    with pytest.raises(TooLarge, match=r"must fit in the allowed memory; got .* of 1\.0 KiB"):
        sc.explain(lm, "The bridge out of Marin is the", max_memory="1KiB")


def test_the_same_answer_twice(lm: sc.LM, explanation: sc.Explanation) -> None:
    again = sc.explain(lm, "The bridge out of Marin is the")
    assert json.dumps(again.to_dict()) == json.dumps(explanation.to_dict())


def test_music() -> None:
    """On craftgpt the block of "music" writes soothing, soft, calming, uplifting, song."""
    e = sc.explain(sc.load(str(real("craftgpt"))), "[inst] do you like music? [/inst]")
    words = [w.token.strip() for w in e.outputs[e.run.tokens.index(" music")][0]]
    assert {"soothing", "soft", "calming", "uplifting", "song"} <= set(words)
    assert next(w.token.strip() for w in e.inputs[4][0]) == "music"
