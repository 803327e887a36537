"""Names on the Hugging Face hub, from caches that the tests make: revisions, subfolders, files, and missing ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import torch
from helpers import refused
from safetensors.torch import load_file, save_file

import secant as sc
from secant.errors import BadArgument, ModelNotFound, ModelRefused
from secant.model.sources import Hub, place_of

pytestmark = pytest.mark.filterwarnings("ignore")
NAME = "someone/something"
COMMITS = {"main": "a" * 40, "step100": "b" * 40}
TRAPPED = """
import socket, sys, time
def none(*args, **kwargs):
    raise OSError("no network")
def waits(seconds):
    raise AssertionError("the hub is asked again and again")
socket.getaddrinfo = socket.create_connection = none
time.sleep = waits
import secant as sc
for options in ({}, {"revision": "main"}):
    print(sc.load(sys.argv[1], **options).encode("The bridge"))
"""


def cached(cache: Path, folder: Path, revision: str = "main", below: str = "", without: tuple[str, ...] = ()) -> Path:
    """A folder as a revision in a cache of the hub: blobs, links to them, and the commit."""
    home = cache / "models--someone--something"
    snapshot = home / "snapshots" / COMMITS[revision] / below
    for one in (snapshot, home / "blobs", home / "refs"):
        one.mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(COMMITS[revision])
    for path in folder.iterdir():
        if path.name not in without:
            blob = home / "blobs" / f"{revision}{below}-{path.name}"
            shutil.copy(path, blob)
            (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.fixture
def other(folder: Path, tmp_path: Path) -> Path:
    """The same model with another weight."""
    shutil.copytree(folder, tmp_path / "other")
    held = load_file(folder / "model.safetensors")
    held["model.norm.weight"] = held["model.norm.weight"] * 2
    save_file(held, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "other"


def norm(lm: sc.LM) -> torch.Tensor:
    return lm.model.model.norm.weight


def test_a_name_in_the_cache(folder: Path, tmp_path: Path) -> None:
    cached(tmp_path, folder)
    lm = sc.load(NAME, cache_dir=tmp_path)
    assert torch.equal(norm(lm), norm(sc.load(folder)))
    assert lm.name == NAME
    refused(ModelNotFound, "not a folder here nor complete in the cache", NAME)  # the default cache has none
    assert torch.equal(norm(sc.load(NAME, cache_dir=tmp_path, offline=True)), norm(lm))


def test_revisions(folder: Path, other: Path, tmp_path: Path) -> None:
    cached(tmp_path, folder)
    cached(tmp_path, other, "step100")
    late = sc.load(NAME, cache_dir=tmp_path, revision="step100")
    assert torch.equal(norm(late), 2 * norm(sc.load(NAME, cache_dir=tmp_path)))
    short = sc.load(f"{NAME}@step100", cache_dir=tmp_path)
    assert torch.equal(norm(short), norm(late))
    assert short.name == f"{NAME}@step100"
    commit = sc.load(NAME, cache_dir=tmp_path, revision=COMMITS["step100"])
    assert torch.equal(norm(commit), norm(late))
    refused(BadArgument, "A revision is given once", f"{NAME}@step100", revision="main")
    refused(BadArgument, "A revision belongs to a name on the hub", folder, revision="main")
    refused(ModelNotFound, "", NAME, cache_dir=tmp_path, revision="step200")


def test_subfolders(folder: Path, tmp_path: Path) -> None:
    cached(tmp_path, folder, below="deep")
    assert torch.equal(norm(sc.load(NAME, cache_dir=tmp_path, subfolder="deep")), norm(sc.load(folder)))
    refused(ModelNotFound, "", NAME, cache_dir=tmp_path)
    assert torch.equal(norm(sc.load(folder.parent, subfolder=folder.name)), norm(sc.load(folder)))
    refused(ModelRefused, "must contain a config.json", folder, subfolder="none")


def test_a_gguf_file_in_a_repository(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    import gguf_files
    from families import model_of

    (tmp_path / "files").mkdir()
    model = model_of("llama", dtype=torch.float32, intermediate_size=64).model
    path = gguf_files.write(tmp_path / "files" / "tiny.Q8_0.gguf", model, "Q8_0")
    cached(tmp_path, tmp_path / "files")
    lm = sc.load(f"{NAME}:tiny.Q8_0.gguf", cache_dir=tmp_path)
    assert torch.equal(norm(lm), norm(sc.load(path)))
    assert lm.name == f"{NAME}:tiny.Q8_0.gguf"
    lm = sc.load(f"{NAME}@main:tiny.Q8_0.gguf", cache_dir=tmp_path)
    refused(ModelNotFound, "", f"{NAME}:none.gguf", cache_dir=tmp_path)
    refused(ModelNotFound, "", NAME, cache_dir=tmp_path)


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_download_that_is_not_complete(missing: str, folder: Path, tmp_path: Path) -> None:
    cached(tmp_path, folder, without=(missing,))
    refused((ModelNotFound, ModelRefused), "in the cache|safetensors|tokenizer", NAME, cache_dir=tmp_path)


def test_a_shard_that_was_not_downloaded(folder: Path, tmp_path: Path) -> None:
    held = load_file(folder / "model.safetensors")
    shards = tmp_path / "sharded"
    shutil.copytree(folder, shards, ignore=shutil.ignore_patterns("model.safetensors"))
    names = {key: f"{'ab'[i % 2]}.safetensors" for i, key in enumerate(held)}
    save_file({key: held[key] for key in held if names[key][0] == "a"}, shards / "a.safetensors", {"format": "pt"})
    (shards / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    snapshot = cached(tmp_path, shards)
    refused((ModelNotFound, ModelRefused), "in the cache|b.safetensors", NAME, cache_dir=tmp_path)
    (snapshot.parents[1] / "blobs" / "1234.incomplete").touch()
    refused(ModelRefused, r"without b\.safetensors\. .* A download was interrupted", snapshot)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_pointers_in_place_of_files(file: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / file).write_bytes(POINTER)
    refused(ModelRefused, f"{file} of .*, a pointer of Git LFS.* git lfs pull", tmp_path / "copy")


def test_weights_cut_short_say_by_how_much(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    whole = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-5000])
    refused(ModelRefused, f"model.safetensors of .*, {whole - 5000:,} of {whole:,} bytes", tmp_path / "copy")


@pytest.mark.parametrize(
    ("said", "kind", "match"),
    [
        ("You are trying to access a gated repo. Make sure to have access", ModelNotFound, "requires an access token"),
        ("x/y is not a valid model identifier. If this is a private repository", ModelNotFound, "HF_TOKEN"),
        ("v9 is not a valid git identifier (branch name, tag name or commit id)", ModelNotFound, "got v9 of x/y"),
        ("x/y does not appear to have a file named config.json", ModelRefused, "a GGUF file follows a colon"),
        ("There was a specific connection error when trying to load x/y", ModelNotFound, "the hub may not be asked"),
    ],
)
def test_what_the_hub_says(said: str, kind: type, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*args: object, **kwargs: object) -> None:
        raise OSError(said)

    monkeypatch.setattr("secant.model.loading.cached_file", answer)
    refused(kind, match, "x/y@v9")


def test_the_token_and_the_cache_reach_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def answer(where: str, file: str, **options: Any) -> None:
        asked.append(options)
        raise OSError("gated")

    monkeypatch.setattr("secant.model.loading.cached_file", answer)
    refused(ModelNotFound, "access token", NAME, token="hf_x", cache_dir="c", revision="r", subfolder="s", offline=True)
    assert asked == [{"revision": "r", "subfolder": "s", "token": "hf_x", "cache_dir": "c", "local_files_only": True}]


def test_names() -> None:
    assert place_of("a/b@v1:c/d.gguf").file == "c/d.gguf"
    assert place_of("a/b@v1:c/d.gguf").hub == Hub(revision="v1")
    assert place_of("gpt2").where == "gpt2"
    for name in ("a/b/c", "./a.gguf", "a.gguf", "~nobody/x@y"):
        with pytest.raises(ModelNotFound):
            place_of(name)


def online(script: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """A script in a process that may ask the hub."""
    kept = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, args)], capture_output=True, env={**kept, **env}, text=True,
        timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nope", NAME, f"{NAME}:tiny.gguf"])
def test_a_name_that_is_nowhere_is_refused_at_once_without_a_network(name: str, tmp_path: Path) -> None:
    """Whatever the hub's client would do: it may not wait."""
    result = online(TRAPPED, name, HF_HUB_CACHE=str(tmp_path), HF_ENDPOINT="https://hub.invalid")
    said = result.stderr.splitlines()[-1]
    assert f"got {name}, which is not a folder here nor complete in the cache, while https://hub.invalid is" in said
    assert said.endswith("Check the path and the network. The model atlas ships with secant.")


class SlowHub(BaseHTTPRequestHandler):
    """A hub with one model, which takes a while over each answer."""

    folder: ClassVar[Path]

    def do_HEAD(self) -> None:
        time.sleep(0.4)
        file = self.folder / self.path.rpartition("/")[2]
        found = "/resolve/" in self.path and file.is_file()
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(file.stat().st_size if found else 0))
        self.send_header("ETag", f'"{file.name}"')
        self.send_header("X-Repo-Commit", COMMITS["main"])
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(file.read_bytes())

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.slow
def test_a_hub_that_answers_slowly_is_waited_for(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlowHub, "folder", folder, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowHub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        script = (
            "import sys; import secant as sc; from secant.model import loading; loading.ANSWER = 0.2;"
            "print(sc.load(sys.argv[1]).encode('The bridge'))"
        )
        hub = {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}"}
        result = online(script, NAME, **hub)
        server.shutdown()
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{sc.load(folder).encode('The bridge')}\n"


@pytest.mark.slow
def test_a_name_in_the_cache_works_without_a_network(folder: Path, tmp_path: Path) -> None:
    """And without being told so, at once."""
    cached(tmp_path, folder)
    result = online(TRAPPED, NAME, HF_HUB_CACHE=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout == 2 * f"{sc.load(folder).encode('The bridge')}\n"
