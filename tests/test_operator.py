"""Operators: products, blocks, scipy, files."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from families import LENGTH, frozen, model_of, prompt
from helpers import assert_matches

import secant as sc
from secant.errors import BadArgument, DamagedFile, OutputFailed, ReplayMismatch
from secant.operators.operator import Graph, Matrix


@pytest.fixture(scope="module")
def op() -> sc.Operator:
    return frozen("llama", "sdpa").operator()


@pytest.fixture(scope="module")
def J(op: sc.Operator) -> torch.Tensor:
    return op.dense().flatten(1)


def test_products(op: sc.Operator, J: torch.Tensor) -> None:
    assert_matches(op, J)
    assert op.T.T is op


def test_products_with_a_matrix_that_is_there(op: sc.Operator, J: torch.Tensor) -> None:
    assert_matches(op.solidified(), J)
    assert isinstance(op.solidified().products, Matrix)


@pytest.mark.parametrize("t", [0, 4, -1])
def test_blocks(op: sc.Operator, J: torch.Tensor, t: int) -> None:
    block, own = op.block(t), J.reshape(32, LENGTH, 32)[:, t]
    assert block.shape == (32, 32)
    assert_matches(block, own)
    torch.testing.assert_close(block.output, own @ op.input[t])
    assert block.about["token"] == t % LENGTH


def test_blocks_and_bias_sum_to_the_output(op: sc.Operator) -> None:
    total = sum(op.block(t).output for t in range(LENGTH)) + op.bias
    torch.testing.assert_close(total, op.output, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 5, 31, 32, 100])
def test_dense_is_the_same_in_any_chunks(op: sc.Operator, J: torch.Tensor, chunk: int) -> None:
    seen: list[tuple[int, int]] = []
    again = op.dense(chunk, progress=lambda done, of: seen.append((done, of)))
    torch.testing.assert_close(again.flatten(1), J, rtol=0, atol=1e-13)
    assert seen[-1] == (32, 32)
    assert len(seen) == -(-32 // chunk)


def test_scipy(op: sc.Operator, J: torch.Tensor) -> None:
    linear = op.to_scipy()
    v = np.random.default_rng(0).normal(size=(linear.shape[1], 2))
    np.testing.assert_allclose(linear @ v, J.numpy() @ v, atol=1e-11)
    np.testing.assert_allclose(linear.T @ v[:32], J.numpy().T @ v[:32], atol=1e-11)
    values = scipy.sparse.linalg.svds(linear, k=3, solver="propack", return_singular_vectors=False)
    np.testing.assert_allclose(sorted(values), np.linalg.svd(J.numpy(), compute_uv=False)[:3][::-1], rtol=1e-9)


@pytest.mark.parametrize("bad", [torch.ones(31), torch.ones(3, 3), torch.ones(1, 32 * LENGTH, 1)])
def test_products_of_another_shape_are_refused(op: sc.Operator, bad: torch.Tensor) -> None:
    with pytest.raises(BadArgument, match="op @ v takes"):
        op @ bad
    with pytest.raises(BadArgument, match=r"op\.T @ u takes"):
        op.T @ torch.ones(33)


def test_multiples(op: sc.Operator, J: torch.Tensor) -> None:
    for half in (op / 2, op * 0.5, 0.5 * op, np.float64(0.5) * op, op / torch.tensor(2.0)):
        assert_matches(half, J / 2)
        torch.testing.assert_close(half.output, op.output / 2)
        torch.testing.assert_close(half.bias, op.bias / 2)
    u = torch.ones(op.shape[0], dtype=torch.float64)
    for adjoint in (op.T / 2, op.T * 0.5, 0.5 * op.T, (op / 2).T):
        torch.testing.assert_close(adjoint @ u, J.T @ u / 2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda op: op / 0, "divided by a number other than 0; got 0, an int"),
        (lambda op: op / op, "divided by a number other than 0; got an Operator"),
        (lambda op: op * op, "multiplied by a number; got an Operator.*composed by @"),
        (lambda op: op * float("nan"), "multiplied by a number; got nan"),
        (lambda op: op * True, "multiplied by a number; got True"),
        (lambda op: np.ones(3) * op, "multiplied by a number; got an ndarray of shape 3"),
        (lambda op: op + 1, "another operator; got 1, an int"),
        (lambda op: 1 + op, "another operator; got 1, an int"),
        (lambda op: op - None, "another operator; got None"),
        (lambda op: 1 - op, "another operator; got 1, an int"),
        (lambda op: 2 / op, "divides nothing; got 2, an int"),
        (lambda op: torch.ones(3) / op, "divides nothing; got a Tensor of shape 3"),
        (lambda op: np.ones(3) @ op, r"to its right; got ndarray. Use op\.T @ u"),
        (lambda op: torch.ones(3) @ op, "to its right; got Tensor"),
        (lambda op: op.T * "a", "multiplied by a number; got 'a'"),
    ],
)
def test_arithmetic_that_operators_do_not_have(op: sc.Operator, wrong: Callable[[sc.Operator], Any], said: str) -> None:
    with pytest.raises(BadArgument, match=said):
        wrong(op)


def test_a_sum_begins_with_any_zero_and_a_divisor_whose_inverse_is_infinite_is_refused(op: sc.Operator) -> None:
    assert sum([op], 0.0) is op
    with pytest.raises(BadArgument, match="divided by a number other than 0; got 1e-310"):
        op / 1e-310


def test_parts_that_do_not_depend_on_the_input_have_products_of_zero() -> None:
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(2, 2, requires_grad=True)
    parts = (2 * x, torch.ones(5), w * 2)
    y = torch.cat([part.flatten() for part in parts])
    for k in (1, 3):
        v = torch.randn(12, k)
        assert torch.equal(Graph(x, y, parts=parts).forward(v), Graph(x, y).forward(v))
        for other in (
            Graph(x, (w * 2).flatten()),
            Graph(x, torch.randn(4)),
            Graph(x, y[:4].detach(), parts=(w.detach(),)),
        ):
            assert torch.equal(other.forward(v), torch.zeros(4, k))
            assert torch.equal(other.adjoint(torch.randn(4, k)), torch.zeros(12, k))


def test_no_such_block(op: sc.Operator) -> None:
    with pytest.raises(BadArgument, match="one of the 11 tokens; got t = 11"):
        op.block(LENGTH)


def test_save_and_load(op: sc.Operator, J: torch.Tensor, tmp_path: Path) -> None:
    op.save(tmp_path / "deep" / "J.safetensors")
    again = sc.Operator.load(tmp_path / "deep" / "J.safetensors")
    for name in ("input", "output", "bias"):
        assert torch.equal(getattr(again, name), getattr(op, name))
    assert_matches(again, J)
    assert again.about == op.about
    assert os.listdir(tmp_path / "deep") == ["J.safetensors"]


def test_a_damaged_file_is_refused(op: sc.Operator, tmp_path: Path) -> None:
    file = tmp_path / "J.safetensors"
    op.save(file)
    file.write_bytes(file.read_bytes()[:-100])
    for path in (file, tmp_path / "none", tmp_path):
        with pytest.raises(DamagedFile, match="safetensors file that"):
            sc.Operator.load(path)


def test_no_room_leaves_nothing_behind(op: sc.Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "J.safetensors"
    file.write_text("the last good one")

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputFailed, match="No space left on device"):
        op.save(file)
    assert file.read_text() == "the last good one"
    assert os.listdir(tmp_path) == ["J.safetensors"]
    with pytest.raises(OutputFailed):
        op.save(file / "below a file")


def test_numbers_that_are_not_real(op: sc.Operator, J: torch.Tensor) -> None:
    v = torch.randn(32 * LENGTH, dtype=torch.complex128)
    with pytest.raises(BadArgument, match="complex"):
        op @ v
    np.testing.assert_allclose(op.to_scipy() @ v.numpy(), J.numpy() @ v.numpy(), atol=1e-11)


def test_copies(op: sc.Operator, J: torch.Tensor) -> None:
    for make in (copy.deepcopy, pickle.dumps):
        with pytest.raises(BadArgument, match="solidified"):
            make(op)
    assert_matches(pickle.loads(pickle.dumps(op.solidified())), J)
    assert (op @ torch.ones(32 * LENGTH, 0)).shape == (32, 0)


def test_weights_changed_in_place_are_noticed() -> None:
    lm = model_of("llama", "sdpa")
    op = sc.freeze(lm, prompt()).operator()
    with torch.no_grad():
        lm.model.model.layers[0].mlp.up_proj.weight.mul_(2)
    with pytest.raises(ReplayMismatch, match="changed in place since"):
        op.dense()


def test_errors_can_be_sent_to_another_process() -> None:
    error = BadArgument("A rule", "something", "Do this.")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (BadArgument, str(error))
