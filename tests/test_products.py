"""Matrix products of both libraries against float64."""

import pytest
import torch
from torch.testing import assert_close

from qwr_rllib.learning.accel import gemm as products

SHAPES = [(1, 1, 1), (7, 5, 3), (256, 17, 64), (33, 300, 6), (64, 64, 64)]


@pytest.fixture(params=["oneDNN", "MKL"])
def library(request, monkeypatch):
    if request.param == "oneDNN" and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "HAS_ONEDNN", request.param == "oneDNN")
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


needs_onednn = pytest.mark.skipif(not products.HAS_ONEDNN, reason="products are not oneDNN's here")


@needs_onednn
@pytest.mark.parametrize(("m", "k", "n"), [*SHAPES, (1, 256, 256), (256, 256, 1), (256, 256, 256)])
def test_the_number_of_threads_changes_nothing(m, k, n):
    before = torch.get_num_threads()
    left, right = torch.randn(m, k), torch.randn(k, n)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(products.matmul(left, right))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_onednn
def test_where_a_matrix_lies_in_memory_changes_nothing():
    memory, right = torch.randn(256 * 17 + 16), torch.randn(17, 256)
    values = torch.randn(256, 17)
    found = []
    for offset in (0, 1, 5, 16):
        left = memory[offset : offset + values.numel()].view_as(values).copy_(values)
        found.append(products.matmul(left, right))
    assert all(torch.equal(each, found[0]) for each in found)
