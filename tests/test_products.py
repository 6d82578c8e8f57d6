"""Matrix products by either library against float64."""

import pytest
import torch
from torch.testing import assert_close

from qwr_rllib import products

SHAPES = [(1, 1, 1), (7, 5, 3), (256, 17, 64), (33, 300, 6), (64, 64, 64)]


@pytest.fixture(params=["oneDNN", "MKL"])
def library(request, monkeypatch):
    if request.param == "oneDNN" and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "_onednn_is_good", lambda: request.param == "oneDNN")
    return request.param


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_matmul(library, m, k, n):
    for left in (torch.randn(m, k), torch.randn(k, m).t()):
        for right in (torch.randn(k, n), torch.randn(n, k).t()):
            found = products.matmul(left, right)
            assert_close(found, (left.double() @ right.double()).float(), rtol=1e-5, atol=1e-4)
            assert found.is_contiguous()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_linear(library, m, k, n, relu):
    inputs, weight, bias = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
    expected = inputs.double() @ weight.double().t() + bias.double()
    expected = expected.clamp(min=0) if relu else expected
    found = products.linear(inputs, weight, bias, relu)
    assert_close(found, expected.float(), rtol=1e-5, atol=1e-4)


def test_nan_stays_nan(library):
    inputs = torch.full((4, 3), float("nan"))
    assert products.linear(inputs, torch.ones(2, 3), torch.ones(2), relu=True).isnan().all()


def test_other_types_are_left_to_pytorch(library):
    ones = torch.ones(4, 4, dtype=torch.float64)
    assert products.matmul(ones, ones).dtype == torch.float64
    assert not products.takes_onednn(ones)


def test_it_is_measured_once_and_draws_no_random_numbers():
    products._onednn_is_good.cache_clear()
    before = torch.get_rng_state()
    found = {products.takes_onednn(torch.ones(2, 2)) for _ in range(3)}
    assert len(found) == 1
    assert products._onednn_is_good.cache_info().misses == 1
    assert torch.equal(torch.get_rng_state(), before)
