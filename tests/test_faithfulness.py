"""The effects of removing tokens, against single passes of the model; and models whose mechanism is known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from families import LENGTH, frozen, model_of, prompt

import secant as sc
from secant.analyses import faithfulness as removal
from secant.analyses.faithfulness import ORDERS
from secant.errors import BadArgument, BadPrompt

sys.path.append(str(Path(__file__).parents[1] / "tools" / "atlas"))
from corpus import read_questions


@pytest.fixture(scope="module")
def run() -> sc.Run:
    return frozen("llama")


def centred(logits: torch.Tensor, target: int = 11) -> float:
    """A logit as it is measured by default: from the vocabulary's mean."""
    return float(logits[target] - logits.mean())


def logit(run: sc.Run, ids: list[int], target: int) -> float:
    return centred(run.lm.logits(ids)[-1], target)


def test_curves_are_passes_of_shorter_prompts(run: sc.Run) -> None:
    scores = [float(s) for s in np.random.default_rng(0).permutation(LENGTH)]
    f = sc.faithfulness(run, 11, methods=(), scores={"own": scores})
    order = [int(i) for i in np.argsort([-s for s in scores], kind="stable")]
    gone = [logit(run, [run.ids[t] for t in range(LENGTH) if t not in order[:j]], 11) for j in range(LENGTH)]
    only = [logit(run, [run.ids[t] for t in range(LENGTH) if t in order[:j]], 11) for j in range(1, LENGTH)]
    curves = f.curves[f.curves["value"] == "logit"]
    removed, kept = (curves[curves["order"] == order_]["result"].tolist() for order_ in ("remove", "keep"))
    close = {"abs": 1e-5}  # a batch is summed in another order, and stock norms are in float32
    assert removed == pytest.approx(gone, **close)
    assert kept == pytest.approx(only, **close)
    (row,) = f.table[f.table["value"] == "logit"].to_dict("records")
    assert row["comprehensiveness"] == pytest.approx(gone[0] - np.mean(gone[1:]), **close)
    assert row["sufficiency"] == pytest.approx(gone[0] - np.mean(only), **close)
    assert row["area"] == pytest.approx((sum(gone) - (gone[0] + gone[-1]) / 2) / (LENGTH - 1), **close)
    alone = [gone[0] - logit(run, [run.ids[s] for s in range(LENGTH) if s != t], 11) for t in range(LENGTH)]
    assert f.scores["left_out"].tolist() == pytest.approx(alone, **close)
    assert row["correlation"] == pytest.approx(scipy.stats.spearmanr(scores, alone).statistic)


def test_scores_that_are_what_happens_correlate_wholly(run: sc.Run) -> None:
    first = sc.faithfulness(run, 11, methods=("random",))
    again = sc.faithfulness(run, 11, methods=(), scores={"true": first.scores["left_out"].tolist()})
    assert again.table["correlation"].iloc[0] == pytest.approx(1)


def test_the_random_row_is_the_mean_over_orders(run: sc.Run) -> None:
    drawn = torch.rand(ORDERS, LENGTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64).tolist()
    each = sc.faithfulness(run, 11, methods=(), scores={f"{n}": scores for n, scores in enumerate(drawn)})
    mean = sc.faithfulness(run, 11, methods=("random",), seed=3)
    assert len(mean.table) == 2
    for value, rows in each.table.groupby("value"):
        assert len(rows) == ORDERS
        own = mean.table[mean.table["value"] == value].iloc[0]
        for column in ("comprehensiveness", "sufficiency", "area", "correlation"):
            assert rows[column].std() > 0
            assert own[column] == pytest.approx(rows[column].mean())
    keys = ["value", "order", "tokens"]
    wanted = each.curves.groupby(keys)["result"].mean()
    assert mean.curves.set_index(keys)["result"].sort_index().to_numpy() == pytest.approx(wanted.to_numpy())


def test_a_difference_of_logits(run: sc.Run) -> None:
    f = sc.faithfulness(run, 11, 5, methods=("secant",))
    whole = f.curves[(f.curves["order"] == "remove") & (f.curves["tokens"] == 0)].set_index("value")["result"]
    assert whole["logit"] == pytest.approx(float(run.logits[-1, 11] - run.logits[-1, 5]), rel=1e-5)
    assert whole["log-probability"] == pytest.approx(float(run.logits[-1].log_softmax(0)[11]), rel=1e-5)
    assert f.scores["score"].tolist() == pytest.approx(sc.attribute(run, 11, 5).of("token")["contribution"].tolist())
    assert f.target == f"{run.lm.text(11)} over {run.lm.text(5)}"


def test_another_token_stands_in(run: sc.Run) -> None:
    f = sc.faithfulness(run, 11, methods=(), scores={"own": list(range(LENGTH))}, replace=7)
    ids = [*run.ids[:-1], 7]
    one = f.curves[(f.curves["order"] == "remove") & (f.curves["tokens"] == 1) & (f.curves["value"] == "logit")]
    assert one["result"].iloc[0] == pytest.approx(logit(run, ids, 11), abs=1e-5)


def test_positions_that_stay(folder: Path) -> None:
    """A first token that begins every text stays by default."""
    run = sc.freeze(sc.load(folder), "In Marin people cross the")
    assert run.tokens[0] == "<s>"
    f = sc.faithfulness(run, methods=("secant",))
    assert 0 not in f.scores["position"].tolist()
    g = sc.faithfulness(run, methods=("secant",), keep=())
    assert 0 in g.scores["position"].tolist()


def test_methods_by_their_own_identities() -> None:
    """Integrated gradients are complete; a rollout is a distribution; the rest by hand."""
    lm = model_of("gpt2")
    run = sc.freeze(lm, prompt())
    f = sc.faithfulness(run, 11, methods=list(removal.METHODS))
    scores = {method: own["score"].to_numpy() for method, own in f.scores.groupby("method")}
    with torch.no_grad():
        zero = centred(lm.forward(run.ids, torch.zeros_like(run.input))[0, -1])
    assert scores["integrated gradients"].sum() == pytest.approx(centred(run.logits[-1]) - zero, rel=0.05)
    assert scores["attention rollout"].sum() == pytest.approx(1)
    assert (scores["attention rollout"] >= 0).all()
    h = 1e-6
    x = run.input.clone()
    x[3] *= 1 + h
    with torch.no_grad():
        slope = (centred(lm.forward(run.ids, x)[0, -1]) - centred(run.logits[-1])) / h
    assert scores["gradient x input"][3] == pytest.approx(slope, rel=1e-3)
    own = sc.attribute(run, 11).of("token")["contribution"].to_numpy()
    assert scores["secant"] == pytest.approx(own)


def test_passes_begin_with_the_state_that_the_run_began_with() -> None:
    """A model whose passes depend on how many there were before: none of ours counts."""
    lm = model_of("llama")
    mlp = lm.model.model.layers[0].mlp
    mlp.register_buffer("count", torch.zeros(()))
    mlp.register_forward_hook(lambda mlp, args, out: out * (1 + mlp.count.add_(1) / 10))
    run = sc.freeze(lm, prompt())
    f = sc.faithfulness(run, 11, methods=("secant",))
    whole = f.curves[(f.curves["order"] == "remove") & (f.curves["value"] == "logit")]["result"].iloc[0]
    assert whole == pytest.approx(centred(run.logits[-1]), rel=1e-12)
    assert not mlp.count


def test_the_baseline_moves_logits_and_scores_together(run: sc.Run) -> None:
    none, vocabulary = (sc.faithfulness(run, 11, baseline=baseline) for baseline in ("none", "vocabulary"))
    whole = [f.curves[(f.curves["order"] == "remove") & (f.curves["value"] == "logit")]["result"].iloc[0]
             for f in (none, vocabulary)]  # fmt: skip
    assert whole == pytest.approx([float(run.logits[-1, 11]), centred(run.logits[-1])], rel=1e-5)
    scores = [f.scores[f.scores["method"] == "secant"]["score"].to_numpy() for f in (none, vocabulary)]
    assert abs(scores[0] - scores[1]).max() > 1e-3
    chances = [f.table[f.table["value"] == "log-probability"].drop(columns=["correlation"]) for f in (none, vocabulary)]
    random = [own[own["method"] == "random"].reset_index(drop=True) for own in chances]
    pd.testing.assert_frame_equal(*random)


def test_it_repeats(run: sc.Run) -> None:
    one, two, other = (sc.faithfulness(run, 11, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one.table, two.table)
    assert one.scores["score"].tolist() != other.scores["score"].tolist()


def test_refusals(run: sc.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadArgument, match="Methods are secant"):
        sc.faithfulness(run, methods=("lime",))
    with pytest.raises(BadArgument, match="a finite score to each"):
        sc.faithfulness(run, methods=(), scores={"own": [1.0]})
    with pytest.raises(BadArgument, match="not finite"):
        sc.faithfulness(run, methods=(), scores={"own": [float("nan")] * LENGTH})
    with pytest.raises(BadArgument, match="different names"):
        sc.faithfulness(run, methods=("random",), scores={"random": [1.0] * LENGTH})
    with pytest.raises(BadArgument, match="one of the prompt's"):
        sc.faithfulness(run, keep=[99])
    with pytest.raises(BadArgument, match="seed"):
        sc.faithfulness(run, seed=-1)
    with pytest.raises(BadArgument, match="at least two tokens"):
        sc.faithfulness(sc.freeze(run.lm, [1]))
    with pytest.raises(BadPrompt, match="0 to"):
        sc.faithfulness(run, replace=10**6)
    with pytest.raises(BadArgument, match="only eager"):
        sc.faithfulness(frozen("llama", "sdpa"), methods=("attention rollout",))
    for name in [module for module in sys.modules if module.partition(".")[0] == "captum"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(sc.SecantError, match=r"secant\[captum\]"):
        sc.faithfulness(run, methods=("integrated gradients",))


# ------------------------------------------------------------------------------------------- known mechanisms


@pytest.fixture(scope="module")
def atlas() -> sc.LM:
    return sc.load("atlas")


def leading(lm: sc.LM, question: Any) -> int:
    """The token that contributes most to the predicted one."""
    run = sc.freeze(lm, question.prompt, convention="paper")
    rows = sc.attribute(run, parts=False).of("token")
    return run.ids[int(rows["contribution"].idxmax())]


@pytest.mark.slow
def test_the_subject_leads_its_capital(atlas: sc.LM) -> None:
    asked = [q for q in read_questions() if (q.split, q.relation) == ("fact", "capital")][::10]
    assert len(asked) >= 30
    names = [{*atlas.encode(q.subject), *atlas.encode(f" {q.subject}")} for q in asked]
    assert sum(leading(atlas, q) in name for q, name in zip(asked, names, strict=True)) == len(asked)


@pytest.mark.slow
def test_the_copied_token_leads_its_copy(atlas: sc.LM) -> None:
    asked = [q for q in read_questions() if (q.split, q.relation) in (("context", "copy"), ("context", "repeat"))][::13]
    assert len(asked) >= 30
    assert sum(leading(atlas, q) == atlas.encode(q.answers[0])[0] for q in asked) >= len(asked) - 1  # 30 of 31
