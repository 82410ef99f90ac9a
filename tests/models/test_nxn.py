"""Invertible n x n convolutions: what a place sees, their determinant, and an inverse that is one or says so."""

import pytest
import torch
from tiny_models import noise_of, perturb, some_images, tiny

from oodbench.errors import OodbenchError
from oodbench.models.flows.nxn import NxNFlow
from oodbench.models.flows.transforms.causal import CausalConvolution


def convolution(channels: int = 3, size: int = 3, reverse: bool = False, scale: float = 0.5) -> CausalConvolution:
    layer = CausalConvolution(channels, size, reverse)
    perturb(layer, scale)
    return layer.double()


def jacobian_of(layers: list[CausalConvolution], shape: tuple[int, int, int]) -> torch.Tensor:
    def through(flat: torch.Tensor) -> torch.Tensor:
        h = flat.reshape(1, *shape)
        for layer in layers:
            h = layer(h, noise_of(1))[0]
        return h.flatten()

    start = torch.randn(shape, dtype=torch.float64).flatten()
    return torch.autograd.functional.jacobian(through, start)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [3, 5])
def test_the_jacobian_is_triangular_and_its_determinant_exact(size, reverse):
    shape = (4, 5, 3)
    layer = convolution(3, size, reverse)
    jacobian = jacobian_of([layer], shape)
    other_side = jacobian.tril(-1) if reverse else jacobian.triu(1)
    assert float(other_side.abs().max()) == 0
    assert float((jacobian - jacobian.diag().diag()).abs().max()) > 0.05
    log_det = layer(torch.zeros(1, *shape, dtype=torch.float64), noise_of(1))[1].detach()
    assert float(log_det) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), rel=1e-11)


def test_both_orders_together_see_the_whole_neighbourhood():
    jacobian = jacobian_of([convolution(2), convolution(2, reverse=True)], (5, 5, 2)).reshape(5, 5, 2, 5, 5, 2)
    assert (jacobian[2, 2][:, 1:4, 1:4].abs() > 1e-9).all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [3, 5])
def test_the_inverse_undoes_it(size, reverse):
    layer = convolution(4, size, reverse)
    h = torch.randn(3, 6, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer.inverse(layer(h, noise_of(3))[0], noise_of(3)), h, rtol=0, atol=1e-8)
    torch.testing.assert_close(layer(layer.inverse(h, noise_of(3)), noise_of(3))[0], h, rtol=0, atol=1e-8)


def test_a_fresh_one_is_the_identity():
    h = torch.randn(2, 4, 4, 3)
    y, log_det = CausalConvolution(3, 3)(h, noise_of(2))
    assert torch.equal(y, h)
    assert float(log_det.detach()) == 0


def test_an_inverse_that_rounding_destroys_raises():
    layer = convolution(2, scale=0.0).float()
    with torch.no_grad():
        layer.weight.fill_(20.0)
    with pytest.raises(OodbenchError, match="inverse of a convolution misses"):
        layer.inverse(torch.randn(2, 16, 16, 2), noise_of(2))
    with torch.no_grad():
        layer.log_diagonal.fill_(-1e4)  # exp is 0: the kernel has no inverse
    with pytest.raises(OodbenchError, match="inverse of a convolution misses"):
        layer.inverse(torch.randn(2, 4, 4, 2), noise_of(2))


@pytest.mark.parametrize("size", [0, 1, 2, 4, -3])
def test_a_kernel_without_centre_or_neighbours_is_told_in_one_sentence(size):
    with pytest.raises(OodbenchError, match=f"{size}x{size} has not both: use an odd size"):
        NxNFlow((3, 8, 8), levels=2, kernel=size)


def test_the_flows_log_determinant_is_that_of_its_jacobian_and_it_has_an_inverse():
    shape = (2, 4, 4)
    flow = tiny("nxn-flow", shape, double=True)
    x, noise = some_images(1, shape), noise_of(1)

    def latents(flat: torch.Tensor) -> torch.Tensor:
        return torch.cat([e.flatten() for e in flow.flow(flat.reshape(1, 4, 4, 2), noise)[0]])

    h = flow.dequantise(x, noise)
    jacobian = torch.autograd.functional.jacobian(latents, h.flatten())
    found = flow.flow(h, noise)[1].sum().detach()
    assert float(found) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), rel=1e-11)
    torch.testing.assert_close(flow.flow.inverse(flow.flow(h, noise)[0], noise), h, rtol=0, atol=1e-8)
