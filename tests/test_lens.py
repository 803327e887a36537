"""The lens against readouts by hand and contributions by operators; attention sinks; how far conventions agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import torch
from families import LENGTH, frozen, model_of, prompt

import secant as sc
from secant.analyses import case, sensitivity
from secant.analyses.case import Case
from secant.analyses.origins import origin_of
from secant.analyses.sinks import received, sink_columns
from secant.errors import BadArgument, NoPoint, NotExact
from secant.linearize.network import running
from secant.operators import cost

FAMILIES = ("llama", "gpt2", "gemma3_text", "mamba", "bloom")


@pytest.fixture(scope="module", params=FAMILIES)
def run(request: pytest.FixtureRequest) -> sc.Run:
    return frozen(request.param)


@pytest.mark.parametrize("origin", ["zero", "mean"])
def test_terms_are_blocks_of_the_operator_through_the_readout(run: sc.Run, origin: str) -> None:
    found = sc.lens(run, 11, position=3, parts=True, baseline="none", origin=origin)
    moved = run.input - origin_of(run, origin).embeddings
    for name in ("layers.0", "layers.1", *(f"layers.1.{part}" for part in run.inside.parts(1))):
        op = run.operator("embed", name, 3, readout="logits", tokens=[11])
        part = name.split(".")[2] if name.count(".") == 2 else "residual"
        terms = found.terms[(found.terms["layer"] == int(name.split(".")[1])) & (found.terms["part"] == part)]
        close = {"abs": 1e-12 * terms["contribution"].abs().sum(), "rel": 0}
        expected = torch.einsum("td,td->t", op.dense()[0], moved).tolist()
        assert terms["contribution"].tolist()[:-1] == pytest.approx(expected, **close)
        assert terms["contribution"].sum() == pytest.approx(float(op.output), **close)
        assert terms["position"].tolist()[:-1] == list(range(LENGTH))


def test_the_last_depth_is_the_model(run: sc.Run) -> None:
    found = sc.lens(run, position=2, top=3)
    last = found.table[found.table["layer"] == len(run.inside.layers) - 1]
    logits = run.logits
    target = int(logits[2].argmax())
    assert found.target == run.lm.text(target)
    assert last["probability"].tolist() == pytest.approx(logits.softmax(1)[:, target].tolist(), abs=1e-13)
    assert last["top"].tolist() == [run.lm.text(int(i)) for i in logits.argmax(1)]
    assert last["logit"].tolist() == pytest.approx((logits[:, target] - logits.mean(1)).tolist(), abs=1e-12)
    assert last["rank"].tolist() == (logits > logits[:, [target]]).sum(1).tolist()
    words = found.words[found.words["layer"] == len(run.inside.layers) - 1]
    assert words["id"].tolist() == logits[2].sort(descending=True, stable=True).indices[:3].tolist()


def test_positions_are_split_alike_together_and_alone() -> None:
    run = frozen("llama")
    every = sc.lens(run, 11, position=None, parts=True, top=2)
    assert every.positions == tuple(range(LENGTH))
    for at in range(LENGTH):
        alone = sc.lens(run, 11, position=at, parts=True, top=2)
        pd.testing.assert_frame_equal(alone.table, every.table)
        for own, of_all in ((alone.words, every.words), (alone.terms, every.terms)):
            found = of_all[of_all["at"] == at].reset_index(drop=True)
            pd.testing.assert_frame_equal(own, found, rtol=0, atol=1e-13)
        pd.testing.assert_frame_equal(alone.contributions("mlp"), every.contributions("mlp", at), atol=1e-13)
        pd.testing.assert_frame_equal(alone.at(), every.at(position=at - LENGTH))
    first = sc.lens(run, 11, position=[2, -1, 2])
    assert first.positions == (2, LENGTH - 1)
    with pytest.raises(BadArgument, match="contributions at positions 2, "):
        first.contributions(position=0)
    with pytest.raises(BadArgument, match="of the prompt's tokens"):
        first.at(position=LENGTH)


def test_depths_are_read_out_by_the_norm_and_the_head() -> None:
    """By hand, through the modules of a Llama: the hidden state after each layer, the final norm, the head."""
    run = frozen("llama")
    model = run.lm.model
    with running(run.lm, run.lm.dtype), torch.no_grad():
        hidden = model(torch.tensor([run.ids]), output_hidden_states=True).hidden_states
        by_hand = [model.lm_head(model.model.norm(h))[0] for h in hidden[1:-1]]
    table = sc.lens(run, 11).table
    for layer, logits in enumerate(by_hand):
        own = table[table["layer"] == layer]
        assert own["probability"].tolist() == pytest.approx(logits.softmax(1)[:, 11].tolist(), abs=1e-13)
        assert own["top"].tolist() == [run.lm.text(int(i)) for i in logits.argmax(1)]


def test_a_wrong_slope_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from secant.analyses import lens as module

    own = module._readouts

    def bent(*a: Any) -> Iterator[Any]:
        return ((n, y, [([1.01 * v for v in values], c) for values, c in s]) for n, y, s in own(*a))

    monkeypatch.setattr(module, "_readouts", bent)
    with pytest.raises(NotExact, match="must sum to its logit"):
        sc.lens(frozen("llama"))


def test_what_the_lens_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    run = frozen("llama")
    with pytest.raises(BadArgument, match="A depth has at least one"):
        sc.lens(run, top=0)
    with pytest.raises(BadArgument, match="A baseline is one of"):
        sc.lens(run, baseline="mean")
    from secant.linearize import points as module

    monkeypatch.setattr(module, "relative", lambda one, other: 1.0)
    with pytest.raises(NoPoint, match="right after the last layer"):
        sc.lens(run)


class Shifted(torch.nn.Module):
    """A final norm of each position together with the one before it."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm.eval()
        self.eval()

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.norm(h + torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1) / 2)


class Placed(Shifted):
    """A final norm that depends on the place of a token, but not on other tokens."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.norm(h) * torch.linspace(1, 2, h.shape[1], dtype=h.dtype)[:, None]


def with_norm(kind: type[Shifted]) -> sc.Run:
    lm = model_of("llama")
    lm.model.model.norm = kind(lm.model.model.norm)
    return sc.freeze(lm, prompt())


@pytest.mark.parametrize("position", [-1, -2, 3, 0])
def test_readouts_that_mix_positions_are_refused(position: int) -> None:
    """Also where a row of the batch comes after the row that it comes after in the model."""
    run = with_norm(Shifted)
    with pytest.raises(NoPoint, match="mix positions"):
        sc.lens(run, position=position)
    with pytest.raises(NoPoint, match="mix positions"):
        sc.layers(run, 1, position=position)


@pytest.mark.parametrize("position", [-1, 3])
def test_readouts_that_depend_on_the_place_are_at_their_own_place(position: int) -> None:
    run = with_norm(Placed)
    terms = sc.lens(run, 11, position=position, baseline="none", origin="zero").terms
    streams = [d for d in sc.layers(run, 1, position=position).depths if (d.part, d.span) == ("residual", "cumulative")]
    for i, depth in enumerate(streams):
        logit = run.operator(target=f"layers.{i}", readout="logits", tokens=[11], position=position)
        own = (logit.dense()[0] * run.input).sum(1)
        found = terms[(terms["layer"] == i) & terms["position"].notna()]["contribution"]
        torch.testing.assert_close(torch.tensor(found.to_numpy()), own.detach())
        norm = run.operator(target=f"layers.{i}", readout="norm", position=position)
        torch.testing.assert_close(depth.whole.S, sc.svd(norm, k=1).S)


@pytest.mark.parametrize("family", ["gpt_bigcode", "gemma3n_text"])
def test_what_takes_one_sequence_is_read_out_once_for_all_positions(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secant.linearize import points as module

    run, own, single = frozen(family), module.Readout.of, list[int]()

    def counted(network: Any, last: Any, h: torch.Tensor, head: bool) -> Any:
        single.append(len(h))
        return own(network, last, h, head)

    monkeypatch.setattr(module.Readout, "of", counted)
    layers = len(run.inside.layers)
    assert len(sc.lens(run, position=None).positions) == LENGTH
    assert single.count(1) == 2 * layers  # their splits, and their logits at all positions


# ------------------------------------------------------------------------------------------------ sinks


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_received_attention_is_the_mean_of_the_patterns(attention: str) -> None:
    run = frozen("llama", attention)
    lm = model_of("llama", "eager")
    with running(lm, lm.dtype), torch.no_grad():
        patterns = lm.model(torch.tensor([run.ids]), output_attentions=True).attentions
    A = torch.stack([A[0] for A in patterns]).mean((0, 1))
    expected = [float(A[t + 1 :, t].mean()) for t in range(LENGTH - 1)]
    found = received(run)
    assert found is not None
    assert found.tolist()[:-1] == pytest.approx(expected, abs=1e-12)
    assert found[-1].isnan()


def test_why_a_token_is_a_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    run = frozen("llama")
    monkeypatch.setattr("secant.analyses.sinks.MUCH", 0.0)
    assert sink_columns(run)[1] == ["first, received", *["received"] * (LENGTH - 2), ""]
    assert received(frozen("mamba")) is None
    assert sink_columns(frozen("mamba")) == ([None] * LENGTH, ["first", *[""] * (LENGTH - 1)])


# ------------------------------------------------------------------------------------------------ sensitivity


def test_conventions_beside_each_other() -> None:
    run = frozen("llama")
    found = sc.sensitivity(run, 11, convention="half", conventions=("gate", "up"))
    assert list(found.attributions) == ["half", "gate", "up"]
    for label in found.attributions:
        own = sc.attribute(run, 11, convention=label, parts=False)
        assert found.contributions(label) == own.of("token")["contribution"].tolist()
    half, gate, up = (found.contributions(label) for label in found.attributions)
    agreement = found.agreement().set_index("convention")
    assert agreement.loc["half", ["signs", "ranks", "largest"]].tolist() == [1, 1, 0]
    assert agreement.loc["gate", "largest"] == max(abs(a - b) for a, b in zip(half, gate, strict=True))
    assert agreement.loc["up", "signs"] == sum((a > 0) == (b > 0) for a, b in zip(half, up, strict=True)) / LENGTH
    ranks = pd.Series(half).corr(pd.Series(gate), method="spearman")
    assert agreement.loc["gate", "ranks"] == pytest.approx(ranks)
    assert "half compared with gate, up: signs agree for" in found.line


@pytest.mark.parametrize("position", [-1, 2])
def test_deletion_is_the_shorter_prompt(position: int) -> None:
    run = frozen("llama")
    found = sc.sensitivity(run, 11, position=position, baseline="none", conventions=())
    assert found.effects is not None
    at = position % LENGTH
    for t in range(LENGTH):
        row = at - 1 if t <= at else at
        with running(run.lm, run.lm.dtype):
            logits = run.lm.logits([*run.ids[:t], *run.ids[t + 1 :]])
        assert found.effects[t] == pytest.approx(float(run.logits[at, 11] - logits[row, 11]), abs=1e-12)
    assert sc.sensitivity(run, conventions=(), deletion=False).effects is None


def test_an_effect_of_the_only_token_is_missing() -> None:
    lm = model_of("llama")
    found = sc.sensitivity(sc.freeze(lm, [5]), conventions=())
    assert found.effects is not None
    assert found.effects[0] != found.effects[0]
    assert found.tables()["deletion"]["effect"].isna().all()
    first = sc.sensitivity(sc.freeze(lm, prompt()), position=0, conventions=()).effects
    assert first is not None
    assert first[0] != first[0]
    assert first[1] == pytest.approx(0, abs=1e-12)


def test_each_convention_of_a_sensitivity_is_its_own_attribution() -> None:
    """Also the run's own, and those whose errors are not measured by themselves."""
    run = sc.freeze(model_of("llama"), prompt())  # of no convention that was chosen
    found = sc.sensitivity(run, conventions=("gate", "up", "half"), deletion=False)
    assert list(found.attributions) == ["secant", "gate", "up", "half"]
    for label, own in found.attributions.items():
        again = sc.attribute(sc.freeze(run.lm, run.ids, convention=label), parts=False)
        pd.testing.assert_frame_equal(own.table, again.table, rtol=1e-11)
        assert own.convention == again.convention == label
        assert own.total == pytest.approx(own.logit, rel=1e-12)


def test_views_leave_sinks_out_and_say_so() -> None:
    """Their rows and columns go, and nothing else; tables and sums keep them."""
    run = frozen("llama")
    a, found = sc.attribute(run), sc.lens(run)
    beside = sc.sensitivity(run, conventions=("up",), deletion=False)
    gone = sc.sinks(run)
    assert gone[0] == 0
    for result, count in ((a, "rows"), (found, "columns"), (beside, "rows")):
        before, after = (getattr(result.without(left).view().grids[0], count) for left in ((), gone))
        assert len(before) - len(after) == len(gone)
        note = "Left out: " + ", ".join(f"{run.tokens[t]} at {t}" for t in gone)
        assert any(note in said for said in result.without(gone).view().notes)
        assert not any("Left out" in said for said in result.view().notes)
        for name, table in result.tables().items():
            pd.testing.assert_frame_equal(table, result.without(gone).tables()[name])
    assert a.without(gone).total == a.total


def test_long_prompts_are_deleted_from_where_it_costs_less_than_the_spectra(monkeypatch: pytest.MonkeyPatch) -> None:
    run = frozen("llama")
    assert LENGTH <= sensitivity.DELETED
    assert Case(run).sensitivity.effects is not None
    monkeypatch.setattr(case, "DELETED", 1)
    assert Case(run).sensitivity.effects is not None  # as many passes as tokens, and J has more rows than that
    monkeypatch.setattr(case, "model_plan", lambda op, count: cost.model_plan(op, 10**6))
    assert Case(run).sensitivity.effects is None
