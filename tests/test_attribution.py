"""A logit is the sum of what tokens, parts, heads and constants contribute, each found a second way."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from families import LENGTH, frozen, model_of, prompt, shared

import secant as sc
from secant.analyses import attribution as module, terms
from secant.analyses.origins import origin_of
from secant.errors import BadArgument, BadPrompt, NotExact
from secant.linearize.conventions import CONVENTIONS
from secant.linearize.network import reference, running

PLAIN = ("llama", "gpt2", "gemma3_text", "gptj")  # whose stream is a sum
OTHER = ("bert", "olmo2", "bloom", "gemma4_text", "mamba", "jamba", "mixtral", "deepseek_v4")  # norms, scales, mixers


@pytest.fixture(scope="module", params=PLAIN)
def run(request: pytest.FixtureRequest) -> sc.Run:
    return frozen(request.param, "sdpa" if request.param != "gptj" else "eager")


@pytest.mark.parametrize("family", PLAIN + OTHER)
def test_both_sums_are_the_logit_and_the_flow_crosses_them(family: str) -> None:
    run = frozen(family)
    for target, versus in ((None, None), (5, None), (5, 90)):
        a = sc.attribute(run, target, versus, baseline="none", flow=target is None)
        chosen = run.prediction[0].id if target is None else target
        true = float(run.logits[-1, chosen]) - (0 if versus is None else float(run.logits[-1, versus]))
        close = {"abs": 1e-13 * a.table["contribution"].abs().sum(), "rel": 0}
        assert a.logit == pytest.approx(true, abs=1e-13)
        assert a.total == pytest.approx(true, **close)
        assert a.direct == pytest.approx(true, **close)
        origin, writers = (
            a.table[a.table["kind"].isin(kinds)] for kinds in (("token", "constant"), ("embed", "layer", "outside"))
        )
        assert a.total == pytest.approx(origin["contribution"].sum(), **close)
        assert a.direct == pytest.approx(writers["contribution"].sum(), **close)
        assert a.of("token")["position"].tolist() == list(range(LENGTH))
        if a.flow is not None:
            crossed(a, close)


def crossed(a: sc.Attribution, close: dict[str, float]) -> None:
    """Of the flow, every margin: tokens, parts and heads, on both paths."""
    assert a.flow is not None
    whole = a.flow[a.flow["head"].isna()]
    direct = whole[whole["path"] == "direct"].groupby("position", dropna=False)["contribution"].sum()
    assert direct.tolist()[:-1] == pytest.approx(a.of("token")["contribution"].tolist(), **close)
    assert direct.tolist()[-1] == pytest.approx(a.constant, **close)
    assert direct.sum() == pytest.approx(a.logit, **close)
    margins = a.flow.groupby(["name", "path"])["contribution"].sum()
    for row in a.table[a.table["kind"].isin(["embed", "layer"]) | a.table["head"].notna()].itertuples():
        assert margins[row.name, "direct"] == pytest.approx(row.contribution, **close)
        assert margins[row.name, "all"] == pytest.approx(row.all_paths, **close)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "mamba"])
def test_a_logit_at_any_position(family: str) -> None:
    """Tokens and constants are the blocks and the bias of the operator to the logit there; sums and flow hold."""
    run = sc.freeze(model_of(family), prompt(), convention="gate")
    for position in range(-1, LENGTH):
        a = sc.attribute(run, position=position, baseline="none", flow=position in (0, 3))
        at = position % LENGTH
        assert (a.position, a.to_dict()["position"]) == (at, at)
        predicted = int(run.logits[at].argmax())
        assert a.target == run.lm.text(predicted)
        op = run.operator(target="logits", position=position, tokens=[predicted])
        size = a.table["contribution"].abs().sum()
        close = {"abs": 1e-12 * size, "rel": 0}
        blocks = [float(op.block(t).output) for t in range(LENGTH)]
        assert a.of("token")["contribution"].tolist() == pytest.approx(blocks, **close)
        assert a.constant == pytest.approx(float(op.bias), **close)
        assert a.logit == float(run.logits[at, predicted])
        assert (a.total, a.direct) == pytest.approx((a.logit, a.logit), **close)
        if a.flow is not None:
            crossed(a, close)
        other = sc.attribute(run, 5, 90, position=position, parts=False)
        both = run.operator(target="logits", position=position, tokens=[5, 90])
        first, second = (both.block(t).output for t in range(2))
        difference = [float(block[0] - block[1]) for block in (first, second)]
        assert other.of("token")["contribution"].tolist()[:2] == pytest.approx(difference, **close)
    for wrong in (LENGTH, -LENGTH - 1):
        with pytest.raises(BadArgument, match="A position is one of the prompt's"):
            sc.attribute(run, position=wrong)


@pytest.mark.slow
def test_parts_at_any_position(run: sc.Run) -> None:
    """Straight to the logit at an earlier position: the map of what comes after the last layer, read there."""
    for position in range(LENGTH):
        a, inside = sc.attribute(run, 11, baseline="none", position=position), run.inside
        last = run.operator(f"layers.{len(inside.layers) - 1}", "logits", position=position, tokens=[11])
        for row in a.of("layer").itertuples():
            assert row.contribution == pytest.approx(float(last @ inside.values[row.name]), abs=1e-12)


def test_memory_to_work_in(run: sc.Run) -> None:
    whole, small = (sc.attribute(run, 11, baseline="none", flow=True, max_memory=memory) for memory in (None, "100KB"))
    assert small.flow is not None
    pd.testing.assert_frame_equal(small.flow, whole.flow, rtol=0, atol=1e-13)
    with pytest.raises(BadArgument, match="Memory is a number of bytes"):
        sc.attribute(run, 11, baseline="none", max_memory="plenty")


def test_parts_by_operators(run: sc.Run) -> None:
    """Straight to the logit: the map after the last layer. Along all paths: the operator from the part."""
    a, inside = sc.attribute(run, 11, baseline="none", flow=True), run.inside
    last = run.operator(f"layers.{len(inside.layers) - 1}", "logits", tokens=[11])
    for row in a.of("layer").itertuples():
        value = inside.values[row.name]
        assert row.contribution == pytest.approx(float(last @ value), abs=1e-11)
        assert row.all_paths == pytest.approx(float(run.operator(row.name, "logits", tokens=[11]) @ value), abs=1e-11)
        op = run.operator("embed", row.name, None)
        N = last.dense()[0].flatten()
        own = a.flow[(a.flow["name"] == row.name) & (a.flow["path"] == "direct")]["contribution"].tolist()
        expected = [float(N @ op.block(t).output) for t in range(LENGTH)] + [float(N @ op.bias)]
        assert own == pytest.approx(expected, abs=1e-11)


def test_heads_add_up_to_their_attention(run: sc.Run) -> None:
    a = sc.attribute(run, 11, baseline="none")
    heads, layers = a.of("head"), a.of("layer").set_index("name")
    count = run.lm.model.config.num_attention_heads
    assert len(heads[heads["head"].notna()]) == count * len(run.inside.layers)
    for i in range(len(run.inside.layers)):
        for column in ("contribution", "all_paths"):
            own = heads[heads["layer"] == i][column].sum()
            assert own == pytest.approx(layers.loc[f"layers.{i}.attn", column], abs=1e-11)
    head = run.inside.value("layers.1.attn.heads.1")
    last = run.operator(f"layers.{len(run.inside.layers) - 1}", "logits", tokens=[11])
    found = heads.set_index("name").loc["layers.1.attn.heads.1", "contribution"]
    assert found == pytest.approx(float(last @ head), abs=1e-11)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "opt", "bert", "mamba", "rwkv", "blt", "roc_bert"])
def test_constants_by_module_are_the_bias(family: str) -> None:
    """Each module's constant alone: the bias of a network in which all others are zero."""
    run = frozen(family)
    a = sc.attribute(run, 11, baseline="none", parts=False)
    b = run.operator(target="logits", tokens=[11]).bias.item()
    assert a.constant == pytest.approx(b, abs=1e-12 * a.of("constant")["contribution"].abs().sum())
    assert len(a.of("constant"))
    names = dict(run.lm.model.named_modules())
    assert all(name in names for name in a.of("constant")["name"])


def test_a_bias_contributes_what_it_is_times_its_slope() -> None:
    """Of GPT-2's last block, from its weights: the output projection's bias goes straight to the norm."""
    run = frozen("gpt2")
    a = sc.attribute(run, 11, baseline="none", parts=False).of("constant").set_index("name")["contribution"]
    count = len(run.inside.layers)
    last = run.operator(f"layers.{count - 1}", "logits", tokens=[11]).block(-1)
    bias = run.lm.model.transformer.h[count - 1].mlp.c_proj.bias.detach()
    assert a[f"transformer.h.{count - 1}.mlp.c_proj"] == pytest.approx(float(last @ bias), abs=1e-12)


def test_a_contribution_is_that_of_its_block(run: sc.Run) -> None:
    op, a = run.operator(target="logits", tokens=[11]), sc.attribute(run, 11, baseline="none")
    expected = [float(op.block(t).output) for t in range(LENGTH)]
    assert a.of("token")["contribution"].tolist() == pytest.approx(expected, abs=1e-11)
    assert list(a.table.columns) == ["kind", "name", "position", "layer", "head", "contribution", "all_paths"]


def test_sums_of_lower_precisions() -> None:
    run = frozen("llama", dtype=torch.float32)
    a = sc.attribute(run, flow=True)
    assert a.total == pytest.approx(a.logit, rel=1e-4)
    assert a.direct == pytest.approx(a.logit, rel=1e-4)
    half = frozen("gpt2", dtype=torch.bfloat16, precision="float32")
    b = sc.attribute(half, flow=True)
    assert b.direct == pytest.approx(b.logit, abs=0.1 * b.table["contribution"].abs().sum())


def test_a_sum_that_is_not_the_logit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = frozen("gpt2")
    monkeypatch.setattr(terms, "_by_module", lambda *arguments: [])
    with pytest.raises(NotExact, match="add up to the logit"):
        sc.attribute(run, 11, baseline="none")


def test_contributions_to_a_logit_of_zero() -> None:
    lm = model_of("llama", "sdpa")
    with torch.no_grad():
        lm.head.weight.zero_()
    a = sc.attribute(sc.freeze(lm, prompt()))
    assert a.logit == a.total == a.direct == 0
    assert np.isnan(a.share(1.0))
    said = sc.explain(lm, prompt()).to_dict()
    assert said["tokens"][0]["share"] is None
    json.dumps(said, allow_nan=False)


def test_contributions_survive_a_capped_and_scaled_logit() -> None:
    """Gemma caps its logits: the held ratio keeps the sum exact."""
    lm = model_of("gemma3_text", "sdpa", final_logit_softcapping=2.0)
    a = sc.attribute(sc.freeze(lm, prompt()))
    assert a.logit <= 2.0
    assert abs(a.total - a.logit) <= 1e-12
    assert abs(a.direct - a.logit) <= 1e-12


def test_no_such_target(lm: sc.LM) -> None:
    with pytest.raises(BadPrompt, match="'Silver'"):
        sc.attribute(sc.freeze(lm, "In Marin people cross the"), "Silver")


def test_a_token_against_itself_is_refused() -> None:
    run = frozen("llama")
    with pytest.raises(BadArgument, match="twice"):
        sc.attribute(run, 5, 5)
    assert sc.attribute(run, "#5", parts=False).target == "5"


def test_what_does_not_take_part_is_left_alone() -> None:
    """A run is as it was; the same call gives the same table."""
    run = frozen("llama")
    before = run.operator().dense()
    one, two = (sc.attribute(run, 5, 90, flow=True) for _ in range(2))
    pd.testing.assert_frame_equal(one.table, two.table)
    pd.testing.assert_frame_equal(one.flow, two.flow)
    assert torch.equal(run.operator().dense(), before)


@pytest.mark.parametrize("convention", ["gate", "secant"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_does_not_matter(mode: type, convention: str) -> None:
    expected = sc.attribute(frozen("gpt2"), 5, convention=convention, flow=True, references=2)
    with mode():
        found = sc.attribute(sc.freeze(shared("gpt2"), prompt()), 5, convention=convention, flow=True, references=2)
    pd.testing.assert_frame_equal(found.table, expected.table)
    pd.testing.assert_frame_equal(found.flow, expected.flow)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_flow_is_the_same_by_tokens_and_by_names(family: str) -> None:
    """Long prompts take a product with Jᵀ for each name, in place of one with J for each token."""
    run = frozen(family, "sdpa")
    e = torch.zeros_like(run.logits[-1])
    e[5] = 1
    x = run.network.input.detach()
    with torch.enable_grad():
        writers = terms.Parts.of(run.inside, -1, e)
        graph = run.network.graph(run.network.input, torch.cat([t.flatten() for t in writers.tensors]))
        pushed, pulled = writers._pushed(graph, x), writers._pulled_back(graph, x)
    assert list(pushed) == list(pulled)
    for key, values in pushed.items():
        assert pulled[key] == pytest.approx(values, rel=1e-10, abs=1e-12)


# ------------------------------------------------------------------------------------------------ origins

GIVEN = torch.randn(LENGTH, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


ORIGINS = {"mean": "mean", "given": GIVEN, "given for all": GIVEN[0]}


@pytest.mark.parametrize(
    ("family", "convention", "origin"),
    [
        pytest.param("llama", convention, "given", marks=[] if convention in ("gate", "halves") else pytest.mark.slow)
        for convention in CONVENTIONS
    ]
    + [(family, "secant", origin) for family, origin in (("gpt2", "mean"), ("gemma3_text", "given for all"))],
)
def test_sums_are_exact_from_any_origin(family: str, convention: str, origin: str) -> None:
    """y = J (x - x₀) + (J x₀ + b), in every block, in every part and head, and in their crossing."""
    run = frozen(family, convention=convention)
    a = sc.attribute(run, 11, baseline="none", flow=True, origin=ORIGINS[origin], references=1)
    close = {"abs": 1e-12, "rel": 0}
    assert (a.total, a.direct) == pytest.approx((a.logit, a.logit), **close)
    crossed(a, close)
    op = run.operator(target="logits", tokens=[11])
    x0 = origin_of(run, ORIGINS[origin]).embeddings
    expected = [float(op.block(t) @ (run.input[t] - x0[t])) for t in range(LENGTH)]
    assert a.of("token")["contribution"].tolist() == pytest.approx(expected, **close)
    assert a.constants == pytest.approx({"origin": float(op @ x0), "constants": float(op.bias)}, **close)
    plain = sc.attribute(run, 11, baseline="none", origin="zero", references=1)
    rest, others = (each.table[~each.table["kind"].isin(["token"])] for each in (a, plain))
    pd.testing.assert_frame_equal(rest[rest["name"] != "origin"].reset_index(drop=True), others.reset_index(drop=True))
    assert a.flow is not None
    last = run.operator(f"layers.{len(run.inside.layers) - 1}", "logits", tokens=[11])
    for row in a.of("layer").itertuples():  # what a part adds in the frozen network at the origin
        part = run.operator("embed", row.name, None)
        value = (part @ x0 + part.bias).view(LENGTH, -1)
        own = a.flow[(a.flow["name"] == row.name) & (a.flow["path"] == "direct") & a.flow["position"].isna()]
        assert own["contribution"].tolist() == pytest.approx([float(last @ value)], abs=1e-11)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_mean_origin_is_the_vocabularys_mean_embedding(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma scales its embeddings; some tokens at a time give the same."""
    run = frozen(family)
    scale = getattr(run.lm.model.get_input_embeddings(), "embed_scale", torch.tensor(1.0)).double()
    expected = (run.lm.embedding.detach().mean(0) * scale).expand(LENGTH, -1)
    torch.testing.assert_close(origin_of(run, "mean").embeddings, expected, rtol=0, atol=1e-13)
    monkeypatch.setattr("secant.analyses.origins.CHUNK", 100)
    torch.testing.assert_close(origin_of(run, "mean").embeddings, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_contributions_from_random_prompts_sum_to_the_model_s_own_difference(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens make up the difference between the prompt's logit and those of the references, in the model itself."""
    run, target = sc.freeze(model_of(family), prompt()), 11
    monkeypatch.setattr(module, "REFERENCES", 4)
    a = sc.attribute(run, target, parts=False)
    assert (a.convention, a.origin, a.references) == ("secant", "reference", 4)
    own = []
    for seed in range(4):
        r = reference(run.lm, run.input, CONVENTIONS["secant"], None, [seed])
        with running(run.lm, run.lm.dtype):
            logits = run.lm.forward(run.ids, r)[0, -1].detach()
        own.append(float(logits[target] - logits.mean()))
    size = a.table["contribution"].abs().sum()
    assert a.constants == {"reference": pytest.approx(np.mean(own), abs=1e-12 * size)}
    assert a.of("token")["contribution"].sum() == pytest.approx(a.logit - np.mean(own), abs=1e-12 * size)


@pytest.mark.parametrize(
    ("family", "together", "count"),
    [("llama", 3, 3), ("gpt2", 2, 3), ("mixtral", 2, 2), ("mamba", 2, 2), ("bloom", 1, 2), ("gemma3n_text", 1, 2)],
)  # fmt: skip
def test_contributions_are_the_mean_over_references(
    family: str, together: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many references as fit share a batch. Bloom folds it into its heads, Gemma 3n puts streams before it."""
    monkeypatch.setattr("secant.linearize.network.TOGETHER", together * LENGTH)
    runs = [sc.freeze(shared(family), prompt(), convention="secant", seed=seed) for seed in range(count)]
    copies = [own.network.recording.copies for own in runs[0].references(None, count)]
    assert copies == [min(together, count - i) for i in range(0, count, together)]
    whole = sc.attribute(runs[0], 11, flow=True, references=count)
    singles = [sc.attribute(run, 11, flow=True, references=1) for run in runs]
    keys = ["kind", "name", "position", "layer", "head"]
    for table, frames in ((whole.table, [a.table for a in singles]), (whole.flow, [a.flow for a in singles])):
        assert table is not None
        values = [name for name in table.columns if table[name].dtype == float]
        keys = [name for name in table.columns if name not in values]
        expected = pd.concat(frames).groupby(keys, sort=False, dropna=False)[values].mean()
        found = table.set_index(keys)[values]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert whole.total == pytest.approx(whole.logit, abs=1e-12)
    assert whole.direct == pytest.approx(whole.logit, abs=1e-12)
    crossed(whole, {"abs": 1e-11, "rel": 0})


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_in_half_precision(family: str) -> None:
    """Mamba's stream and logits are in float32, whatever the type of its weights."""
    run = frozen(family, dtype=torch.bfloat16)
    a = sc.attribute(run, 11, flow=True)
    size = a.table["contribution"].abs().sum()
    assert a.total == pytest.approx(a.logit, abs=0.05 * size)
    assert a.direct == pytest.approx(a.logit, abs=0.05 * size)
    lens = sc.lens(run, 11)
    own = run.logits[-1].double()
    assert lens.at()["logit"].iloc[-1] == pytest.approx((own[11] - own.mean()).item(), abs=0.05)
    sc.faithfulness(run, 11, methods=("gradient x input", "integrated gradients"))


def test_references_are_of_conventions_that_have_them() -> None:
    run = frozen("llama", convention="secant")
    with pytest.raises(BadArgument, match="at least one reference"):
        sc.attribute(run, references=0)
    assert sc.attribute(run, 11, convention="half", parts=False).references == 0


def test_a_chosen_convention_is_that_of_contributions() -> None:
    lm = model_of("llama")
    for given, label in ((None, "secant"), ("gate", "gate"), ("paper", "gate"), ("half", "half")):
        run = sc.freeze(lm, prompt(), convention=given)
        assert run.certificate.convention == ("gate" if given is None else label)
        assert sc.attribute(run, parts=False).convention == label
        assert run.under() is run.under()
        assert run.next().chosen == run.chosen
    assert run.under("half") is run
    assert run.under("up").certificate.convention == "up"


def test_the_reference_as_origin() -> None:
    """The convention's reference. A random one shares the prompt's first token, which contributes 0."""
    run = frozen("llama", convention="secant")
    recording = run.network.recording
    found = reference(run.lm, run.input, CONVENTIONS["secant"], recording.state, recording.seeds)
    torch.testing.assert_close(origin_of(run, "reference").embeddings, found, rtol=0, atol=0)
    a = sc.attribute(run, 11, baseline="none", flow=True, references=1)
    first, *others = a.of("token")["contribution"]
    assert first == 0
    assert all(others)
    assert a.total == pytest.approx(a.logit, abs=1e-12)
    crossed(a, {"abs": 1e-12, "rel": 0})
    zero = frozen("llama", convention="halves")
    assert not origin_of(zero, "reference").embeddings.any()
    with pytest.raises(BadArgument, match="only in conventions with secants; got the convention gate"):
        sc.attribute(frozen("llama"), origin="reference")


def test_the_origin_in_lower_precisions() -> None:
    run = frozen("gpt2", dtype=torch.bfloat16, precision="float32")
    a = sc.attribute(run, flow=True, origin="mean")
    assert a.total == pytest.approx(a.logit, abs=0.1 * a.table["contribution"].abs().sum())
    with torch.inference_mode():
        b = sc.attribute(run, flow=True, origin=GIVEN.float())
    assert b.direct == pytest.approx(b.logit, abs=0.1 * b.table["contribution"].abs().sum())


def test_an_origin_that_is_none() -> None:
    run = frozen("llama")
    for wrong, said in (
        ("nowhere", "An origin is one of zero, mean, reference; got 'nowhere'"),
        (GIVEN[:3], "got 3 x 32"),
        (torch.tensor(1.0), "got a number"),
        (GIVEN * torch.nan, "finite"),
        (GIVEN.long(), "finite"),
    ):
        with pytest.raises(BadArgument, match=said):
            sc.attribute(run, origin=wrong)  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match="one embedding, used for all tokens"):
        sc.follow(run, 2, origin=GIVEN)
    with pytest.raises(BadArgument, match="An origin is one of"):
        sc.explain(run.lm, prompt(), origin="nowhere")


def test_what_is_said_of_the_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero, the default, is not mentioned. Constants of modules share one line; tables have them all."""
    run = frozen("gpt2")
    plain, moved = sc.attribute(run, 11, baseline="none"), sc.attribute(run, 11, origin="mean")
    assert (plain.origin, plain.to_dict()["origin"]) == ("zero", "zero")
    assert (moved.origin, moved.to_dict()["origin"]) == ("mean", "mean")
    assert "origin" not in plain.view().facts
    assert list(plain.constants) == ["constants"]
    assert moved.view().facts["origin"] == "contributions are measured from the vocabulary's mean embedding"
    count = len(plain.of("constant"))
    assert count > 10
    assert len(moved.of("constant")) == count + 1
    for a, expected in ((plain, []), (moved, ["origin"])):
        lines = [getattr(line[1], "value", line[1]) for line in a.view().grids[0].rows]
        assert lines[LENGTH:] == [*expected, f"constants of {count} modules"]


def test_an_explanation_from_an_origin() -> None:
    """Its contributions and norms, and those of its evidence and of its steps."""
    lm = shared("llama")
    e = sc.explain(lm, prompt(), k=1, origin="mean", steps=2, convention="half")
    run = sc.freeze(lm, prompt(), convention="half")
    a, moved = sc.attribute(run, origin="mean"), run.input - origin_of(run, "mean").embeddings
    assert e.to_pandas()["contribution"].tolist() == a.of("token")["contribution"].tolist()
    op = run.operator()
    expected = [float((op.block(t) @ moved[t]).norm()) for t in range(LENGTH)]
    assert e.to_pandas()["norm"].tolist() == pytest.approx(expected, rel=1e-12)
    assert e.about()["origin"] == "mean"
    assert "mean embedding" in e.view().facts["origin"]
    assert [row[1] for row in e.view().grids[0].rows][LENGTH:] == ["origin", "constants"]
    assert {each.origin for each in (*e.evidence().versus, e.evidence().attribution)} == {"mean"}
    assert e.steps is not None
    assert {step.attribution.origin for step in e.steps.steps} == {"mean"}
    for step in e.steps.steps:
        assert step.attribution.total == pytest.approx(step.attribution.logit, abs=1e-12)
