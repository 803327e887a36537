"""Screening: ranks, p and q by hand; p is about uniform for random lists; Atlas' facts are found in late layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from families import model_of, prompt
from scipy.stats import kstest
from typer.testing import CliRunner

import secant as sc
from secant.analyses.screening import Ranks, _code, _tests, looked_up
from secant.cli import app
from secant.errors import BadArgument, BadPrompt, OutputFailed, TrainingMode

PROMPTS = ["The bridge out of Marin is the", "In London people cross the"]
ABOUT, BESIDE = ["golden", "Tower"], ["people", "walked"]


@pytest.fixture(scope="module")
def atlas() -> sc.LM:
    return sc.load("atlas")


@pytest.fixture(scope="module")
def screening(lm: sc.LM) -> sc.Screening:
    return sc.screen(lm, PROMPTS, ABOUT, samples=300, top=4)


# ------------------------------------------------------------------------------------------- by hand


def test_ranks_by_hand() -> None:
    lm = model_of("llama")
    lexicon = {"a": [3, 40], "b": [5], "c": [90, 91, 2]}
    D = np.random.default_rng(0).normal(size=(32, 150))  # more than are decoded together
    word, first, second = Ranks.of(lm, lexicon)(torch.from_numpy(D))
    rows = lm.unembedding.detach().double().numpy()
    rows = rows - rows.mean(0)
    scores = rows / np.linalg.norm(rows, axis=1)[:, None] @ D
    for c in range(150):
        place = np.argsort(np.argsort(-scores[:, c]))
        best = sorted((min(place[ids]), w) for w, ids in enumerate(lexicon.values()))
        assert (int(first[c]), int(word[c])) == best[0]
        assert int(second[c]) == best[1][0]
    _, first, second = Ranks.of(lm, {"a": [3, 40]})(torch.from_numpy(D))
    assert set(second.tolist()) == {lm.size}
    assert first.max() < lm.size


def test_the_table_by_hand(lm: sc.LM, screening: sc.Screening) -> None:
    """Every row from `layers`, `decode` and the definition of p."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([torch.randn(64, n, generator=generator, dtype=torch.float64) for n in (64, 64, 64, 64, 44)], 1)
    ranks = Ranks.of(lm, screening.lexicon)
    _, first, second = ranks(drawn)
    chance = [bool(set(ABOUT) & {w.token.lower() for w in words} or "Tower" in {w.token for w in words})
              for words in sc.decode(lm, drawn / drawn.norm(dim=0), "output", 4)]  # fmt: skip
    assert screening.chance == pytest.approx(np.mean(chance))
    rows = screening.table.set_index(["number", "layer", "position", "vector"])
    seen = 0
    for number, text in enumerate(PROMPTS):
        found = sc.layers(sc.freeze(lm, text), 2, spans=("cumulative",))
        for depth in (d for d in found.depths if d.part == "residual"):
            assert depth.whole is not None
            for t, f in [*enumerate(depth.tokens), (pd.NA, depth.whole)]:
                for i in range(2):
                    row = rows.loc[(number, depth.layer, t, i)]
                    words = sc.decode(lm, f.U[:, i], "output", lm.size)[0]
                    order = [w.token.casefold() for w in words]
                    places = sorted(order.index(word.casefold()) for word in ABOUT)
                    assert [row["rank"], row["second"]] == places
                    assert row["word"] == order[places[0]]
                    assert row["hits"] == sum(place < 4 for place in places)
                    assert row["decoded"] == " ".join(w.token for w in words[:4])
                    at_least = ((first < places[0]) | ((first == places[0]) & (second <= places[1]))).sum()
                    assert row["p"] == (1 + int(at_least)) / 301
                    assert row["sigma"] == f.S[i].item()
                    assert i in f.blocks[row["block"]]
                    seen += 1
    assert seen == len(rows)


def test_the_correction_by_hand(screening: sc.Screening) -> None:
    """Benjamini and Hochberg: q of the i-th smallest p is the least of p_j m / j, j from i on."""
    p = screening.table["p"].to_numpy()
    m, order = len(p), np.argsort(p, kind="stable")
    q = np.empty(m)
    least = 1.0
    for i in range(m, 0, -1):
        least = min(least, p[order[i - 1]] * m / i)
        q[order[i - 1]] = least
    np.testing.assert_allclose(screening.table["q"], q, rtol=1e-12)
    assert (screening.table["flagged"] == (q <= 0.05)).all()
    assert screening.flagged.equals(screening.table[q <= 0.05])
    pd.testing.assert_frame_equal(screening.to_pandas(), screening.table)


def test_how_many_have_to_be_beyond_chance(lm: sc.LM, screening: sc.Screening) -> None:
    """With few samples no p is small enough for one test alone."""
    few = sc.screen(lm, PROMPTS, ABOUT, samples=19)
    m = len(few.table)
    assert few.table["p"].min() >= 1 / 20
    assert few.needed == m
    smallest = 1 / (1 + screening.samples)
    assert smallest * m / screening.needed <= screening.level < smallest * m / (screening.needed - 1)


# ------------------------------------------------------------------------------------------- calibration


@pytest.mark.slow
def test_p_of_lists_that_mean_nothing_are_uniform(atlas: sc.LM) -> None:
    """Random tokens of Atlas, against the singular vectors of a real prompt."""
    run = sc.freeze(atlas, "The capital of France is")
    depths = sc.layers(run, 2, spans=("cumulative",)).depths
    random, generator = np.random.default_rng(1), torch.Generator().manual_seed(0)
    drawn = torch.randn(192, 512, generator=generator, dtype=torch.float64)
    ps, flagged = [], 0
    for _ in range(40):
        lexicon = {str(i): [int(i)] for i in random.choice(atlas.size, 4, replace=False)}
        ranks = Ranks.of(atlas, lexicon)
        _, first, second = ranks(drawn)
        tests = _tests(run, 0, "", depths, ranks, 8, np.sort(_code(first, second, atlas.size)))
        own = np.array([test["p"] for test in tests])
        ps.append(own)
        flagged += bool((np.sort(own) * len(own) / np.arange(1, len(own) + 1) <= 0.05).any())
    every = np.concatenate(ps)
    assert abs(every.mean() - 0.5) < 0.05
    assert kstest(every, "uniform").statistic < 0.08
    assert (every <= 0.05).mean() < 0.1
    assert flagged <= 4  # of 40; by design one in twenty


def test_p_of_random_directions_are_uniform() -> None:
    lm = model_of("llama")
    ranks = Ranks.of(lm, {"a": [3], "b": [50], "c": [7]})
    draws = [torch.randn(32, 4000, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2)]
    null, own = (_code(*ranks(some)[1:], lm.size) for some in draws)
    p = (1 + np.searchsorted(np.sort(null), own, side="right")) / 4001
    assert kstest(p, "uniform").statistic < 0.04
    assert abs(p.mean() - 0.5) < 0.02


@pytest.mark.slow
def test_what_atlas_is_about_to_say_is_found_late(atlas: sc.LM) -> None:
    prompts = ["The capital of France is", "The capital of Italy is"]
    found = sc.screen(atlas, prompts, ["Paris", "Rome"])
    last = found.table["layer"].max()
    for number, word in enumerate(("paris", "rome")):
        rows = found.flagged[(found.flagged["number"] == number) & (found.flagged["rank"] <= 1)]
        assert word in set(rows[rows["layer"] == last]["word"])
    assert found.flagged["layer"].mean() > found.table["layer"].mean() + 1
    assert found.table[found.table["layer"] == 0]["flagged"].sum() == 0
    assert found.found > 10 * found.chance
    beside = sc.screen(atlas, prompts, ["cow", "red", "seven"])
    assert beside.unknown == []
    assert len(beside.flagged) == 0


# ------------------------------------------------------------------------------------------- words


def test_words_are_tokens_in_any_case_with_or_without_a_space(atlas: sc.LM) -> None:
    known, unknown = looked_up(atlas, ["COW", " cow ", "New Zealand", "Paris"])
    assert set(known) == {"cow", "paris"}
    assert {atlas.text(i) for i in known["cow"]} >= {" cow"}
    for word, ids in known.items():
        assert ids == [i for i, text in enumerate(atlas.texts) if text.strip(" ").casefold() == word]
    assert unknown == ["new zealand"]
    with pytest.raises(BadPrompt, match="tokens of the vocabulary; got 'zzqq', 'qqzz'"):
        looked_up(atlas, ["zzqq", "qqzz"])


@pytest.mark.slow
def test_a_refused_prompt_does_not_lose_the_others(lm: sc.LM, screening: sc.Screening) -> None:
    prompts = ["In Golem", PROMPTS[0], "", PROMPTS[1], "the " * 70, lm.encode(PROMPTS[0])]
    found = sc.screen(lm, prompts, ABOUT, samples=300, top=4)
    assert found.refused["number"].tolist() == [0, 2, 4]
    assert set(found.refused["error"]) == {"BadPrompt"}
    assert "'Golem'" in found.refused["reason"][0]
    assert sorted(set(found.table["number"])) == [1, 3, 5]
    assert found.table[found.table["number"] == 1]["p"].tolist() == screening.table["p"][: 2 * 9 * 2].tolist()
    assert set(found.table[found.table["number"] == 5]["prompt"]) == {"<s>ThebridgeoutofMarinisthe"}
    with pytest.raises(BadPrompt, match="Golem"):
        sc.screen(lm, ["In Golem", ""], ABOUT)


def test_words_and_tokens_beyond_the_position_have_no_vectors(lm: sc.LM) -> None:
    found = sc.screen(lm, PROMPTS[:1], ABOUT, position=2, samples=50)
    assert found.table["position"].max() == 2


@pytest.mark.slow
def test_the_same_call_gives_the_same_answer_and_says_how_far_it_is(lm: sc.LM, screening: sc.Screening) -> None:
    said: list[tuple[str, int, int]] = []
    again = sc.screen(lm, PROMPTS, ABOUT, samples=300, top=4, progress=lambda *a: said.append(a))
    pd.testing.assert_frame_equal(again.table, screening.table)
    assert ("random directions", 300, 300) in said
    assert said[-1] == ("prompts", 2, 2)
    other = sc.screen(lm, PROMPTS, ABOUT, samples=300, top=4, seed=1)
    assert other.table["p"].tolist() != screening.table["p"].tolist()


def test_save(screening: sc.Screening, tmp_path: Path) -> None:
    screening.save(tmp_path / "out")
    written = pd.read_parquet(tmp_path / "out" / "screening.parquet")
    pd.testing.assert_frame_equal(
        written.astype(screening.table.dtypes.to_dict()).where(written.notna(), None),
        screening.table.where(screening.table.notna(), None),
        check_dtype=False,
    )
    said = json.loads((tmp_path / "out" / "screening.json").read_text("utf-8"))
    assert said["tests"] == len(said["screening"]) == len(screening.table)
    assert [row["word"] for row in said["screening"] if row["flagged"]] == screening.flagged["word"].tolist()
    assert len(pd.read_csv(tmp_path / "out" / "refused.csv")) == 0
    assert pd.read_csv(tmp_path / "out" / "lexicon.csv")["word"].tolist() == ["golden", "tower"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputFailed):
        screening.save(tmp_path / "file" / "out")


def test_refusals(lm: sc.LM) -> None:
    for prompts, lexicon in (("text", ABOUT), ([], ABOUT), (PROMPTS, "word"), (PROMPTS, []), (PROMPTS, ["a", " "])):
        with pytest.raises(BadArgument, match="list"):
            sc.screen(lm, prompts, lexicon)
    for wrong in ({"k": 0}, {"k": 65}, {"top": 0}, {"samples": 0}, {"level": 0}, {"level": 1.0}, {"seed": -1}):
        with pytest.raises(BadArgument):
            sc.screen(lm, PROMPTS, ABOUT, **wrong)
    with pytest.raises(BadArgument, match="convention"):
        sc.screen(lm, PROMPTS, ABOUT, convention="other")
    with pytest.raises(BadArgument, match="prompt's 8 tokens"):
        sc.screen(lm, PROMPTS[:1], ABOUT, position=8)
    training = model_of("llama")
    training.model.train()
    with pytest.raises(TrainingMode):
        sc.screen(training, [prompt()], ["5"])


# ------------------------------------------------------------------------------------------- command line


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / f"{name}.txt" for name in ("prompts", "words")}
    found["prompts"].write_text("\n".join(["The capital of France is", "", "The capital of Italy is", "of " * 600]))
    found["words"].write_text("paris\nRome\n\nSan Francisco\n")
    return found


def invoked(*args: object, text: str | bytes | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["screen", *map(str, args)], input=text)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
def test_command(texts: dict[str, Path], tmp_path: Path) -> None:
    code, out, err = invoked(texts["prompts"], "-l", texts["words"], "--out", tmp_path / "out")
    assert code == 2  # one prompt is refused, and the others are there
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert not any(line.endswith(" ") for line in lines)
    assert max(len(line) for line in lines if "paris" in line) > 80  # words have the room that is left
    assert "refused. A prompt has at most the model's context" in " ".join(out.split())
    assert any("paris" in line and "all" in line for line in lines)
    assert any("·Italy" in line and "rome" in line for line in lines)
    said = " ".join(out.split())
    assert "vectors flagged at a false discovery rate of 0.05" in said
    assert "of 10000 random directions" in said
    assert "Of the list, 1 is not a single token of this model: san francisco." in said
    assert "Tables are in" in err
    assert len(pd.read_parquet(tmp_path / "out" / "screening.parquet")) == 2 * 84


@pytest.mark.slow
def test_command_for_programs(texts: dict[str, Path]) -> None:
    args = ("-l", texts["words"], "--json", "-k", 1, "--samples", 2000)
    code, out, _ = invoked("-", *args, text="The capital of France is\r\n")
    assert code == 0
    said = json.loads(out)
    assert said["tests"] == 42
    flagged = [row for row in said["screening"] if row["flagged"]]
    assert {row["prompt"] for row in flagged} == {"The capital of France is"}
    assert {"paris"} <= {row["word"] for row in flagged}
    assert {row["word"] for row in said["lexicon"] if row["id"] is None} == {"san francisco"}
    assert said["unknown"] == ["san francisco"]
    assert said["refused"] == []
    assert said["needed"] == 1
    assert invoked("-", *args, text="The capital of France is")[1] == out


def test_chat_and_precision_reach_the_run(texts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def screened(lm: sc.LM, prompts: list[Any], lexicon: list[str], **how: Any) -> sc.Screening:
        seen.update(how, prompts=prompts)
        raise sc.SecantError("Enough is seen", "it", "Stop.")

    monkeypatch.setattr(sc, "screen", screened)
    how = ("--chat", "--precision", "float64", "--max-memory", "1GiB")
    assert invoked(texts["prompts"], "-l", texts["words"], *how)[0] == 2
    assert seen["prompts"][0] == [{"role": "user", "content": "The capital of France is"}]
    assert (seen["precision"], seen["max_memory"]) == ("float64", "1GiB")


@pytest.mark.slow
def test_precision_is_the_system_s(atlas: sc.LM) -> None:
    """Of a model in float32, a system in float64 has other singular values in their last digits."""
    plain, sharp = (sc.screen(atlas, ["In London"], ABOUT, k=1, samples=20, precision=p) for p in (None, "float64"))
    sigma = (plain.table["sigma"] - sharp.table["sigma"]).abs() / sharp.table["sigma"]
    assert 0 < sigma.max() < 1e-3


def test_nothing_flagged_is_said(folder: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "beside").write_text("walked")
    texts["prompts"].write_text(PROMPTS[0])
    code, out, _ = invoked(texts["prompts"], "-l", tmp_path / "beside", "-m", folder, "--samples", 50)
    assert code == 0
    assert "0 of 36 vectors flagged" in out
    assert "random directions are few for" in " ".join(out.split())


def test_command_with_bad_files(folder: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n\n")
    (tmp_path / "latin").write_bytes("café\n".encode("latin-1"))
    (tmp_path / "binary").write_bytes(b"\0\1\2")
    (tmp_path / "others").write_text("zzqq\n")
    prompts, words = texts["prompts"], texts["words"]

    def refused(*args: object) -> str:
        code, out, err = invoked(*args, "-m", folder)
        assert (code, out) == (2, "")
        (line,) = err.strip().splitlines()
        return line

    assert "Prompts are the lines of a text file; got" in refused(tmp_path / "none", "-l", words)
    assert "No such file" in refused(tmp_path / "none", "-l", words)
    assert "Words to screen for are the lines" in refused(prompts, "-l", tmp_path)
    assert "which is empty" in refused(prompts, "-l", tmp_path / "empty")
    assert "not in UTF-8" in refused(tmp_path / "latin", "-l", words)
    assert "which is not text" in refused(tmp_path / "binary", "-l", words)
    assert "got 'zzqq'. Give words" in refused(prompts, "-l", tmp_path / "others")
    assert "Results are written to" in refused(prompts, "-l", words, "--out", tmp_path / "empty")
    assert "A level is the share" in refused(prompts, "-l", words, "--level", 2)
    (tmp_path / "golem").write_text("In Golem\n")
    (tmp_path / "others").write_text("golden\n")
    assert "'Golem'" in refused(tmp_path / "golem", "-l", tmp_path / "others")
