"""A prompt is computed once: J is formed, directions are decoded and the model is replayed only as often as needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from families import model_of, prompt
from torch import Tensor

import secant as sc
from secant.analyses import case as cases
from secant.analyses.case import Case
from secant.linearize import certificate as certificates, network, run as runs
from secant.linearize.conventions import CONVENTIONS, convention_named
from secant.linearize.network import Recording
from secant.linearize.replay import Replay, Rerun
from secant.linearize.tape import Record
from secant.operators.operator import Matrix, Operator
from secant.stream.decode import Decodings
from secant.stream.scores import Scores, best, is_tied, ranks_of
from secant.studies.analyses import ANALYSES

PROMPT = "The bridge out of Marin is the"
SAMPLES = 2 * 256
"""Random directions of a null, on both sides."""

FROZEN = Counter(replays=3, records=1)
"""What freezing takes: the network at the prompt and at zero, one replay that checks it, and the recorded pass."""

AT_REFERENCES = 2
"""Replays at the references of the conventions `halves` and `secant`."""

INSIDE = Counter(replays=2, reruns=1)
"""What the points take: at the prompt and at zero, and the model's own."""

ONCE = Counter(replays=1)
"""The points of a network and its contributions have the replay at the prompt in common."""

REFERENCES = 1
"""In tests, contributions are averaged over one reference."""

CONTRIBUTIONS = Counter(replays=3 + 2 * REFERENCES, records=REFERENCES)
"""What contributions from random references take: one run is certified; each is recorded, replayed at its reference,
and replayed with the constants that its steps add."""

BESIDE = Counter(replays=3, records=1)
"""What conventions beside the first take: one recorded pass for those that share gates differently, and the constants
of three."""

LENS = INSIDE + Counter(replays=2, records=2)
"""What the lens takes: the points, the readout of all depths and positions, and that of all depths at one position,
which is replayed at them and at zero."""

PARTS = Counter(replays=2 * REFERENCES, reruns=1)
"""What parts take: the points of each run at zero and the model's own, and the network cut open at its parts."""

WRITES = Counter(replays=2, records=2)
"""What the top tokens of all depths, and of all heads, take: one readout of all of them, at them."""

DEPTHS = Counter(replays=3, records=1)
"""What all layers take: one replay with the streams between them at zero, and the final norm at theirs."""


STEPS = {
    cases: (
        "decomposed",
        "attribute",
        "imaged",
        "layers",
        "null",
        "token_terms",
        "depth_words",
        "head_words",
        "patterns",
        "faithfulness",
    ),
    runs: ("ordinary_output",),
}
"""The functions by which a case and its run compute each thing that they keep."""


class Counts:
    """What was done: replays, recorded passes, and passes of the model itself; each formation of J; each direction that
    was scored, by side; and each thing that a case and its run keep.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.passes = Counter[str]()
        self.formed = 0
        self.scored: list[tuple[str, bytes]] = []
        self.computed = Counter[str]()
        for module, names in STEPS.items():
            for name in names:
                patch.setattr(module, name, self._computing(name, getattr(module, name)))
        for kind, name in ((Replay, "replays"), (Record, "records"), (Rerun, "reruns")):
            patch.setattr(kind, "enter", self._entering(kind.enter, name))
        rows, score = Operator.rows, Scores.__call__

        def forming(op: Operator, chunk: int) -> Iterator[tuple[int, Tensor]]:
            self.formed += op.about.get("target") == "norm" and not isinstance(op.products, Matrix)
            yield from rows(op, chunk)

        def scoring(scores: Scores, directions: Tensor) -> tuple[Tensor, Tensor]:
            self.scored += [(scores.side, d.contiguous().numpy().tobytes()) for d in directions.T]
            return score(scores, directions)

        patch.setattr(Operator, "rows", forming)
        patch.setattr(Scores, "__call__", scoring)

    def _entering(self, enter: Any, name: str) -> Any:
        def counted(mode: Any, *args: Any) -> Any:
            self.passes[name] += 1
            return enter(mode, *args)

        return counted

    def _computing(self, name: str, function: Any) -> Any:
        def counted(*args: Any, **how: Any) -> Any:
            said = {key: value for key, value in how.items() if key != "progress"}
            self.computed[f"{name} of {[*map(self._named, args)]}, {said}"] += 1
            return function(*args, **how)

        return counted

    @staticmethod
    def _named(value: Any) -> str:
        """An argument, told from others of its class by its prompt and convention."""
        if isinstance(value, Operator):
            return f"{value.about['convention']} of {value.about['tokens']}"
        if isinstance(value, sc.Run):
            return f"{value.certificate.convention} of {value.tokens}"
        if isinstance(value, Recording):
            return f"{value.convention} of {value.ids}"
        return repr(value) if isinstance(value, int | str | None) else type(value).__name__

    def clear(self) -> None:
        self.passes.clear()
        self.computed.clear()
        self.formed = 0
        self.scored.clear()

    def assert_each_direction_once(self) -> None:
        assert len(set(self.scored)) == len(self.scored)

    def assert_each_step_once(self, *steps: str) -> None:
        """That these were computed, and none of all twice."""
        assert {said.partition(" ")[0] for said in self.computed} == set(steps)
        assert {said: count for said, count in self.computed.items() if count > 1} == {}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return Counts(monkeypatch)


@pytest.fixture(scope="module")
def four() -> sc.LM:
    return model_of("llama", num_hidden_layers=4)


@pytest.fixture(scope="module")
def seven() -> sc.LM:
    return model_of("llama", num_hidden_layers=7)


def given(lm: sc.LM) -> str | Sequence[int]:
    return prompt(6) if lm.tokenizer is None else PROMPT


def shown(e: sc.Explanation, folder: Path) -> None:
    """All that `secant explain --out` writes and prints, with the page."""
    e.save(folder)
    evidence = e.evidence()
    evidence.save(folder)
    e.report(folder / "report.html", evidence)
    e.to_dict()
    e.show()
    if e.layers is not None:
        e.layers.show()


# ------------------------------------------------------------------------------------------------ counted


@pytest.mark.parametrize("which", ["four", pytest.param("seven", marks=pytest.mark.slow)])
def test_explain_with_all_that_it_shows(
    which: str, counts: Counts, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The same replays for four layers as for seven."""
    lm = request.getfixturevalue(which)
    e = sc.explain(lm, given(lm), k=3, layers=True)
    shown(e, tmp_path)
    e.evidence()
    assert counts.formed == 1
    counts.assert_each_step_once(*(name for names in STEPS.values() for name in names))
    assert counts.passes == FROZEN + CONTRIBUTIONS + BESIDE + LENS - ONCE + PARTS + WRITES + DEPTHS
    counts.assert_each_direction_once()
    T, depths = len(e.run.ids), len(e.layers.depths)
    of_depths = 2 * T * sum(1 + len(e.run.inside.parts(i)) for i in range(len(e.run.inside.layers)))
    of_heads = 2 * sum(len(e.run.inside.heads(name)) for name in e.run.inside.points)
    largest = 8 + 8
    assert len(counts.scored) == SAMPLES + T + 2 * T * 3 + depths * (2 * T + 1) * 3 + of_depths + of_heads + largest


@pytest.mark.slow
def test_replays_do_not_grow_with_what_is_shown(
    lm: sc.LM, counts: Counts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = sc.explain(lm, PROMPT, k=3, top=20)
    assert counts.passes == FROZEN + CONTRIBUTIONS + BESIDE + LENS - ONCE
    monkeypatch.setattr(cases, "ALTERNATIVES", 9)
    counts.passes.clear()
    shown(e, tmp_path)
    assert counts.passes == PARTS + WRITES
    assert len(e.evidence().versus) == 9
    shown(e, tmp_path)
    assert counts.passes == PARTS + WRITES
    assert counts.formed == 1
    counts.assert_each_direction_once()


def test_only_what_is_shown_is_decoded(lm: sc.LM, counts: Counts) -> None:
    e = sc.explain(lm, PROMPT, k=3, layers=True)
    counts.clear()
    e.layers.show()
    streams = [d for d in e.layers.depths if (d.part, d.span) == ("residual", "cumulative")]
    assert len(counts.scored) == len(streams) * (len(e.run.ids) + 1)


@pytest.mark.slow
def test_a_study_of_everything(lm: sc.LM, four: sc.LM, counts: Counts, tmp_path: Path) -> None:
    sc.study([PROMPT], sc.LM(four.model, lm.tokenizer, "four"), out=tmp_path, analyses=[*ANALYSES], tensors=True)
    assert counts.formed == len(CONVENTIONS)
    counts.assert_each_step_once("decomposed", "attribute", "layers", "null", "ordinary_output")
    others = Counter({name: (len(CONVENTIONS) - 1) * count for name, count in FROZEN.items()})
    assert counts.passes == FROZEN + others + INSIDE + DEPTHS + Counter(replays=1 + AT_REFERENCES)
    counts.assert_each_direction_once()


def test_references_share_the_passes_of_a_batch(lm: sc.LM, counts: Counts) -> None:
    """However many: a recorded pass, one at the references, and replays with the constants and cut at the parts."""
    run = sc.freeze(lm, PROMPT, convention="secant")
    counts.passes.clear()
    assert sc.attribute(run, references=5).references == 5
    assert counts.passes == Counter(replays=3, records=1)


def test_a_batch_of_references_is_certified_itself(lm: sc.LM, counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run under another convention: the prompt is recorded once for its steps and once as a batch; three replays
    measure the errors, and the one at the references comes before them.
    """
    run, chosen = sc.freeze(lm, PROMPT), sc.freeze(lm, PROMPT, convention="secant")
    counts.passes.clear()
    found = sc.attribute(run, references=5, parts=False)
    assert counts.passes == Counter(replays=4, records=2)
    assert found.table.equals(sc.attribute(chosen, references=5, parts=False).table)
    (batch,) = run.references(None, 5)
    assert batch.certificate.convention == "secant"
    assert batch.certificate.affinity != run.certificate.affinity
    assert max(batch.certificate.affinity, batch.certificate.reconstruction, batch.certificate.readout) < 1e-12
    assert batch.chosen == run.under("secant").chosen == "secant"
    (batch,) = sc.freeze(lm, PROMPT, convention="gate").references("secant", 5)
    assert batch.under().certificate.convention == "secant"
    monkeypatch.setattr(certificates, "_errors", lambda network, seed: (0.0, 1e-3, 0.0))
    with pytest.raises(sc.SecantError, match="affinity"):
        sc.attribute(run, references=4)


def test_references_one_by_one_are_those_of_a_batch(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run under another convention; each has secants of its own."""
    run, chosen = sc.freeze(lm, PROMPT), sc.freeze(lm, PROMPT, convention="secant")
    whole = sc.attribute(run, references=2, parts=False)
    monkeypatch.setattr(network, "_batchable", lambda own: False)
    alone = sc.freeze(lm, PROMPT)
    for each in (alone, chosen):
        assert [own.network.recording.copies for own in each.references("secant", 2)] == [1, 1]
        found = sc.attribute(each, references=2, parts=False)
        assert found.table["contribution"].tolist() == pytest.approx(whole.table["contribution"].tolist(), abs=1e-9)


def test_each_convention_has_its_own_references(lm: sc.LM) -> None:
    run = sc.freeze(lm, PROMPT)
    labels = [c.label for c in map(convention_named, ("secant", "0.7+secant+frozen+random")) if c.varies]
    assert len(labels) == 2
    assert [run.references(label, 2)[0].certificate.convention for label in labels] == labels


def test_the_head_of_a_batch_continues_with_given_hidden_states(lm: sc.LM) -> None:
    """Otherwise the certificate of a batch could not measure its readout."""
    (batch,) = sc.freeze(lm, PROMPT).references(None, 3)
    own = batch.network.recording.values
    for norm in (own["norm"], own["norm"].flip(0)):
        made = batch.network.replay(torch.zeros_like(batch.network.input), norm=norm)["logits"]
        expected = own["logits"] if norm is own["norm"] else own["logits"].flip(0)
        torch.testing.assert_close(made, expected)


def test_a_batch_of_references_repeats_the_plain_pass_bit_for_bit(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    run, own = sc.freeze(lm, PROMPT), network.record

    def off(*args: Any, **kwargs: Any) -> Any:
        recording = own(*args, **kwargs)
        logits = recording.values["logits"]
        return replace(recording, values={**recording.values, "logits": logits * (1 + torch.finfo(logits.dtype).eps)})

    monkeypatch.setattr(network, "record", off)
    with pytest.raises(sc.NotExact, match="bit for bit"):
        sc.attribute(run, references=4)


def test_the_first_answer_takes_one_recorded_pass(lm: sc.LM, counts: Counts) -> None:
    """At one reference; what comes after it is certified by itself."""
    case = Case(sc.freeze(lm, PROMPT))
    counts.passes.clear()
    first = case.first
    assert counts.passes == Counter(replays=2, records=1)
    assert (first.references, first.convention) == (1, "secant")
    pd.testing.assert_frame_equal(first.table, case.attribution().table)  # in tests, of one reference too


def test_a_comparison(lm: sc.LM, counts: Counts) -> None:
    """Nulls are shared. Attention of the first layer is the same in both conventions, so directions are counted."""
    found = sc.compare(PROMPT, [lm], conventions=("gate", "up"), k=3)
    assert counts.formed == 2
    counts.assert_each_step_once("decomposed", "attribute", "layers", "null", "token_terms", "ordinary_output")
    each = FROZEN + INSIDE + DEPTHS - ONCE  # no layer by itself, but contributions
    assert counts.passes == each + each
    T, layers = int(found.models["tokens"][0]), int(found.models["layers"][0])
    assert len(counts.scored) == SAMPLES + 2 * (T + 2 * T * 3 + 3 + layers * 3 * (T + 1))


def test_screening(lm: sc.LM, counts: Counts) -> None:
    sc.screen(lm, [PROMPT, "In London people cross the"], ["golden", "forth"], samples=100)
    assert counts.formed == 0
    each = FROZEN + INSIDE + DEPTHS - Counter(replays=1)  # no layer by itself
    assert counts.passes == each + each
    counts.assert_each_direction_once()


# ------------------------------------------------------------------------------------------------ the same


@pytest.mark.slow
def test_the_same_answer_twice(lm: sc.LM) -> None:
    one, other = (sc.explain(lm, PROMPT, k=3, layers=True) for _ in range(2))
    assert one.to_dict() == other.to_dict()
    for name, table in one.evidence().tables().items():
        pd.testing.assert_frame_equal(table, other.evidence().tables()[name], check_exact=True)


def test_the_order_of_questions_does_not_matter(lm: sc.LM) -> None:
    run = sc.freeze(lm, PROMPT)
    one, other = Case(run), Case(run)
    assert torch.equal(one.whole.S, (other.blocks and other).whole.S)
    assert all(torch.equal(a.U, b.U) for a, b in zip(one.blocks, other.blocks, strict=True))


def test_a_case_is_what_each_function_gives_alone(lm: sc.LM) -> None:
    run = sc.freeze(lm, PROMPT)
    case = Case(run, k=3, top=5, seed=2)
    for side in ("output", "input"):
        null = sc.null(lm, side, 5, seed=2)
        for f, words in zip(case.blocks, case.words(case.blocks, side), strict=True):
            for own, alone in zip(
                words, sc.decode(lm, f.U if side == "output" else f.V, side, 5, null=null), strict=True
            ):
                assert [w.id for w in own] == [w.id for w in alone]
                assert [w.z for w in own] == pytest.approx([w.z for w in alone], rel=1e-12)
    J = run.operator().dense()
    assert torch.equal(case.op.dense(), J) or not isinstance(case.op.products, Matrix)
    assert case.norms == pytest.approx([(J[:, t] @ x).norm().item() for t, x in enumerate(run.input)], rel=1e-12)
    versus = run.prediction[1].id
    pd.testing.assert_frame_equal(case.attribution(versus).table, sc.attribute(run, None, versus, parts=False).table)


def test_the_ordinary_jacobian_is_that_of_the_certificate(lm: sc.LM) -> None:
    one, other = sc.freeze(lm, PROMPT, ordinary=True), sc.freeze(lm, PROMPT)
    assert torch.equal(one.ordinary, other.ordinary)
    y = one.hidden[-1]
    assert ((one.ordinary - y).norm() / y.norm()).item() == pytest.approx(one.certificate.ordinary, rel=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "rwkv", "mamba"])
def test_all_layers_without_their_streams_by_one_replay(family: str) -> None:
    """Bit for bit what a replay for each of them gives."""
    inside = sc.freeze(model_of(family), prompt()).inside
    assert inside.chain
    together = inside.without_streams()
    for i in range(1, len(inside.layers)):
        alone = inside.without(f"layers.{i - 1}")
        for name in (f"layers.{i}", *(f"layers.{i}.{part}" for part in inside.parts(i))):
            assert torch.equal(together[name], alone[name]), name


# ------------------------------------------------------------------------------------------------ decoded


def test_the_best_tokens_where_scores_are_equal() -> None:
    """Against sorting all of them: equal scores in order of id, also across the last place, and where all are equal."""
    scores = torch.randint(0, 4, (50, 30), generator=torch.Generator().manual_seed(0)).double()
    scores[0], scores[1, ::3], scores[2, 5] = 1.0, -torch.inf, torch.nan
    found = best(scores, torch.ones(50), 7, token=11)
    order = scores.nan_to_num(-torch.inf, neginf=-torch.inf).sort(descending=True, stable=True).indices
    for row, ids in zip(scores, found.ids.tolist(), strict=True):
        expected = sorted(range(30), key=lambda i, row=row: (-row[i].nan_to_num(-torch.inf, neginf=-torch.inf), i))[:7]
        assert ids == expected
    places = (order == 11).nonzero()[:, 1]
    assert found.ranks is not None
    assert found.ranks.tolist() == ranks_of(scores, 11).tolist() == places.tolist()


def test_a_direction_is_decoded_again_only_for_more_tokens(lm: sc.LM, counts: Counts) -> None:
    run = sc.freeze(lm, PROMPT)
    f = sc.svd(run.operator(), 4)
    counts.clear()
    decodings = Decodings(lm, top=8)
    (two,) = decodings([(f, 2)], "output", 3)
    assert (two.ids.shape, len(counts.scored)) == ((2, 8), 2)
    (four,) = decodings([(f, 4)], "output", 8)
    assert (four.ids.shape, len(counts.scored)) == ((4, 8), 4)
    assert torch.equal(four.ids[:2], two.ids)
    (more,) = decodings([(f, 1)], "output", 12)
    assert (more.ids.shape, len(counts.scored)) == ((1, 12), 8)
    assert torch.equal(decodings([(f, 4)], "output", 12)[0].ids[:, :8], four.ids)
    (none,) = decodings([(f, 0)], "input", 8)
    assert none.words(lm) == []


def test_words_are_a_slice_and_first_seen_is_a_rank(lm: sc.LM, counts: Counts) -> None:
    found = sc.layers(sc.freeze(lm, PROMPT), 2)
    words = found.words(top=8, vectors=2)
    few = found.words(top=3, sides=["output"])
    kept = words[(words["rank"] < 3) & (words["vector"] == 0) & (words["side"] == "output")]
    pd.testing.assert_frame_equal(few, kept.reset_index(drop=True))
    counts.clear()
    for token in (None, " Golden", " Forth"):
        i = found.predicted if token is None else lm.token(token)
        for top in (1, 4):
            rows = words[(words["id"] == i) & (words["vector"] == 0) & (words["side"] == "output")]
            rows = rows[rows["rank"] < top].fillna({"position": -1})
            first = rows.groupby(["part", "span", "position"])["layer"].min()
            seen = found.first_seen(token, top).fillna({"position": -1}).dropna()
            assert seen.set_index(["part", "span", "position"])["layer"].sort_index().astype(int).equals(first)


def test_views_show_the_largest_where_j_was_formed_and_do_not_form_it(explanation: sc.Explanation) -> None:
    titles = [f"the 4 largest {of} of J" for of in ("columns", "rows")]
    shown = {grid.title: grid for grid in explanation.view().grids}
    for title, own in zip(titles, explanation.case.largest, strict=True):
        norms = own.table.drop_duplicates("rank")["norm"].tolist()
        assert [cells[4] for cells in shown[title].rows] == norms[:4]
    case = Case(explanation.run)
    assert not set(titles) & {grid.title for grid in replace(explanation, case=case).view().grids}
    assert not isinstance(case.op.products, Matrix)


def test_tied_sides_have_one_null(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model_of("llama")
    drawn: list[str] = []
    null = cases.null
    monkeypatch.setattr(
        cases, "null", lambda lm, side, *how, **more: drawn.append(side) or null(lm, side, *how, **more)
    )
    for tied in (False, True):
        if tied:
            lm.model.get_output_embeddings().weight = lm.model.get_input_embeddings().weight
        assert is_tied(lm) == tied
        drawn.clear()
        case = Case(sc.freeze(lm, prompt()), top=3)
        for side in ("output", "input"):
            found, own = case.null(side), sc.null(lm, side, 3)
            assert (found.side, found.words) == (side, own.words)
            assert torch.equal(found.mean, own.mean)
            assert torch.equal(found.std, own.std)
        assert drawn == (["output"] if tied else ["output", "input"])
