"""Comparisons: numbers are those of single models, and tokens are aligned by the prompt's characters or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from families import model_of
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

import secant as sc
from secant.analyses import case as cases
from secant.analyses.compare import compared, jaccard
from secant.cli import app
from secant.errors import BadArgument, NoPoint

PROMPT = "The bridge out of Marin is the"


def cutting(pattern: str, text: str, width: int = 16, layers: int = 2, name: str = "cut") -> sc.LM:
    """A random model whose tokens are what a pattern finds in the text."""
    splitter = pre_tokenizers.Split(Regex(pattern), "isolated")
    pieces = [piece for piece, _ in splitter.pre_tokenize_str(text)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "other", "words"]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="other"))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.Fuse()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    return sc.LM(LlamaForCausalLM(config).double().eval(), fast, name)


@pytest.fixture(scope="module")
def atlas() -> sc.LM:
    return sc.load("atlas", dtype="float64")


@pytest.fixture(scope="module")
def two(lm: sc.LM, atlas: sc.LM) -> sc.Comparison:
    """Of other tokens (one has a first one of its own), widths and depths."""
    return sc.compare(PROMPT, [lm, atlas], k=3, top=5)


@pytest.fixture
def without_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if networks had no layers: their decompositions take most of a comparison's time."""

    def none(*args: Any, **kwargs: Any) -> None:
        raise NoPoint("A network has layers", "none", "Use points.")

    monkeypatch.setattr(cases, "layers", none)


def of(table: pd.DataFrame, model: str) -> pd.DataFrame:
    return table[table["model"] == model].reset_index(drop=True)


def test_each_model_is_as_it_is_alone(two: sc.Comparison, lm: sc.LM, atlas: sc.LM) -> None:
    for model in (lm, atlas):
        name = "tiny" if model is lm else "atlas"
        e = sc.explain(model, PROMPT, k=3, top=5, convention="gate")
        row = of(two.models, name).iloc[0]
        best = e.run.prediction[0]
        assert (row["prediction"], row["prediction_id"]) == (best.token, best.id)
        assert row["probability"] == best.probability
        c = e.run.certificate
        assert (row["reconstruction"], row["affinity"]) == (c.reconstruction, c.affinity)
        assert row["ordinary"] == sc.freeze(model, PROMPT, ordinary=True).certificate.ordinary
        J = e.run.operator().dense()
        S = torch.linalg.svdvals(J.flatten(1))
        assert row["sigma"] == pytest.approx(S[0].item())
        assert row["stable_rank"] == pytest.approx((S.square().sum() / S[0] ** 2).item())
        whole = of(two.spectra, name)[lambda t: t["position"].isna()]
        assert list(whole["normalized"]) == pytest.approx((S / S[0])[:3].tolist())
        tokens = of(two.tokens, name)
        expected = e.to_pandas()
        for column in ("token", "id", "contribution", "share", "sigma", "stable_rank"):
            assert list(tokens[column]) == list(expected[column])
        words = of(two.words, name)
        own = words[words["position"].notna()][["position", "vector", "side", "rank", "word", "id", "score", "z"]]
        pd.testing.assert_frame_equal(
            own.reset_index(drop=True), e.words()[list(own)], check_dtype=False, check_exact=True
        )
        U, _, _ = torch.linalg.svd(J.flatten(1), full_matrices=False)
        u = U[:, 0] * torch.sign(U[:, 0] @ e.run.hidden[-1])
        first = words[words["position"].isna() & (words["vector"] == 0)]
        assert list(first["word"]) == [w.token for w in sc.decode(model, u, "output", 5)[0]]


@pytest.mark.slow
def test_where_a_prediction_first_stands(two: sc.Comparison, atlas: sc.LM) -> None:
    seen = sc.layers(sc.freeze(atlas, PROMPT), 1)
    for top, column in ((1, "first_seen"), (5, "among")):
        rows = seen.first_seen(top=top)
        rows = rows[(rows["part"] == "residual") & (rows["span"] == "cumulative")]
        expected = [*rows["layer"][rows["position"].notna()], rows["layer"][rows["position"].isna()].item()]
        found = [*of(two.tokens, "atlas")[column], of(two.models, "atlas")[column].item()]
        assert [None if pd.isna(v) else v for v in found] == [None if pd.isna(v) else v for v in expected]
    row = of(two.models, "atlas").iloc[0]
    assert row["layers"] == 7
    if pd.isna(row["among"]):
        assert pd.isna(row["depth_among"])
    else:
        assert row["depth_among"] == pytest.approx((row["among"] + 1) / 7)


def test_tokens_meet_by_characters(two: sc.Comparison) -> None:
    """One tokenizer leaves the spaces out and begins with a token that is of no character."""
    assert two.aligned == "characters"
    assert two.why == ["Token 0 of tiny, '<s>', has no characters in the prompt."]
    texts = list(dict.fromkeys(zip(two.stretches["stretch"], two.stretches["text"], strict=True)))
    assert [text for _, text in texts] == PROMPT.split()
    assert list(of(two.tokens, "tiny")["stretch"].fillna(-1)) == [-1, *range(7)]
    assert list(of(two.tokens, "atlas")["stretch"]) == [*range(7)]
    shares = of(two.stretches, "tiny")["share"]
    assert list(shares) == list(of(two.tokens, "tiny")["share"])[1:]


TEXT = "ab cd  efgh\ni"


@pytest.mark.parametrize(
    ("one", "other", "texts", "counts"),
    [
        (r"\s*\S+", r"\S+\s*", ["ab", "cd", "efgh", "i"], [(1, 1)] * 4),  # spaces before, spaces after
        (r"\s*\S+", r"\S", ["ab", "cd", "efgh", "i"], [(1, 2), (1, 3), (1, 5), (1, 2)]),  # and spaces alone
        (r"ab c|d  ef|gh\ni", r"a|b cd  |efgh\ni", ["ab cd  efgh\ni"], [(3, 3)]),
        (r"ab c|d  e|fgh\ni", r"a|b c|d  efg|h\ni", ["ab c", "d  efgh\ni"], [(1, 2), (2, 2)]),
    ],
)
def test_stretches_by_hand(
    one: str, other: str, texts: list[str], counts: list[tuple[int, int]], without_layers: None
) -> None:
    found = sc.compare(TEXT, [cutting(one, TEXT), cutting(other, TEXT, 24, 3, "other")], k=1, top=2)
    rows = found.stretches
    assert list(rows["text"][::2]) == texts
    assert list(zip(rows["tokens"][::2], rows["tokens"][1::2], strict=True)) == counts
    for name in ("cut", "other"):
        own = of(found.tokens, name)
        assert own["stretch"].notna().all()
        assert own["stretch"].is_monotonic_increasing
        assert of(rows, name)["share"].sum() == pytest.approx(own["share"].sum())
    assert any("the whole prompt is one stretch" in why for why in found.why) == (len(texts) == 1)


@pytest.mark.slow
def test_what_can_not_be_aligned_is_said(monkeypatch: pytest.MonkeyPatch, atlas: sc.LM) -> None:
    bare = model_of("llama")
    found = sc.compare([3, 1, 2], {"atlas": atlas, "bare": bare}, k=1, top=3)
    assert (found.aligned, len(found.stretches)) == ("not", 0)
    assert found.why == ["The models have different tokens, and only tokens of a text can be aligned by characters."]
    assert list(found.overlaps["stretch"].isna()) == [True]
    cut = cutting(r"\S+|\s+", PROMPT)
    monkeypatch.setattr(sc.LM, "spans", lambda self, text: None if self is cut else [(0, 1)] * 7)
    found = sc.compare(PROMPT, [atlas, cut], k=1, top=3)
    assert found.why == ["The tokenizer of cut gives no character offsets of its tokens."]
    assert found.tokens["stretch"].isna().all()


def test_spans_are_of_the_tokens(atlas: sc.LM, lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (atlas, lm):
        spans = model.spans(PROMPT)
        tokens = [model.text(i).strip() for i in model.encode(PROMPT)]
        assert spans is not None
        texts = [PROMPT[lo:hi].strip() for lo, hi in spans]
        assert texts == [token if token != "<s>" else "" for token in tokens]
    assert cutting(r"\S+|\s+", "a b").spans("a b") == [(0, 1), (1, 2), (2, 3)]


def test_overlaps_by_hand(two: sc.Comparison) -> None:
    def words(name: str, side: str, position: int | None) -> set[str]:
        rows = of(two.words, name)
        where = rows["position"].isna() if position is None else rows["position"] == position
        return {w.strip().lower() for w in rows["word"][where & (rows["side"] == side) & (rows["vector"] == 0)]}

    for row in two.overlaps.to_dict("records"):
        n = None if pd.isna(row["stretch"]) else int(row["stretch"])
        a, b = words("tiny", row["side"], None if n is None else n + 1), words("atlas", row["side"], n)
        assert row["shared"] == len(a & b)
        assert row["jaccard"] == len(a & b) / len(a | b)
        if n is None:
            assert pd.isna(row["elsewhere"])
            continue
        others = [words("atlas", row["side"], m) for m in range(7) if m != n]
        assert row["elsewhere"] == pytest.approx(sum(len(a & c) / len(a | c) for c in others) / 6)
    assert (two.overlaps["side"] == "input").sum() == 7
    assert jaccard(set(), set()) is None
    assert compared("\n") == "\n"


@pytest.mark.slow
def test_conventions_of_one_model(atlas: sc.LM) -> None:
    found = sc.compare(PROMPT, [atlas], conventions=("gate", "half"), k=1, top=5)
    assert found.aligned == "tokens"
    assert found.why == []
    assert list(found.models["convention"]) == ["gate", "half"]
    gate, half = found.models.to_dict("records")
    assert gate["logit"] == half["logit"]
    assert gate["stable_rank"] != half["stable_rank"]
    assert set(found.overlaps["jaccard"]) != {1.0}
    plain = model_of("gpt2")  # has no gates
    same = sc.compare([3, 1, 2], [plain], conventions=("gate", "up"), k=1, top=5)
    assert set(same.overlaps["jaccard"]) == {1.0}


@pytest.mark.slow
def test_one_model_at_a_time(lm: sc.LM, atlas: sc.LM) -> None:
    """A generator of models is asked for the next one when the last is done with."""
    order: list[str] = []

    def loading() -> Iterator[sc.LM]:
        for model in (lm, atlas):
            order.append("loaded")
            yield model

    sc.compare(PROMPT, loading(), k=1, top=2, progress=lambda what, done, of: order.append("worked"))
    second = [i for i, what in enumerate(order) if what == "loaded"][1]
    assert "worked" in order[:second]


def test_a_network_without_layers(lm: sc.LM, without_layers: None) -> None:
    found = sc.compare(PROMPT, [lm], conventions=("gate", "up"), k=1, top=2)
    assert list(found.models["no_layers"]) == ["A network has layers; got none. Use points."] * 2
    assert found.models["layers"].isna().all()
    assert found.tokens["depth"].isna().all()


def test_wrong_arguments(without_layers: None) -> None:
    lm = cutting(r"\S+|\s+", "a b", layers=1)
    for lms, how, said in (
        ([lm], {}, "got 1"),
        ([], {}, "got 0"),
        ([lm, lm], {}, "'cut' twice"),
        ([lm, "atlas"], {}, "got str"),
        ([lm], {"conventions": "gate"}, "'gate'"),
        ([lm], {"conventions": ("gate", "gate")}, "given once"),
        ([lm], {"conventions": ("gate", "none")}, "A convention is one of gate, up"),
        ([lm], {"conventions": ("gate", "paper")}, "given once"),
    ):
        with pytest.raises(BadArgument, match=said):
            sc.compare("a b", lms, k=1, top=2, **how)  # type: ignore[arg-type]


def test_saved_and_shown(two: sc.Comparison, tmp_path: Path) -> None:
    two.save(tmp_path / "out")
    read = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert read["compared"][1]["prediction"] == " Golden"
    for name, table in two.tables().items():
        assert len(pd.read_parquet(tmp_path / "out" / f"{name}.parquet")) == len(table)
    pd.testing.assert_frame_equal(two.to_pandas(), two.models)
    shown = two._repr_html_()
    assert "·Golden" in shown
    assert "&#x27;&lt;s&gt;&#x27;" in shown.replace("&#39;", "&#x27;")


@pytest.mark.slow
def test_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["compare", PROMPT, "-m", str(folder), "-m", "atlas", "-k", "2", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "·Golden" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "Token 0 of tiny" in " ".join(result.stdout.split())
    assert (out / "overlaps.csv").exists()
    conventions = ["--convention", "gate", "--convention", "half"]
    result = CliRunner().invoke(app, ["compare", PROMPT, "-m", str(folder), *conventions, "--json"])
    assert [row["convention"] for row in json.loads(result.stdout)["compared"]] == ["gate", "half"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "A comparison requires two models"),
        (["-m", "atlas", "-m", "atlas"], "the same one twice"),
        (["-m", "{folder}", "-m", "/no/such/folder", "-k", "1"], "no/such/folder"),
    ],
)
def test_bad_input(args: list[str], said: str, folder: Path, without_layers: None) -> None:
    result = CliRunner().invoke(app, ["compare", PROMPT, *(arg.format(folder=folder) for arg in args)])
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert said in line
