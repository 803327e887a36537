"""Numbers in tensors."""

import math

import pytest
import torch

from secant.numeric import is_finite, lengths


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1])
def test_lengths_are_norms_where_squares_overflow_or_vanish(dtype: torch.dtype, dim: int) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    info = torch.finfo(dtype)
    sizes = torch.tensor([1.0, info.max / 64, 8 * info.tiny, 0.0], dtype=torch.float64)
    rows = (x * sizes[:, None]).to(dtype)
    found = lengths(rows if dim == 1 else rows.T.contiguous(), dim)
    assert found.dtype == dtype
    true = torch.tensor([math.hypot(*row) for row in rows.tolist()], dtype=torch.float64).to(dtype)
    torch.testing.assert_close(found, true, rtol=4 * info.eps, atol=0)


def test_lengths_of_nothing_and_of_what_is_no_number() -> None:
    nan, inf = float("nan"), float("inf")
    assert lengths(torch.zeros(3, 0), 1).tolist() == [0, 0, 0]
    assert lengths(torch.tensor([[inf, 1.0], [3.0, 4.0]]), 1).tolist() == [inf, 5]
    assert lengths(torch.tensor([[nan, 1.0]]), 1).isnan().all()


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_one_element_that_is_not_finite_is_seen(odd: float, dtype: torch.dtype) -> None:
    x = torch.ones(5, 7)
    assert is_finite(x.to(dtype))
    assert is_finite(x[:0].to(dtype))
    x[3, 2] = odd
    assert not is_finite(x.to(dtype))
