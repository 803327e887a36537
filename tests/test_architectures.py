"""Every causal language model type that transformers registers: exact, or refused with the reason.

By default a sample of them runs, one of each kind; `--all-architectures` runs all.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import architectures
import pytest
import torch
import transformers
from families import EXCLUDED, LENGTH, SMALL, config_of, frozen, has, prompt, shared, types
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import secant as sc
from secant.errors import NoPoint

SAMPLE = (
    "apertus",  # xIELU, written out
    "bamba",  # a mask of minus infinity on the way of live decays
    "bert",  # an encoder, run as a decoder
    "bloom",  # ALiBi; an activation that is a custom autograd function
    "deepseek_v3",  # latent attention, grouped experts, router biases
    "deepseek_v4",  # hyper-connections, routes by token
    "dbrx",
    "electra",  # embeddings of another width than the streams
    "falcon",
    "gemma3n_text",  # altup, laurel, embeddings for each layer, shared keys and values
    "gemma4_text",
    "gpt_bigcode",  # what follows the last layer takes one sequence only
    "gpt_oss",  # sinks, experts with biases
    "jamba",  # Mamba and attention and experts
    "llama4_text",  # complex rotations, chunks
    "mamba",
    "mamba2",
    "minimax",  # lightning attention
    "mixtral",
    "olmo_hybrid",  # gated delta rule, a triangular solve
    "opt",  # learned positions, ReLU
    "qwen3_next",  # gated attention, gated delta rule
    "recurrent_gemma",
    "rwkv",
    "xlstm",
    "zamba2",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        chosen = types() if metafunc.config.getoption("all_architectures") else [kind for kind in SAMPLE if has(kind)]
        metafunc.parametrize("kind", chosen)


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, str]]:
    return {row["type"]: row for row in architectures.read()}


def test_exact_or_refused(kind: str, table: dict[str, dict[str, str]]) -> None:
    """As the table says; the recorded pass in float32 equals the plain one bit for bit."""
    lm = shared(kind)
    if table[kind]["transformers"] != transformers.__version__:
        try:
            lm.model(input_ids=torch.tensor([prompt()]), use_cache=False)
        except Exception as error:
            pytest.skip(f"transformers {transformers.__version__} itself can't run it: {error}")
    if table[kind]["result"] == "refused":
        with pytest.raises((sc.NoRule, sc.NotExact)):
            sc.freeze(lm, prompt())
        return
    certificate = frozen(kind).certificate
    assert certificate.forward_equal
    assert certificate.reconstruction <= 1e-12
    assert certificate.affinity <= 1e-11
    assert certificate.readout <= 1e-11
    plain = shared(kind, dtype=torch.float32)
    run = sc.freeze(plain, prompt())
    with torch.no_grad():
        assert torch.equal(run.logits, plain.model(input_ids=torch.tensor([prompt()]), use_cache=False).logits[0])


@pytest.mark.slow
@pytest.mark.parametrize("convention", ["gate", "secant"])
def test_a_logit_is_what_it_is_made_of(kind: str, convention: str, table: dict[str, dict[str, str]]) -> None:
    """Both sums, their crossing, and heads, of a network of every kind."""
    if table[kind]["result"] != "exact":
        pytest.skip("no run to attribute")
    if table[kind]["transformers"] != transformers.__version__:
        pytest.skip(f"the table is of transformers {table[kind]['transformers']}")
    if (kind, convention) == ("recurrent_gemma", "secant"):
        with pytest.raises(
            sc.NotExact, match="Choose the convention 'gate', which is exact here"
        ):  # a root with bounded slopes
            sc.attribute(frozen(kind), 11, convention=convention)
        return
    a = sc.attribute(frozen(kind), 11, flow=True, convention=convention, references=2)
    close = {"abs": 1e-12 * a.table["contribution"].abs().sum(), "rel": 0}
    assert a.total == pytest.approx(a.logit, **close)
    assert a.direct == pytest.approx(a.logit, **close)
    assert a.flow is not None
    whole = a.flow[a.flow["head"].isna() & (a.flow["path"] == "direct")]
    by_token = whole.groupby("position", dropna=False)["contribution"].sum().tolist()
    assert by_token[:-1] == pytest.approx(a.of("token")["contribution"].tolist(), **close)
    assert by_token[-1] == pytest.approx(a.constant, **close)
    heads, layers = a.of("head").groupby("layer")["contribution"].sum(), a.of("layer").set_index("name")["contribution"]
    for layer, own in heads.items():
        assert own == pytest.approx(layers[f"layers.{layer}.attn"], **close)


WITHOUT_LAYERS = {
    "cpmant": "its layers are in no module list that carries the residual stream",
    "hrm_text": "the last layer is followed by a norm and a head only after others have run again",
}
"""Types whose layers are not read out, and why."""


@pytest.mark.slow
def test_everything_about_a_prompt(
    kind: str, table: dict[str, dict[str, str]], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Layers, their words, and the lens; where all types run, all that `secant explain --layers --out` writes."""
    if table[kind]["result"] != "exact":
        pytest.skip("no run to explain")
    run = frozen(kind)
    if kind in WITHOUT_LAYERS:
        with pytest.raises(NoPoint):
            sc.layers(run, 1)
        return
    layers = sc.layers(run, 1)
    assert {"layers", "layer_words", "first_seen"} <= set(layers.tables())
    with suppress(NoPoint):
        assert len(sc.lens(run, position=[0, -1]).positions) == 2
    if pytestconfig.getoption("all_architectures"):
        e = sc.explain(run.lm, prompt(6), k=1, top=2, layers=True)
        e.save(tmp_path)
        e.report(tmp_path / "report.html", e.evidence())


def test_every_registered_type_is_run_or_excluded(table: dict[str, dict[str, str]]) -> None:
    registered = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert len(EXCLUDED) <= 20
    (version,) = {row["transformers"] for row in table.values()}
    if version != transformers.__version__:
        pytest.skip(f"the table is of transformers {version}")
    assert set(types()) == registered - set(EXCLUDED)
    assert set(table) == registered, "run python tools/architectures.py"
    assert {row["type"] for row in table.values() if row["result"] == "excluded"} == set(EXCLUDED)
    assert {row["result"] for row in table.values()} <= {"exact", "refused", "excluded"}


def test_the_prompt_is_longer_than_windows_and_chunks() -> None:
    assert all(SMALL[name] < LENGTH for name in ("sliding_window", "window_size", "attention_chunk_size", "chunk_size"))
    for kind in ("gemma3_text", "mistral", "gpt_oss"):
        assert config_of(kind).sliding_window < LENGTH


def test_the_page_is_written_from_the_table() -> None:
    assert architectures.PAGE.read_text(encoding="utf-8") == architectures.page(architectures.read())


@pytest.mark.slow
def test_the_table_is_what_a_model_measures(table: dict[str, dict[str, str]]) -> None:
    for kind in ("qwen3", "gpt2"):
        row = architectures.certified(kind)
        assert {name: row[name] for name in ("result", "layers", "constants", "reason")} == {
            name: table[kind][name] for name in ("result", "layers", "constants", "reason")
        }
