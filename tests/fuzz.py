"""What the fuzz tests share: a small model in a folder, the command line in this process, mutations, and checks.

Whatever a folder, a file or an argument list contains, a command ends with exit code 0 and a right answer, or with 2
and one line on stderr. It never ends with 1 or a traceback, and leaves no files.
"""

from __future__ import annotations

import copy
import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings, strategies as st
from tiny_model import sentences, tokenizer_of
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from secant.cli import app

PROMPT = "The bridge out of Marin is the"
SECONDS = 20
"""After which a command hangs."""


class Hangs(BaseException):
    """A command did not end."""


def fuzzed(examples: int) -> Any:
    """Settings: the same examples every time, so many of them."""
    return settings(
        derandomize=True, deadline=None, max_examples=examples, database=None, print_blob=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def small_model(folder: Path) -> Path:
    """A Llama of two layers in two shards, with random weights and a tokenizer of words."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(sentences())
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(folder, max_shard_size="16KB")
    tokenizer.save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").exists()
    return folder


# ------------------------------------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def secant(*args: object, stdin: str = "") -> Ended:
    """Run a command in this process; one that hangs ends with code -1."""

    def hangs(*_: object) -> None:
        raise Hangs

    start = monotonic()
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
    except Hangs:
        return Ended(-1, "", "hangs")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    late = monotonic() - start >= SECONDS  # and what raised Hangs was caught
    return Ended(-1 if late else result.exit_code, result.stdout, result.stderr)


def ended_well(end: Ended, may_say_no: bool = False) -> bool:
    """Whether there is an answer; fails where a command ended otherwise than it may.

    `may_say_no`: exit code 2 may also be its answer.
    """
    assert end.code in (0, 2), end
    assert "Traceback" not in end.out + end.err, end
    if end.code == 0 or (may_say_no and end.out):
        return True
    lines = end.err.splitlines()
    assert len(lines) == 1, end
    assert lines[0].startswith("secant: "), end
    assert "; got " in lines[0], end
    assert end.out == "", end
    return False


def same_as_plain(end: Ended, folder: Path) -> None:
    """Fails where the logit of an attribution, or of a prediction, is not the largest that transformers computes of the
    folder by itself.
    """

    def no(_: str) -> None:
        raise AssertionError(f"not JSON: {end.out[:200]}")

    said = json.loads(end.out, parse_constant=no)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)).logits[0, -1].double()
    assert torch.isfinite(logits).all()
    (best, *_) = said.get("prediction", [said])
    own = logits[best.get("id", logits.argmax())]
    torch.testing.assert_close(own.item(), best["logit"], rtol=1e-4, atol=1e-4)
    assert own >= logits.max() - 1e-4


@contextmanager
def nothing_left(place: Path) -> Iterator[Path]:
    """A folder for results; fails where anything is left beside it, or in the folder of temporary files."""
    temporary, home = place / "temporary", place / "home"
    for folder in (temporary, home):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        yield home / "out"
    assert list(temporary.iterdir()) == []
    assert {path.name for path in home.iterdir()} <= {"out"}


# ------------------------------------------------------------------------------------------- mutations

Mutation = Callable[[bytes], bytes]

DEEP: list[Any] = []
for _ in range(60):
    DEEP = [DEEP]

VALUES: list[Any] = [
    None, "", "x", 0, 1, -1, 2, True, False, [], {}, 0.5, 1e30, float("nan"), float("inf"), -1e30, "0", [1], ["x"],
    {"x": 1}, [None], "é\N{PILE OF POO}", "x" * 300, DEEP,
]  # fmt: skip
"""What may stand where something else should, the simplest first."""

HUGE = [10**9, 2**31, 10**30, -(10**30)]
"""Numbers that would need more than there is."""


def paths_of(tree: Any, here: tuple[Any, ...] = (), most: int = 12) -> list[tuple[Any, ...]]:
    """Every place in a JSON value; of long lists and mappings the first ones."""
    found = [here]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items)[:most] if len(tree if isinstance(tree, dict | list) else ()) > 40 else items:
        found += paths_of(value, (*here, key))
    return found


@st.composite
def json_mutations(draw: st.DrawFn, valid: Any, values: list[Any]) -> bytes:
    """A valid JSON text with one to three values replaced, taken out or added."""
    tree = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths_of(tree)[1:] or [()]))
        value = copy.deepcopy(draw(st.sampled_from(values)))
        way = draw(st.sampled_from(["replace", "delete", "add"]))
        if not path:
            tree = value
            continue
        inside = tree
        for key in path[:-1]:
            inside = inside[key]
        if way == "replace":
            inside[path[-1]] = value
        elif way == "delete":
            del inside[path[-1]]
        elif isinstance(inside, dict):
            inside[draw(st.sampled_from(["x", "", "é", "auto_map", "type"]))] = value
        else:
            inside.insert(path[-1], value)
    return json.dumps(tree).encode()


@st.composite
def byte_mutations(draw: st.DrawFn, valid: bytes) -> bytes:
    """A file cut short, with bytes changed, lines given twice, or other delimiters."""
    ways = ["cut", "flip", "twice", "swap", "put", "none"]
    way = draw(st.sampled_from(ways))
    at = draw(st.integers(0, max(0, len(valid) - 1)))
    if way == "cut":
        return valid[:at]
    if way == "flip":
        return valid[:at] + bytes([valid[at] ^ draw(st.sampled_from([1, 0x80, 0xFF]))]) + valid[at + 1 :]
    if way == "put":
        put = draw(st.sampled_from([b"\0", b'"', b"\n", b"\xff", b"\xef\xbb\xbf", b",", b"{", b"\r", b"\x1b[31m"]))
        return valid[:at] + put + valid[at:]
    lines = valid.split(b"\n")
    if way == "twice":
        line = draw(st.integers(0, len(lines) - 1))
        return b"\n".join([*lines[: line + 1], *lines[line:]])
    if way == "swap":
        old, new = draw(st.permutations([b",", b"\t", b";", b":", b'"', b"\n"]))[:2]
        return valid.replace(old, new)
    return draw(st.sampled_from([b"", b"{}", b"[]", b"null", b"0", b"\n", b"\xff\xfe", b'"x"']))


def mutations(valid: bytes, huge: bool = False) -> st.SearchStrategy[bytes]:
    """Of a file in JSON, or of any other text."""
    try:
        tree = json.loads(valid)
    except ValueError:
        return byte_mutations(valid)
    return st.one_of(json_mutations(tree, [*VALUES, *HUGE] if huge else VALUES), byte_mutations(valid))
