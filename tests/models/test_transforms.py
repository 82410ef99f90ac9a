"""The layers of flows, each by its own mathematics."""

import math

import pytest
import torch
from scipy.fft import dctn
from tiny_models import noise_of, perturb
from torch import Tensor
from torch.autograd.functional import jacobian

from oodbench.errors import OodbenchError
from oodbench.models.base import Likelihood
from oodbench.models.flows.networks import MLP
from oodbench.models.flows.transforms.autoregressive import Autoregressive
from oodbench.models.flows.transforms.checkerboard import Checkerboard
from oodbench.models.flows.transforms.cosine import Cosine
from oodbench.models.flows.transforms.elementwise import Additive, Affine, Elementwise, Sigmoid
from oodbench.models.flows.transforms.inverse import Inverse
from oodbench.models.flows.transforms.logistic import LogisticToNormal
from oodbench.models.flows.transforms.mixing import Mixing
from oodbench.models.flows.transforms.permutation import Permutation, interleave, reverse, swap, swap_halves
from oodbench.models.flows.transforms.prior import Standardise
from oodbench.models.flows.transforms.residual import Residual
from oodbench.models.flows.transforms.spline import RationalQuadratic
from oodbench.models.flows.transforms.squeeze import Squeeze
from oodbench.models.nn import Linear, networks

ELEMENTS = {
    "additive": Additive(),
    "sigmoid": Sigmoid(),
    "affine": Affine(),
    "spline": RationalQuadratic(5, 2.5),
    "two bins": RationalQuadratic(2, 0.5),
}
every_element = pytest.mark.parametrize("element", ELEMENTS.values(), ids=list(ELEMENTS))


def states(*shape: int, seed: int = 0) -> Tensor:
    """Float64 states of unit size."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def steered(element: Elementwise, n: int, c: int) -> tuple[Tensor, Tensor]:
    """(x (n, c) on both sides of any bound, theta (n, parameters * c))."""
    return 2 * states(n, c), 2 * states(n, element.parameters * c, seed=1)


@every_element
def test_an_elementwise_map_is_increasing_with_the_slope_that_it_says(element):
    x, theta = steered(element, 50, 4)
    x.requires_grad_()
    y, volume = element.forward(x, theta)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope > 0).all()
    torch.testing.assert_close(volume.expand(50), slope.log().sum(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(element.inverse(y, theta), x, rtol=0, atol=1e-9)


@every_element
@torch.no_grad()
def test_each_number_is_mapped_by_its_own_parameters(element):
    x, theta = steered(element, 3, 4)
    y, _ = element.forward(x, theta)
    for i in range(4):
        torch.testing.assert_close(element.forward(x[:, i : i + 1], theta[:, i::4])[0], y[:, i : i + 1])
    images = element.forward(x.reshape(1, 3, 1, 4), theta.reshape(1, 3, 1, -1))
    torch.testing.assert_close(images[0].reshape(3, 4), y)
    torch.testing.assert_close(images[1].expand(1), element.forward(x, theta)[1].expand(3).sum(0, keepdim=True))


@torch.no_grad()
def test_a_spline_is_the_identity_outside_its_interval_and_without_steering():
    spline = RationalQuadratic(5, 2.5)
    x, theta = steered(spline, 200, 4)
    y, _ = spline.forward(x, theta)
    outside = x.abs() >= 2.5
    assert 0.1 < float(outside.double().mean()) < 0.5
    assert torch.equal(y[outside], x[outside])
    assert float((y - x)[~outside].abs().max()) > 0.5
    assert (y[~outside].abs() < 2.5).all()
    still, volume = spline.forward(x, torch.zeros_like(theta))
    torch.testing.assert_close(still, x, rtol=0, atol=1e-12)
    assert float(volume.abs().max()) < 1e-12


def test_a_spline_and_its_slope_are_continuous_and_each_bin_is_reached():
    spline = RationalQuadratic(5, 2.5)
    theta = 0.7 * states(1, spline.parameters, seed=4)
    x = torch.linspace(-2.6, 2.6, 100_001, dtype=torch.float64)[:, None].requires_grad_()
    y, _ = spline.forward(x, theta.expand(len(x), -1))
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert float(y.detach().diff(dim=0).max()) < 1e-2
    jumps = slope.diff(dim=0).abs()
    assert float(jumps.max()) < 1e-3 * float(slope.max())
    widths = 5 * (1e-3 + (1 - 5e-3) * theta[0, :5].softmax(0))
    heights = 5 * (1e-3 + (1 - 5e-3) * theta[0, 5:10].softmax(0))
    knots = widths.cumsum(0)[:-1, None] - 2.5
    at, _ = spline.forward(knots, theta.expand(4, -1))
    torch.testing.assert_close(at[:, 0], heights.cumsum(0)[:-1] - 2.5, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [-2.5, 2.5, 0.0, -1e30, 1e30])
def test_a_spline_has_finite_gradients_everywhere(value):
    spline = RationalQuadratic(4, 2.5)
    for seed, size in ((0, 0.0), (1, 1.0), (2, 100.0)):
        x = torch.full((2, 3), value, requires_grad=True)
        theta = (size * states(2, 3 * spline.parameters, seed=seed).float()).requires_grad_()
        for out in (*spline.forward(x, theta), spline.inverse(x, theta)):
            assert out.isfinite().all()
            for gradient in torch.autograd.grad(out.sum(), (x, theta), retain_graph=True):
                assert gradient.isfinite().all()


@torch.no_grad()
def test_a_spline_inverts_in_single_precision():
    spline = RationalQuadratic(8, 3.0)
    theta = 2 * states(4000, spline.parameters, seed=6).float()
    y = (6 * torch.rand(4000, 1, generator=torch.Generator().manual_seed(2))) - 3
    x = spline.inverse(y, theta)
    assert (x.abs() <= 3).all()
    assert float((spline.forward(x, theta)[0] - y).abs().max()) < 5e-4


@pytest.mark.parametrize(
    ("dimensions", "hidden", "reach"), [(1, 4, 0), (2, 3, 0), (6, 40, 0), (9, 4, 0), (9, 1, 2), (6, 1, 5), (4, 1, 9)]
)
@every_element
def test_each_number_of_an_autoregressive_layer_depends_on_all_before_it_and_on_no_other(
    dimensions, hidden, reach, element
):
    layer = Autoregressive(dimensions, hidden, 1, element, reach)
    perturb(layer, 2.0)
    layer.double()
    h = 0.3 * states(dimensions)
    theta = jacobian(lambda t: layer.theta(t[None])[0], h).reshape(element.parameters, dimensions, dimensions)
    assert float(theta.triu().abs().max()) == 0
    if hidden >= dimensions > 1:
        before = theta.abs().amax(0).tril(-1)
        assert (before[torch.ones(dimensions, dimensions).tril(-1).bool()] > 0).double().mean() > 0.9
    for back in range(1, min(reach, dimensions - 1) + 1):
        assert (theta.diagonal(-back, 1, 2).abs().amax(0) > 0).all()
    whole = jacobian(lambda t: layer(t[None], noise_of(1))[0][0], h)
    volume = layer(h[None], noise_of(1))[1].expand(1)[0]
    assert float(volume.detach()) == pytest.approx(float(whole.diagonal().log().sum()), abs=1e-10)
    assert float(whole.triu(1).abs().max()) == 0


@every_element
@torch.no_grad()
def test_an_inverse_layer_is_the_layer_turned_round(element):
    layer = Autoregressive(5, 12, 1, element)
    perturb(layer, 1.0)
    turned, noise = Inverse(layer.double()), noise_of(7)
    h = states(7, 5)
    y, volume = layer(h, noise)
    again, back = turned(y, noise)
    torch.testing.assert_close(again, h, rtol=0, atol=1e-9)
    torch.testing.assert_close(back, -volume, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turned.inverse(h, noise), y, rtol=0, atol=0)


def test_an_inverse_layer_is_as_exact_as_the_layer_and_refuses_what_it_refuses():
    block = Residual((1, 1, 2), 4, 0.9, "series", 2, "block")
    assert Inverse(block).volume is Likelihood.ESTIMATE
    assert Inverse(Autoregressive(5, 12, 1, Affine())).volume is Likelihood.EXACT
    with pytest.raises(OodbenchError, match="on 5 numbers cannot take"):
        Inverse(Autoregressive(5, 12, 1, Affine())).shape_after((4,))


class Missing(Autoregressive):
    """Whose inverse of some images is a little beside the mark."""

    def inverse(self, y, noise):
        return super().inverse(y, noise) + torch.tensor([0.0, 0.0, 0.01])[:, None]


@torch.no_grad()
def test_an_inverse_that_misses_is_an_error_and_no_density():
    h, noise = states(3, 5).float(), noise_of(3)
    Inverse(Autoregressive(5, 12, 1, Affine()))(h, noise)
    with pytest.raises(OodbenchError, match=r"inverse of a layer misses its aim by up to 0\.01 in 1 of 3 images"):
        Inverse(Missing(5, 12, 1, Affine()))(h, noise)
    h[2] = math.nan  # what is no number is none afterwards, and counted as such
    assert Inverse(Missing(5, 12, 1, Affine()))(h, noise)[0][2].isnan().all()


@torch.no_grad()
@pytest.mark.parametrize("log_diagonal", [-20.0, -1e4])
def test_the_inverse_of_a_matrix_that_is_all_but_singular_is_an_error(log_diagonal):
    layer, y, noise = Mixing(4, torch.Generator().manual_seed(0)), states(3, 4).float(), noise_of(3)
    torch.testing.assert_close(layer(layer.inverse(y, noise), noise)[0], y)
    layer.log_diagonal[1] = log_diagonal
    with pytest.raises(OodbenchError, match="inverse of a 1x1 convolution misses its aim"):
        layer.inverse(y, noise)


def test_permutations_move_numbers_and_their_inverses_move_them_back():
    h, noise = states(3, 2, 7), noise_of(3)
    for layer in (
        reverse(7),
        swap_halves(7),
        swap(2, 5),
        interleave(7),
        Permutation(torch.tensor([2, 0, 1, 6, 4, 5, 3])),
    ):
        y, volume = layer(h, noise)
        assert float(volume) == 0
        assert not torch.equal(y, h)
        assert torch.equal(y.sort(-1)[0], h.sort(-1)[0])
        assert torch.equal(layer.inverse(y, noise), h)
    assert torch.equal(reverse(7)(h, noise)[0], h.flip(-1))
    assert torch.equal(swap_halves(6)(h[..., :6], noise)[0], torch.cat([h[..., 3:6], h[..., :3]], -1))
    assert torch.equal(swap(2, 5)(h, noise)[0], torch.cat([h[..., 2:], h[..., :2]], -1))
    assert interleave(7).order.tolist() == [0, 2, 4, 6, 1, 3, 5]
    # What the second of two couplings of the first 3 of 7 keeps is among what the first one changed.
    assert swap_halves(7).order[:3].min() >= 3


def test_checkerboard_halves_are_the_black_and_the_white_pixels():
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    colour = ((rows + columns) % 2).double()[None, ..., None].expand(2, -1, -1, 3)
    y, volume = Checkerboard(3)(colour, noise_of(2))
    assert y.shape == (2, 2, 3, 12)
    assert Checkerboard(3).shape_after((4, 6, 3)) == (2, 3, 12)
    assert (y[..., :6] == 0).all()
    assert (y[..., 6:] == 1).all()
    assert float(volume) == 0
    h = states(2, 4, 6, 3)
    assert torch.equal(Checkerboard(3).inverse(Checkerboard(3)(h, noise_of(2))[0], noise_of(2)), h)


@pytest.mark.parametrize("shape", [(4, 6, 3), (8, 8, 1), (5, 1, 2)])
def test_the_cosine_transform_is_a_rotation_of_the_image(shape):
    layer, noise = Cosine(shape).double(), noise_of(3)
    h = states(3, *shape)
    y, volume = layer(h, noise)
    expected = torch.from_numpy(dctn(h.numpy(), axes=(1, 2, 3), norm="ortho"))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)  # the cosines are stored in single precision
    torch.testing.assert_close(layer.inverse(y, noise), h, rtol=0, atol=1e-13)
    size = h[0].numel()
    matrix = jacobian(lambda t: layer(t[None], noise_of(1))[0][0], h[0]).reshape(size, size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size).double(), rtol=0, atol=1e-13)
    assert float(volume) == 0
    assert not layer.state_dict()


def test_cosines_are_nearly_the_principal_components_of_a_stationary_image():
    """Its covariance 0.9^(distance along the rows + along the columns) with 0.8 between channels becomes diagonal."""
    rows, columns = (0.9 ** (torch.arange(n)[:, None] - torch.arange(n)).abs().double() for n in (8, 6))
    channels = 0.2 * torch.eye(3).double() + 0.8
    covariance = torch.kron(torch.kron(rows, columns), channels)
    layer = Cosine((8, 6, 3)).double()
    half = layer(covariance.reshape(-1, 8, 6, 3), noise_of(len(covariance)))[0].flatten(1)
    after = layer(half.T.reshape(-1, 8, 6, 3), noise_of(len(covariance)))[0].flatten(1)

    def lost(matrix):  # nats by which independent Gaussians are worse than the Gaussian with this covariance
        return float(matrix.diagonal().log().sum() - torch.linalg.slogdet(matrix)[1]) / 2

    assert lost(covariance) > 250
    assert 0 < lost(after) < 0.02 * lost(covariance)


@torch.no_grad()
def test_a_measured_start_trusts_no_spread_far_below_the_others():
    h = states(400, 3) * torch.tensor([2.0, 0.001, 0.5]) + 7
    for floor, least in ((0.0, 0.001), (0.1, 0.1 * (4.25 / 3) ** 0.5)):
        layer = Standardise((3,), measured=True, floor=floor)
        layer.initialise(h)
        torch.testing.assert_close(layer.mean, torch.full((3,), 7.0), rtol=0, atol=0.3)
        torch.testing.assert_close(layer.log_std.exp(), torch.tensor([2.0, least, 0.5]), rtol=0.1, atol=0)


@torch.no_grad()
def test_a_linear_layer_is_torchs_in_the_asked_for_precision_and_masked():
    mask = torch.ones(4, 6).tril().bool()
    layer = Linear(6, 4, mask=mask)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x), x @ (layer.weight * mask).T + layer.bias)
    with networks(torch.bfloat16, fold=True):
        assert layer.blocks_now() is layer.blocks_now()
        rough = layer(x)
        assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert rough.dtype == torch.float32
    assert torch.equal(rough, rough.bfloat16().float())
    assert 0 < float((rough - layer(x)).abs().max()) < 0.1
    assert float(MLP(6, 8, 3, 2)(x).abs().max()) == 0
    assert set(layer.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("build", "number"),
    [
        (lambda: RationalQuadratic(1), "1"),
        (lambda: RationalQuadratic(1000), "1000"),
        (lambda: RationalQuadratic(4, 0.0), "0"),
        (lambda: Autoregressive(0, 3, 1, Affine()), "0"),
        (lambda: Autoregressive(3, 0, 1, Affine()), "0"),
        (lambda: Autoregressive(3, 5, 1, Affine(), -1), "-1"),
        (lambda: Autoregressive(3, 5, 1, Affine()).shape_after((4,)), "4"),
        (lambda: Permutation(torch.tensor([0, 0, 1])), "0, 0, 1"),
        (lambda: reverse(5).shape_after((4, 4, 3)), "3"),
        (lambda: Checkerboard(1).shape_after((3, 4, 1)), "3"),
        (lambda: Cosine((4,)), "4"),
        (lambda: Cosine((4, 4, 3)).shape_after((4, 4, 1)), "1"),
        (lambda: Inverse(OneWay()), "OneWay"),
    ],
)
def test_what_a_layer_cannot_do_is_told_in_one_sentence(build, number):
    with pytest.raises(OodbenchError, match=r"^[^\n]*\.$") as caught:
        build()
    assert number in str(caught.value)


class OneWay(Squeeze):
    """A layer that declares no inverse."""

    bijective = False


def test_a_logistic_base_has_the_logistic_density_and_its_inverse():
    from scipy.stats import logistic

    h = torch.cat([torch.linspace(-50, 50, 401), torch.tensor([0.0, 59.9, 60.1, -700.0, 1e5])]).double()[:, None]
    h.requires_grad_()
    layer, noise = LogisticToNormal(), noise_of(len(h))
    z, volume = layer(h, noise)
    log_normal = -0.5 * (z[:, 0].square() + math.log(2 * math.pi))
    expected = torch.from_numpy(logistic(scale=math.sqrt(3) / math.pi).logpdf(h.detach()[:, 0].numpy()))
    torch.testing.assert_close((log_normal + volume).detach(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.inverse(z, noise), h, rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(z.sum(), h, retain_graph=True)
    torch.testing.assert_close(slope[:, 0].log(), volume.detach(), rtol=1e-7, atol=1e-7)
    (gradient,) = torch.autograd.grad((log_normal + volume).sum(), h)
    c = math.pi / math.sqrt(3)
    torch.testing.assert_close(gradient, -c * (c * h / 2).tanh(), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_logistic_base_is_finite_and_monotone_in_single_precision():
    h = torch.linspace(-300, 300, 6001)[:, None]
    z, volume = LogisticToNormal()(h, noise_of(len(h)))
    assert z.isfinite().all()
    assert volume.isfinite().all()
    assert (z[:, 0].diff() > 0).all()
    torch.testing.assert_close(LogisticToNormal().inverse(z, noise_of(len(h))), h, rtol=2e-5, atol=2e-5)
