"""Posteriors that flows refine: planar, radial and Householder steps, and inverse autoregressive ones."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from tiny_models import noise_of, some_images, tiny
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import Normal

from oodbench.models.vae.flow_steps import STEPS, Householder, Planar, Radial, Step
from oodbench.models.vae.iaf import GatedStep, InverseAutoregressiveVAE
from oodbench.models.vae.nf import FELT, NormalizingFlowVAE
from oodbench.models.vae.vae import DenseVAE

SHAPE = (1, 4, 4)
VARIANTS = {
    **{flow: ("nf-vae", {"flow": flow, "steps": 4, "context": 5}) for flow in STEPS},
    "iaf": ("iaf-vae", {"steps": 3, "context": 5, "width": 12}),
}
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=list(STEPS))
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model_of(variant: str, latents: int) -> DenseVAE:
    name, config = VARIANTS[variant]
    model = tiny(name, SHAPE, double=True, latents=latents, hidden=6, **config)
    assert isinstance(model, DenseVAE)
    return model.requires_grad_(False)


def increasing(f: Callable[[Tensor], Tensor], value: Tensor, low: float, high: float) -> Tensor:
    """Where an increasing function of single numbers takes these values, by bisection."""
    low, high = torch.full_like(value, low), torch.full_like(value, high)
    for _ in range(55):
        middle = (low + high) / 2
        below = f(middle) < value
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def inverse(step: Step, y: Tensor, theta: Tensor) -> Tensor:
    """The only point (N, d) that the step takes to y, found in the one direction in which the step is not known."""
    d = y.shape[1]
    if isinstance(step, Planar):
        w = theta[d : 2 * d]
        far = theta.clone()
        far[-1] = 1e6  # where tanh is 1, the step adds u'
        u = step(torch.zeros_like(y[:1]), far)[0][0]
        along = increasing(lambda a: a + (w @ u) * torch.tanh(a + theta[-1]), y @ w, -100, 100)
        return y - torch.tanh(along + theta[-1])[:, None] * u
    if isinstance(step, Radial):
        centre, axis = theta[:d], torch.eye(1, d, dtype=y.dtype)
        away = y - centre
        distance = away.norm(dim=1)
        radius = increasing(lambda r: (step(centre + r[:, None] * axis, theta)[0] - centre)[:, 0], distance, 0, 100)
        return centre + away * (radius / distance)[:, None]
    assert isinstance(step, Householder)
    return step(y, theta)[0]


@every_step
@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_volume_of_a_step_is_autograds(step: Step, d: int) -> None:
    y, theta = 2 * numbers(20, d), 2 * numbers(20, step.size(d), seed=1)
    _, log_det = step(y, theta)
    for i in range(20):
        of_one = jacobian(lambda one, i=i: step(one, theta[i])[0], y[i])
        assert float(log_det[i]) == pytest.approx(float(of_one.det().abs().log()), abs=1e-10)


@every_step
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1e-2, 1.0, 30.0, 1e4])
def test_a_step_is_invertible_whatever_its_parameters(step: Step, scale: float) -> None:
    for seed in range(30):
        theta, y = scale * numbers(step.size(3), seed=seed), numbers(40, 3, seed=seed + 100)
        mapped, log_det = step(y, theta)
        assert log_det.isfinite().all()
        if isinstance(step, Planar):
            w, far = theta[3:6], theta.clone()
            far[-1] = 1e9
            u = step(torch.zeros(3).double(), far)[0]
            assert float(w @ u) >= -1 - 1e-9 * scale**2
        elif isinstance(step, Radial):
            radius = torch.linspace(0, 50, 500).double()[:, None]
            line = step(theta[:3] + radius * torch.eye(3)[0].double(), theta)[0] - theta[:3]
            assert (line[:, 0].diff() > 0).all()
            torch.testing.assert_close(line[:, 1:], torch.zeros_like(line[:, 1:]), rtol=0, atol=1e-9 * max(1, scale))
        else:
            assert float(log_det.abs().max()) == 0
            torch.testing.assert_close(step(mapped, theta)[0], y, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(mapped.norm(dim=1), y.norm(dim=1), rtol=1e-10, atol=0)


def test_float32_keeps_volumes_finite_where_slopes_all_but_vanish() -> None:
    y = torch.zeros(1, 2)
    planar = torch.tensor([-1e4, 0.0, 1.0, 0.0, 0.0])  # w.u' as near to -1 as it comes, at tanh's steepest place
    radial = torch.tensor([0.0, 0.0, 1.0, -1e4])
    for step, theta in ((Planar(), planar), (Radial(), radial)):
        assert -25 < float(step(y, theta)[1]) < -5


def test_planar_steps_are_the_papers() -> None:
    """f(y) = y + u' tanh(w.y + b), u' by Appendix A.1 of u + a w / |w|^2 with log(1 + e^a) = 1."""
    d = 4
    theta, y = numbers(2 * d + 1), numbers(7, d, seed=1)
    u, w, b = theta[:d], theta[d : 2 * d], theta[-1]
    shifted = u + math.log(math.e - 1) * w / (w @ w)
    m = torch.log1p((w @ shifted).exp()) - 1
    corrected = shifted + (m - w @ shifted) * w / (w @ w)
    expected = y + torch.tanh(y @ w + b)[:, None] * corrected
    torch.testing.assert_close(Planar()(y, theta)[0], expected, rtol=0, atol=1e-3)  # but for the least slope


@every_variant
def test_log_q_is_the_gaussians_less_autograds_volume(variant: str) -> None:
    model, x, count = model_of(variant, 3), some_images(4, SHAPE), 5
    mean, std = model.encode(x)
    z, log_q = model.posterior(x, noise_of(4)).draw(noise_of(4).expand(0, count), count)
    e = noise_of(4).expand(0, count).normal((3,), "latent").double().reshape(4, count, 3)
    for i, k in itertools.product(range(4), range(count)):
        posterior = model.posterior(x[i : i + 1], noise_of(1))

        def refine(start: Tensor, posterior=posterior) -> Tensor:
            return posterior.refine(start[None, None])[0][0, 0]

        start = mean[i] + std[i] * e[i, k]
        torch.testing.assert_close(z[i * count + k], refine(start), rtol=1e-10, atol=1e-12)
        volume = jacobian(refine, start).det().abs().log()
        expected = Normal(mean[i], std[i]).log_prob(start).sum() - volume
        assert float(log_q[i * count + k]) == pytest.approx(float(expected), abs=1e-9)


@every_variant
def test_in_two_dimensions_q_integrates_to_one(variant: str) -> None:
    """On a grid of z, each taken back to the Gaussian's draw by the test's own inverse."""
    model, x = model_of(variant, 2), some_images(1, SHAPE)
    mean, std, context = model.encode_with_context(x)
    sides = [torch.linspace(float(c) - 14, float(c) + 14, 491).double() for c in mean[0]]
    z = torch.cartesian_prod(*sides)
    if isinstance(model, NormalizingFlowVAE):
        unit = std if model.step.standardised else 1.0
        start = (z - mean) / unit
        for theta in reversed(model.steering(FELT * context).reshape(model.steps, -1)):
            start = inverse(model.step, start, theta)
        start = mean + unit * start
    else:
        assert isinstance(model, InverseAutoregressiveVAE)
        start, given = z, context.expand(len(z), -1)
        for step, order in reversed(list(zip(model.steps, ((0, 1), (1, 0), (0, 1)), strict=True))):
            before = torch.zeros_like(start)
            for i in order:  # what it does to number i depends on the numbers before it alone
                at, _ = step(before, given)
                moved, _ = step(before + torch.eye(2).double()[i], given)
                before[:, i] = ((start - at) / (moved - at))[:, i]
            start = before
    back, log_det = model.posterior(x, noise_of(1)).refine(start[None])
    torch.testing.assert_close(back[0], z, rtol=0, atol=1e-8)
    q = (Normal(mean, std).log_prob(start).sum(1) - log_det[0]).exp().reshape(491, 491)
    assert float(q[0].max() + q[-1].max() + q[:, 0].max() + q[:, -1].max()) < 1e-6
    spacing = 28 / 490
    assert float(q.sum()) * spacing**2 == pytest.approx(1, abs=3e-3)  # radial steps have a cusp


@every_variant
def test_training_starts_at_the_posterior_of_the_vae(variant: str) -> None:
    name, config = VARIANTS[variant]
    model, plain = tiny(name, SHAPE, scale=0.0, latents=3, **config), tiny("vae-mlp", SHAPE, scale=0.0, latents=3)
    x, count = some_images(30, SHAPE), 4
    noise = noise_of(30).expand(0, count)
    with torch.no_grad():
        for each in (model, plain):
            each.calibrate(x, x)
        mean, std = (t.repeat_interleave(count, 0) for t in plain.encode(x))
        z, log_q = model.posterior(x, noise_of(30)).draw(noise, count)
        torch.testing.assert_close(log_q, Normal(mean, std).log_prob(z).sum(1), rtol=1e-4, atol=1e-4)
        if variant != "householder":  # which mirrors the draws
            torch.testing.assert_close(z, plain.posterior(x, noise_of(30)).draw(noise, count)[0], rtol=1e-4, atol=1e-4)
    model.loss(x, noise_of(30)).mean().backward()  # and from there gradients lead away
    of_flow = model.steering if isinstance(model, NormalizingFlowVAE) else model.steps[0].network.last
    assert float(of_flow.bias.grad.abs().max()) > 1e-4


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("d", [1, 2, 6])
def test_a_gated_step_sees_the_context_and_the_numbers_before(d: int, reverse: bool) -> None:
    torch.manual_seed(0)
    step = GatedStep(d, 3, 90, reverse).double().requires_grad_(False)
    for parameter in step.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    z, context = numbers(1, d), numbers(1, 3, seed=1)
    y, log_det = step(z, context)
    of_z = jacobian(lambda one: step(one, context)[0][0], z)[:, 0]
    of_context = jacobian(lambda one: step(z, one)[0][0], context)[:, 0]
    triangle = of_z.triu(1) if not reverse else of_z.tril(-1)
    assert float(triangle.abs().max()) == 0
    other = of_z.tril(-1) if not reverse else of_z.triu(1)
    assert int((other.abs() > 0).sum()) == d * (d - 1) // 2  # all of those before, no more
    assert (of_context.abs() > 0).all()
    gate = of_z.diagonal()
    assert (gate > 0).all()
    assert (gate < 1).all()
    assert float(log_det) == pytest.approx(float(gate.log().sum()), abs=1e-12)
    shift = step.network(torch.cat([context, z], 1))[0, :d]
    torch.testing.assert_close(y[0], gate * z[0] + (1 - gate) * shift)


def test_orders_alternate() -> None:
    model = model_of("iaf", 3)
    assert isinstance(model, InverseAutoregressiveVAE)
    z, context = numbers(1, 3), numbers(1, 5, seed=1)
    for number, step in enumerate(model.steps):
        of_z = jacobian(lambda one, step=step: step(one, context)[0][0], z)[:, 0]
        assert (float(of_z[2, 0].abs()) > 0, float(of_z[0, 2].abs()) > 0) == (number % 2 == 0, number % 2 == 1)
