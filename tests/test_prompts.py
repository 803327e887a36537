"""Prompts of a study: the same items from every kind of file, and one clear line for files that can't be read."""

from __future__ import annotations

import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from secant.errors import BadArgument, BadPrompt, DamagedFile, SecantError
from secant.studies.prompts import Item, digest, given, read

TEXTS = ["The bridge out of Marin is the", 'A "quoted", odd\tone', "NA", "zwei\u2028Zeilen\x85 und 橋", ""]
GROUPS = ["bridges", "bridges", "null", "7", "x"]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]


def frame(**columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({"id": range(len(TEXTS)), "prompt": TEXTS, "category": GROUPS, "note": ["n"] * 5, **columns})


def written(path: Path, table: pd.DataFrame) -> Path:
    """A table as a file, by its ending; a folder is a data set's."""
    match path.suffix:
        case ".csv":
            table.to_csv(path, index=False)
        case ".tsv":
            table.to_csv(path, index=False, sep="\t")
        case ".jsonl":
            table.to_json(path, orient="records", lines=True, force_ascii=False)
        case ".json":
            table.to_json(path, orient="records")
        case ".parquet":
            table.to_parquet(path)
        case _:
            datasets = pytest.importorskip("datasets")
            datasets.Dataset.from_pandas(table).save_to_disk(path)
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ""])
def test_every_kind_of_file_has_the_same_prompts(tmp_path: Path, ending: str) -> None:
    found = read(written(tmp_path / f"p{ending}", frame()))
    assert found == [Item(i, text, group) for i, (text, group) in enumerate(zip(TEXTS, GROUPS, strict=True))]
    assert digest(found) == digest(given(frame()))
    assert pickle.loads(pickle.dumps(found)) == found
    assert read(tmp_path / f"p{ending}", "note", "id", limit=2) == [Item(0, "n", "0"), Item(1, "n", "1")]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ""])
def test_other_columns(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path / f"p{ending}", frame().rename(columns={"prompt": "Question", "category": "group"}))
    assert [i.prompt for i in read(path, category="group")] == TEXTS
    assert {i.category for i in read(path)} == {None}
    odd = written(tmp_path / f"odd{ending}", pd.DataFrame({"n": [1.5, 2], "words": ["a", "b"]}))
    assert read(odd, "words", category="n") == [Item(0, "a", "1.5"), Item(1, "b", "2.0")]
    if ending != ".csv":
        assert [i.prompt for i in read(odd)] == ["a", "b"]
    two = written(tmp_path / f"two{ending}", pd.DataFrame({"a": ["x"], "b": ["y"]}))
    with pytest.raises(BadArgument, match=r"One column must hold the prompts.*; got .* with a, b\. Name it"):
        read(two)
    assert read(two, "b") == [Item(0, "y")]
    with pytest.raises(BadArgument, match=r"got 'c'; it has a, b"):
        read(two, "c")
    with pytest.raises(BadArgument, match=r"got 'c'; it has a, b"):
        read(two, "a", "c")


def test_a_column_called_prompt_is_meant_whatever_else_there_is(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("text,prompt,question\na,12,c\nb,007,d\n")
    assert [i.prompt for i in read(path)] == ["12", "007"]
    assert [i.category for i in read(path, category="prompt", column="text")] == ["12", "007"]


def test_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\ufeffone\n\ntwo\r\n", encoding="utf-8")
    assert read(path) == [Item(0, "one"), Item(1, "two")]
    assert read(path, chat=True, limit=1) == [Item(0, [{"role": "user", "content": "one"}])]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"three\n")))
    assert read("-") == [Item(0, "three")]
    for wrong in ({"column": "a"}, {"category": "a"}, {"split": "train"}, {"limit": 0}):
        with pytest.raises(BadArgument):
            read(path, **wrong)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ""])
def test_chats(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path / f"p{ending}", pd.DataFrame({"n": [1, 2], "messages": [CHAT, CHAT[1:]]}))
    found = read(path, chat=True)
    assert found == [Item(0, CHAT), Item(1, CHAT[1:])]
    assert found[0].text() == "[system] Be brief.\n[user] Who?"
    assert digest(found) == digest(given([CHAT, CHAT[1:]])) != digest(given(["Be brief.\nWho?", "Who?"]))


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json", ".parquet", ""])
def test_chats_of_sharegpt(tmp_path: Path, ending: str) -> None:
    said = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Who?"},
        {"from": "gpt", "value": "I."},
    ]
    table = pd.DataFrame({"id": ["a", "b"], "conversations": [said[:2], said]})
    if ending == ".ndjson":
        written(tmp_path / "p.jsonl", table).rename(tmp_path / "p.ndjson")
        path = tmp_path / "p.ndjson"
    else:
        path = written(tmp_path / f"p{ending}", table)
    assert read(path) == [Item(0, CHAT), Item(1, [*CHAT, {"role": "assistant", "content": "I."}])]


def test_speakers_of_sharegpt_that_have_no_role(tmp_path: Path) -> None:
    with pytest.raises(BadPrompt, match=r"from human, user, gpt, assistant, system; got 'tool' in row 1"):
        given([[{"from": "human", "value": "a"}], [{"from": "tool", "value": "b"}]])


def test_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_dict({"text": [name, "b"]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    assert read(tmp_path / "two", split="test", limit=1) == [Item(0, "test")]
    for split, got in ((None, "none named"), ("dev", "'dev'")):
        with pytest.raises(BadArgument, match=rf"got {got}; .* has train, test"):
            read(tmp_path / "two", split=split)
    parts["train"].select([1, 0]).save_to_disk(tmp_path / "one")
    assert [i.prompt for i in read(tmp_path / "one")] == ["b", "train"]
    with pytest.raises(BadArgument, match="has none"):
        read(tmp_path / "one", split="train")


def test_folders_with_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the hub; nothing is left in the library's cache, and nothing fetched."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    written(hub / "data" / "train.jsonl", frame())
    written(hub / "data" / "test.jsonl", frame(prompt=["t"] * 5))
    assert digest(read(hub, split="train")) == digest(given(frame()))
    assert {i.prompt for i in read(hub, split="test")} == {"t"}
    assert not (tmp_path / "cache").exists()
    assert datasets.config.HF_HUB_OFFLINE is False
    assert not datasets.are_progress_bars_disabled()
    away = tmp_path / "away"
    away.mkdir()
    card = "configs:\n- config_name: default\n  data_files: https://example.org/p.jsonl"
    (away / "README.md").write_text(f"---\n{card}\n---\n")
    with pytest.raises(DamagedFile, match=r"[Oo]ffline|HTTP"):
        read(away)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SecantError, match="empty"):
        read(tmp_path / "empty")


def test_the_library_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SecantError, match=r"pip install 'secant\[datasets\]'"):
        read(tmp_path)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ""])
def test_rows_without_a_prompt_are_named(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path / f"p{ending}", pd.DataFrame({"prompt": ["a", None], "n": [1.0, None]}))
    with pytest.raises(BadPrompt, match=r"got nothing in row 1 of "):
        read(path)
    assert read(path, limit=1) == [Item(0, "a")]
    with pytest.raises(BadPrompt, match=r"a text or a chat; got 1.0 in row 0 of "):
        read(path, "n")


def test_files_that_are_not_what_they_promise(tmp_path: Path) -> None:
    def saved(name: str, raw: bytes) -> Path:
        (tmp_path / name).write_bytes(raw)
        return tmp_path / name

    for name in ("none.csv", "none.txt", "none.parquet", "none.jsonl", "none"):
        with pytest.raises(BadArgument, match=name):
            read(tmp_path / name)
    with pytest.raises(BadArgument, match=r"a \.txt, \.csv"):
        read(saved("p.xlsx", b"PK"))
    for name, raw, said in (
        ("latin.csv", "prompt\nBrücke".encode("latin-1"), "not in UTF-8"),
        ("wide.jsonl", "{}".encode("utf-16"), "not in UTF-8"),
        ("nul.tsv", b"prompt\na\0b", "not text"),
        ("empty.csv", b"", "[Ee]mpty"),
        ("head.csv", b"prompt,n\n", "without any"),
        ("ragged.csv", b"prompt,n\na,1\nb,2,3\n", "line 3: 3 fields for 2 columns"),
        ("short.csv", b"prompt,n\na,1\nb\n", "line 3: 1 fields for 2 columns"),
        ("open.csv", b'prompt,n\n"a\nb",1\n"c,2\nd,3\n', "from line 4: unexpected end of data"),
        ("after.tsv", b'prompt\tn\n"a"b\t1\n', "from line 2: .*expected after"),
        ("bad.jsonl", b'{"prompt": "a"}\n\n{"prompt": \n', "line 3: "),
        ("list.jsonl", b'{"prompt": "a"}\n["b"]\n', "line 2: "),
        ("list.json", b'[{"prompt": "a"}, 3]', "got .*3"),
        ("cut.parquet", b"PAR1 and not much", "cut.parquet"),
        ("empty.parquet", b"", "empty.parquet"),
        ("empty.jsonl", b"", "without any"),
        ("none.json", b"[]", "without any"),
        ("empty.txt", b"\n", "which is empty"),
    ):
        with pytest.raises(DamagedFile, match=said):
            read(saved(name, raw))
    with pytest.raises(BadPrompt, match="half a character in row 0"):
        read(saved("half.jsonl", b'{"prompt": "\\ud800"}'))
    with pytest.raises(BadPrompt, match=r"a role and a content, .*; got \{'role': 'user'\} in row 0"):
        read(saved("chat.jsonl", json.dumps({"messages": [{"role": "user"}]}).encode()))


def test_prompts_from_python() -> None:
    items = given(["a", CHAT, Item(9, "c", "g"), ""])
    assert items == [Item(0, "a"), Item(1, CHAT), Item(2, "c", "g"), Item(3, "")]
    assert given(pd.Series(["a", "b"])) == given(("a", "b")) == given(pd.DataFrame({"prompt": ["a", "b"]}))
    table = pd.DataFrame({"prompt": ["a", "b"], "category": ["x", None]}, index=[5, 5])
    assert given(table) == [Item(0, "a", "x"), Item(1, "b")]
    for wrong in ("one", [], CHAT[0], 3, pd.DataFrame({"text": ["a"]})):
        with pytest.raises(BadArgument):
            given(wrong)
    for wrong in ([None], [float("nan")], [3], [b"x"], CHAT, ["a", pd.NA]):
        with pytest.raises(BadPrompt, match=rf"row {len(wrong) - 1 if wrong is not CHAT else 0} "):
            given(wrong)


def test_the_digest_is_of_order_categories_and_bounds() -> None:
    some = [
        given(p)
        for p in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], [Item(0, "a", "g"), "b"], ["a", Item(0, "b", "g")])
    ]
    assert len({digest(items) for items in some}) == len(some)


# ------------------------------------------------------------------------------------------------ what was meant

MEANT = [Item(0, "Hello, world", "greet"), Item(1, "1,5", "sum")]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("p.csv", 'prompt,category\n"Hello, world",greet\n"1,5",sum\n'),
        ("p.csv", "\ufeffprompt;category\r\nHello, world;greet\r\n1,5;sum\r\n"),
        ("p.csv", "prompt\tcategory\nHello, world\tgreet\n1,5\tsum\n"),
        ("p.csv", "Prompt|CATEGORY\nHello, world|greet\n1,5|sum\n"),
        ("p.tsv", '"category","prompt"\ngreet,"Hello, world"\nsum,"1,5"\n'),
        ("p.tsv", "\ufeffcategory\tprompt\r\n\r\ngreet\tHello, world\r\nsum\t1,5\r\n"),
        ("p.csv", 'category,prompt\rgreet,"Hello, world"\rsum,"1,5"\r'),
        ("p.jsonl", '{"Prompt": "Hello, world", "Category": "greet"}\n{"Prompt": "1,5", "Category": "sum"}\n'),
        ("p.ndjson", '{"prompt": "Hello, world", "category": "greet"}\r\n{"prompt": "1,5", "category": "sum"}\r\n'),
        ("p.csv", "\ufeffsep=;\r\nprompt;category\r\nHello, world;greet\r\n1,5;sum\r\n"),
        ("p.csv", 'sep=,\nprompt,category\n"Hello, world",greet\n"1,5",sum\n'),
        ("p.csv", '"sep=|"\nprompt|category\nHello, world|greet\n1,5|sum\n'),
        ("p.tsv", "sep=\t\nprompt\tcategory\nHello, world\tgreet\n1,5\tsum\n"),
    ],
)
def test_a_table_is_read_as_it_was_meant(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(said.encode())
    assert read(tmp_path / name) == MEANT


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("space.csv", "prompt, category\na, x\n", r"category must have exactly this name; got ' category'"),
        ("space.csv", "category, prompt\nx, a\n", r"prompt must have exactly this name; got ' prompt'"),
        ("quotes.csv", "prompt,'category'\na,'x'\n", r"""got "'category'" in"""),
        ("boms.csv", "\ufeff\ufeffprompt,category\na,x\n", r"got '\\ufeffprompt' in"),
        ("wide.jsonl", '{"prompt": "a", "\uff43ategory ": "x"}', r"got 'ｃategory ' in"),
        ("twice.csv", "prompt,prompt\na,b\n", "'prompt' twice"),
        (
            "sep.csv",
            "sep=^\nprompt^category\na^x\n",
            r"the separator '\^' in its first line. Write commas, tabs, semicol",
        ),
        ("sepline.csv", "sep=;\nprompt;category\na;x;y\n", "line 3: 3 fields for 2 columns, separated by semicolons"),
        ("blank.csv", "prompt,category,,\na,x,,\n", "'' twice"),
        ("twice.jsonl", '{"prompt": "a", "prompt": "b"}', "'prompt' twice in one object"),
        (
            "cases.csv",
            "prompt,category,Category\na,x,y\n",
            "Only one column may be called category; got .*category, Category",
        ),
        (
            "cases.jsonl",
            '{"prompt": "a", "category": "x"}\n{"prompt": "b", "Category": "y"}',
            "Only one column may be called",
        ),
        (
            "none.csv",
            "The bridge is the\nA train is the\n",
            "the columns' names; got .*The bridge is the",
        ),
        ("none.tsv", "bridges\tThe bridge is the\nx\tA train is the\n", "first row the columns' names"),
        ("other.csv", "prompts\na\n", "first row the columns' names; got .*prompts"),
        (
            "mixed.csv",
            "prompt;category\nHello; world;greet\n",
            "the columns' names; got .*prompt;category",
        ),
        ("both.csv", "prompt;category, sub\nHello, world;greet\n", "rows that fit commas and semicolons"),
        ("comma.csv", "prompt\nHello, world\n", "line 2: 2 fields for 1 columns, separated by commas"),
        ("ragged.csv", "prompt;category\na;b;c\nd, e\n", "line 3: 2 fields for 1 columns"),
        ("led.csv", "id,prompt\n1, Hello\n2, World\n", "a space before every text of 'prompt'"),
        ("led.csv", 'id,prompt\n1, "Hello"\n2,World\n', "a space before the quotes"),
        ("led.csv", "prompt,id,category\nHello,1, x\nHello,1, y\n", "category"),
        ("escaped.csv", 'id,prompt\n1,"He said \\"hi\\""\n', "from line 2"),
        ("lines.txt", '{"prompt": "a"}\n{"prompt": "b"}\n', r"lines are JSON. Rename the file to end in \.jsonl"),
        ("lines.txt", "prompt;category\na;x\n", r"first line is a header. Rename the file to end in \.csv"),
    ],
)
def test_a_table_that_can_be_misread_is_refused(tmp_path: Path, name: str, raw: str, said: str) -> None:
    (tmp_path / name).write_text(raw, encoding="utf-8")
    with pytest.raises(SecantError, match=said):
        read(tmp_path / name)


def test_what_is_quoted_or_named_is_meant(tmp_path: Path) -> None:
    def prompts(raw: str, *how: str) -> list[Any]:
        (tmp_path / "p.csv").write_text(raw)
        return [item.prompt for item in read(tmp_path / "p.csv", *how)]

    assert prompts('id,prompt\n1," Hello"\n2," World"\n') == [" Hello", " World"]
    assert prompts('id,prompt\n1," ""Hello"""\n2,b\n') == [' "Hello"', "b"]
    assert prompts('prompt,id\n"say ""a""",1\n', "prompt") == ['say "a"']
    assert prompts("prompt\n Hello\n World\n") == [" Hello", " World"]
    assert prompts('id;prompt\n1;"a\r\nb; c"\n') == ["a\r\nb; c"]
    assert prompts("prompt;category\nHello; world;greet\n", "prompt;category") == ["Hello; world;greet"]
    assert prompts('prompt,"notes (a;b)"\nx,y\n') == ["x"]
    (tmp_path / "p.txt").write_text('{"a": 1}\nprompt\n')
    assert [item.prompt for item in read(tmp_path / "p.txt")] == ['{"a": 1}', "prompt"]


def test_frames_are_read_as_files_are() -> None:
    assert given(pd.DataFrame({"Prompt": ["a"], "Category": ["x"]})) == [Item(0, "a", "x")]
    for names in (["prompt", " category"], ["prompt", "prompt"], ["prompt", "Prompt"], [0, 1]):
        with pytest.raises(SecantError, match=r"[Cc]olumn"):
            given(pd.DataFrame([["a", "b"]], columns=names))


@pytest.mark.parametrize("wrong", [None, 3, b"p.csv", ["p.csv"], "", "a\0b.csv", "a" * 300 + ".csv"])
def test_what_is_no_path_of_prompts_is_refused(wrong: Any) -> None:
    with pytest.raises(BadArgument):
        read(wrong)
