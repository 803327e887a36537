"""Atlas: its tables are consistent, training has no held-out pair, it passes its bars, and it ships complete."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner

import secant as sc
from secant.cli import app
from secant.errors import ModelRefused

import concepts
import contexts
import corpus
import evaluate
import facts
import train

FOLDER = Path(sc.__file__).parent / "atlas"
PROMPT = "The bridge out of Marin is the"


@pytest.fixture(scope="module")
def atlas() -> sc.LM:
    return sc.load("atlas")


# the tables


def test_countries_are_complete_and_neighbours_mutual() -> None:
    rows = {row["country"]: row for row in facts.table("countries")}
    needed = ("capital", "continent", "language", "currency", "demonym")
    assert sum(all(row[column] for column in needed) for row in rows.values()) >= 150
    for name, row in rows.items():
        for neighbour in filter(None, row["neighbours"].split(";")):
            assert name in rows[neighbour]["neighbours"].split(";"), (name, neighbour)


@pytest.mark.parametrize("name", [path.stem for path in facts.HERE.glob("*.csv") if path.stem != "held_out"])
def test_tables_have_no_stray_spaces_and_no_row_twice(name: str) -> None:
    rows = facts.table(name)
    assert all(cell == cell.strip() and "  " not in cell for row in rows for cell in row.values())
    assert max(Counter(next(iter(row.values())) for row in rows).values()) == 1


def test_landmarks() -> None:
    kinds = Counter(row["kind"] for row in facts.table("landmarks"))
    assert set(kinds) == {"bridge", "river", "mountain", "landmark"}
    assert kinds.total() >= 60
    places = Counter((row["kind"], place) for row in facts.table("landmarks") for place in row["places"].split(";"))
    assert max(places.values()) == 1  # or the place would not tell the thing


def test_every_relation_has_twelve_templates_and_one_is_a_story_and_one_a_question() -> None:
    for relation, lines in facts.templates().items():
        assert len(lines) >= 12, relation
        assert any("?" in line or line.startswith("Question") for line in lines)
        assert any(line.count(". ") >= 1 and "?" not in line for line in lines)


def test_no_prompt_is_how_another_template_begins() -> None:
    """Or two continuations would be right where only one is asked for: "Rome is the capital of", "which country?"."""
    subjects: dict[str, set[str]] = {}
    for fact in facts.facts():
        subjects.setdefault(fact.relation, set()).add(fact.subject.text)
    prompts = [(r, line.partition("{y}")[0]) for r, lines in facts.templates().items() for line in lines]
    for relation, prompt in prompts:
        for other, longer in prompts:
            if longer.startswith(prompt) and (relation, prompt) != (other, longer):
                assert not subjects[relation] & subjects[other], (prompt, longer)


def test_sentences_are_written_as_people_write() -> None:
    netherlands = facts.Name("Netherlands", "the")
    assert facts.sentence("{x} lies next to {y}.", netherlands, facts.Name("Belgium")) == facts.Sentence(
        "The Netherlands lies next to", " Belgium", "."
    )
    assert facts.sentence("It borders {x} and {y}.", facts.Name("Belgium"), netherlands) == facts.Sentence(
        "It borders Belgium and the", " Netherlands", "."
    )
    said = facts.sentence("A baby {x} is a {y}.", facts.Name("owl"), facts.Name("owlet"))
    assert said.text == "A baby owl is an owlet."
    assert facts.sentence("A {x} is a {y}.", facts.Name("owl"), facts.Name("bird")).text == "An owl is a bird."
    assert facts.sentence("A {x} is a {y}.", facts.Name("ewe"), facts.Name("unicorn")).text == "A ewe is a unicorn."


# the split


def test_the_held_out_list_is_the_one_that_training_leaves_out() -> None:
    assert corpus.read_questions() == corpus.questions(), "run python tools/atlas/corpus.py"


@pytest.mark.slow
def test_no_held_out_prompt_is_shown() -> None:
    held = {question.prompt for question in corpus.read_questions()}
    shown = {said.prompt for said in islice(corpus.sentences(Random(1)), 60_000)}
    assert len(shown) > 40_000
    assert not held & shown
    seen = {
        facts.sentence(facts.templates()[fact.relation][number], fact.subject, answer).prompt
        for fact, numbers in corpus._shown()
        for number in numbers
        for answer in fact.answers
    }
    assert not held & seen  # all of them, not only those that this stream came to


def test_held_out_facts_are_shown_in_other_templates_and_templates_with_other_facts() -> None:
    templates: Counter[tuple[str, int]] = Counter()
    for fact in facts.facts():
        number = len(facts.templates()[fact.relation])
        held = corpus.held_templates(fact)
        assert len(held) == corpus.HELD_TEMPLATES or (len(held) == number and fact.relation in facts.TWO_STEPS)
        templates.update((fact.relation, template) for template in set(range(number)) - held)
    assert all(templates[relation, n] > 10 for relation, lines in facts.templates().items() for n in range(len(lines)))


def test_made_up_words_of_the_evaluation_are_never_shown() -> None:
    shown = {contexts.made_up(Random(i), held_out=False) for i in range(3_000)}
    held = {contexts.made_up(Random(i), held_out=True) for i in range(3_000)}
    assert not shown & held
    assert len(held) > 1_000


@pytest.mark.parametrize("name", contexts.PATTERNS)
def test_patterns_are_answered_by_what_stands_before(name: str) -> None:
    random = Random(7)
    for _ in range(200):
        said = contexts.pattern(name, random, held_out=True)
        if name == "count":
            assert any(said.answer.strip() in items for items in facts.sequences().values())
        else:
            assert said.answer.strip() in said.prompt


# training


def smaller() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=4096, num_attention_heads=2, num_key_value_heads=1, **sizes))


def test_training_that_was_interrupted_ends_as_if_it_had_not(
    atlas: sc.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "DOCUMENTS", 6)
    monkeypatch.setattr(train, "EVERY", 1)
    monkeypatch.setattr(train, "sampled", lambda asked, number: asked[:4])
    monkeypatch.setattr(train, "tokenizer", lambda: atlas.tokenizer)
    monkeypatch.setattr(train, "model", smaller)
    whole = train.train(tmp_path / "whole", 3, keep=True)
    kept = tmp_path / "whole-checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == [f"checkpoint-{step}" for step in (1, 2, 3)]
    early, late = (sc.load(kept / f"checkpoint-{step}") for step in (1, 3))
    assert not torch.equal(early.embedding, late.embedding)
    assert torch.equal(late.embedding, sc.load(tmp_path / "whole").embedding)

    def interrupted(step: int, steps: int, rate: object = train.rate) -> float:
        if step == 2:
            raise KeyboardInterrupt
        return rate(step, steps)  # type: ignore[operator]

    with monkeypatch.context() as patch:
        patch.setattr(train, "rate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.train(tmp_path / "parts", 3)
    assert not (tmp_path / "parts").exists()
    parts = train.train(tmp_path / "parts", 3)
    assert [{**row, "minutes": 0} for row in parts] == [{**row, "minutes": 0} for row in whole]
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert all((tmp_path / "parts" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole", "whole-checkpoints"]


def test_answers_are_where_the_loss_is(atlas: sc.LM) -> None:
    (batch, *_) = train.batches(atlas.tokenizer, 0)
    assert batch.counted[batch.answers].all()
    said = atlas.tokenizer.decode(batch.targets[0][batch.answers[0]])
    assert said
    assert said in atlas.tokenizer.decode(batch.ids[0])


# what it knows, on a sample; tools/atlas/evaluate.py asks all


@pytest.mark.slow
def test_atlas_knows(atlas: sc.LM) -> None:
    asked = evaluate.sampled(corpus.read_questions(), 250)
    answers = evaluate.answered(atlas.model, atlas.tokenizer, asked)
    found = evaluate.shares(answers)
    for name, bar in evaluate.BARS.items():
        assert found[name] >= bar, (name, found)


@pytest.mark.slow
def test_an_untrained_model_knows_nothing(atlas: sc.LM) -> None:
    asked = evaluate.sampled(corpus.read_questions(), 30)
    answers = evaluate.answered(train.model().eval(), atlas.tokenizer, asked)
    assert max(evaluate.shares(answers).values()) < 0.1


@pytest.mark.slow
def test_the_evaluation_asks_token_by_token(atlas: sc.LM) -> None:
    questions = [q for q in corpus.read_questions() if q.split == "fact"][:20]
    answers = evaluate.answered(atlas.model, atlas.tokenizer, questions)
    for question, row in zip(questions, answers.itertuples(), strict=True):
        ids = atlas.tokenizer(question.prompt)["input_ids"]
        for _ in range(12):
            ids.append(int(atlas.logits(ids)[-1].argmax()))
        said = atlas.tokenizer.decode(ids)
        assert row.whole == any((question.prompt + answer) in said for answer in question.answers)
        assert row.whole <= row.first


# it ships


def test_the_folder_is_an_ordinary_one_of_the_size_that_was_asked_for() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert 6 <= config["num_hidden_layers"] <= 10
    assert 160 <= config["hidden_size"] <= 256
    assert config["vocab_size"] <= 4096
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert not config["tie_word_embeddings"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" in weights.keys()  # noqa: SIM118
    model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer(PROMPT, return_tensors="pt")
    said = model.generate(ids["input_ids"], max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(said[0]).strip() == f"{PROMPT} Golden Gate Bridge."


def test_words_keep_their_spacing(atlas: sc.LM) -> None:
    for question in corpus.read_questions()[::97]:
        text = question.prompt + question.answers[0] + "."
        assert atlas.tokenizer.decode(atlas.tokenizer(text)["input_ids"]).strip() == text
    assert atlas.tokenizer.tokenize("Paris") == atlas.tokenizer.tokenize("to Paris")[1:]


def test_load(atlas: sc.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name from anywhere; a folder that happens to have the name is not taken for it, and can still be given."""
    assert atlas.name == "atlas"
    assert atlas.dtype == torch.float32
    (tmp_path / "atlas").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sc.load("atlas").name == "atlas"
    with pytest.raises(ModelRefused, match=r"config\.json"):
        sc.load("./atlas")


@pytest.mark.parametrize("convention", ["gate", pytest.param("up", marks=pytest.mark.slow), "half"])
def test_certificate(convention: str) -> None:
    lm = sc.load("atlas", dtype="float64")
    for question in corpus.read_questions()[::6000]:
        certificate = sc.freeze(lm, question.prompt, convention=convention).certificate
        assert certificate.forward_equal
        assert certificate.reconstruction <= 1e-13
        assert certificate.affinity <= 1e-13


@pytest.mark.slow
def test_explain_without_a_model_uses_it() -> None:
    result = CliRunner().invoke(app, ["explain", PROMPT])
    assert result.exit_code == 0, result.output
    assert "next token   ·Golden" in result.stdout


# what its singular vectors decode to; tools/atlas/concepts.py counts all


@pytest.mark.slow
def test_singular_vectors_decode_to_the_prompt_more_often_than_random_directions(atlas: sc.LM) -> None:
    found = concepts.shares(concepts.measured(atlas, limit=4)).loc["all"]
    assert found["prompts"] == 12
    assert found["writes"] > found["writes, random direction"] + 0.2
    assert found["reads"] > found["reads, random direction"] + 0.2


def test_the_subject_is_found_where_the_prompt_names_it(atlas: sc.LM) -> None:
    question = next(q for q in corpus.read_questions() if q.subject == "Paris" and q.relation == "capital_country")
    where = concepts._last_token(atlas, question)
    assert atlas.text(atlas.encode(question.prompt)[where]).strip() == "Paris"


def test_the_card_says_what_was_measured(atlas: sc.LM) -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    log = pd.read_csv(FOLDER / "training.csv")
    assert f"| {int(log.step.iloc[-1])} | {int(log.tokens.iloc[-1])} |" in card.replace(".0 |", " |")
    for name in ("fact", "two-step", "copying"):
        assert f"| {name} | " in card
