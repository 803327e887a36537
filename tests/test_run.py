"""freeze: tokens, predictions, certificates, operators between points."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from families import LENGTH, frozen, model_of, prompt

import secant as sc
from secant.errors import BadArgument, NoPoint, NotExact


@pytest.fixture(scope="module")
def run() -> sc.Run:
    return frozen("llama", "sdpa")


def test_predictions_are_the_models(run: sc.Run) -> None:
    with torch.no_grad():
        logits = run.lm.model(input_ids=torch.tensor([prompt()])).logits[0, -1]
    best = logits.softmax(-1).topk(10)
    assert [p.id for p in run.prediction] == best.indices.tolist()
    assert [p.probability for p in run.prediction] == pytest.approx(best.values.tolist(), rel=1e-5)
    assert run.prediction[0].logit == pytest.approx(float(logits.max()), rel=1e-5)


def test_the_certificate_says_what_it_stands_for(run: sc.Run) -> None:
    c = run.certificate
    assert c.operations["torch.nn.functional.silu: scaled"] == 3
    assert c.operations["torch.Tensor.mul: gated"] == 3
    assert c.operations["torch.nn.functional.scaled_dot_product_attention: attended"] == 3
    assert c.operations["torch.rsqrt: constant"] == 7
    assert sum(c.operations.values()) == len(run.tape.steps)
    assert c.versions["torch"] == torch.__version__
    assert set(c.versions) == {"secant", "torch", "transformers"}
    assert c.ordinary is None
    op = run.operator()
    assert c.constants == pytest.approx(float(op.bias.norm() / op.output.norm()))
    assert c.stock is not None
    assert 1e-10 < c.stock < 1e-5
    assert dataclasses.is_dataclass(c)


def test_the_same_call_gives_the_same_answer_twice(run: sc.Run) -> None:
    again = sc.freeze(run.lm, prompt())
    assert again.certificate == run.certificate
    assert torch.equal(again.operator().dense(), run.operator().dense())


def test_a_tolerance_is_kept() -> None:
    lm = model_of("llama", "sdpa", torch.float32)
    with pytest.raises(NotExact, match=r"1e-09 in float32.*got reconstruction"):
        sc.freeze(lm, prompt(), tolerance=1e-9)
    assert sc.freeze(lm, prompt(), tolerance=1e-5).certificate.tolerance == 1e-5


def test_a_model_that_says_nothing_is_refused() -> None:
    """0 = J 0 + 0 would hold of anything."""
    lm = model_of("llama")
    with torch.no_grad():
        lm.model.model.norm.weight.zero_()
    with pytest.raises(NotExact, match="one that is 0"):
        sc.freeze(lm, prompt())


def test_logits_are_a_point_too(run: sc.Run) -> None:
    """To the logits is to the norm, then the head."""
    W = run.lm.unembedding
    norm, logits = run.operator(), run.operator(target="logits")
    torch.testing.assert_close(logits.dense().flatten(1), W @ norm.dense().flatten(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(logits.bias, W @ norm.bias, rtol=0, atol=1e-12)
    assert torch.equal(logits.output, run.logits[-1])


def test_the_operator_says_where_it_is_from(run: sc.Run) -> None:
    about = run.operator(position=2).about
    assert (about["source"], about["target"], about["position"], about["convention"]) == ("embed", "norm", 2, "gate")
    assert about["tokens"] == run.tokens


@pytest.mark.parametrize("position", [LENGTH, -LENGTH - 1])
def test_no_such_position(run: sc.Run, position: int) -> None:
    with pytest.raises(BadArgument, match=f"got {position}"):
        run.operator(position=position)


def test_no_such_point(run: sc.Run) -> None:
    with pytest.raises(NoPoint, match=r"layers\.i\.attn, .*norm, logits; i = 0 to 2; got 'layers\.77'"):
        run.operator(target="layers.77")


def test_bad_arguments(run: sc.Run) -> None:
    with pytest.raises(BadArgument, match="gate, up, half"):
        sc.freeze(run.lm, prompt(), convention="gates")
    with pytest.raises(BadArgument, match="at least the model's own"):
        sc.freeze(run.lm, prompt(), precision="float32")
    with pytest.raises(BadArgument, match="At least one prediction"):
        sc.freeze(run.lm, prompt(), top=0)
    with pytest.raises(BadArgument, match="at least the model's own"):
        sc.freeze(model_of("llama", dtype=torch.bfloat16), prompt(), precision="float16")
    with pytest.raises(BadArgument, match="float64, float32, bfloat16, float16"):
        sc.freeze(run.lm, prompt(), precision="int8")


def test_the_ordinary_jacobian_of_grouped_experts_is_quiet(recwarn: pytest.WarningsRecorder) -> None:
    lm = model_of("mixtral", dtype=torch.float32)
    lm.model.set_experts_implementation("grouped_mm")
    assert sc.freeze(lm, prompt(), ordinary=True).certificate.ordinary
    assert not [str(w.message) for w in recwarn if "grouped_mm" in str(w.message)]
