"""Rectangular flows: log det J'J against dense Jacobians, and training's stochastic gradient against the exact one."""

import math

import pytest
import torch
from tiny_models import noise_of, some_images, tiny
from torch import Tensor

from oodbench.errors import OodbenchError
from oodbench.models.flows.flow import standard_normal
from oodbench.models.manifold.conjugate_gradients import conjugate_gradients
from oodbench.models.manifold.jacobian import jacobian_columns, log_volume
from oodbench.models.manifold.rectangular import volume_surrogate

SHAPE = (1, 4, 4)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_column_is_what_a_dense_jacobian_says():
    model = tiny("rectangular", SHAPE, double=True)
    x, noise = some_images(4, SHAPE), noise_of(4)
    columns = model.statistics(x, noise)
    pixels, z = model.encode(x, noise)
    for i in range(4):
        row = noise.rows(slice(i, i + 1))
        j = torch.autograd.functional.jacobian(lambda t, row=row: model.decode(t[None], row)[0], z[i].detach())
        volume = 0.5 * torch.linalg.slogdet(j.T @ j)[1]
        (base,), volumes = model.prior(z[i : i + 1], row)
        latent = (standard_normal(base) + volumes.sum(1))[0]
        off = (pixels[i] - model.decode(z[i : i + 1], row)[0]).square().sum()
        expected = {
            "log_volume": volume,
            "log_p_latent": latent,
            "log_p_manifold": latent - volume,
            "reconstruction": -model.weight * off,
            "log_p_ambient": latent - volume - model.weight * off,
            "log_px": latent - volume - model.weight * off,
            "latent_norm": base.norm(),
        }
        assert set(expected) == set(model.columns)
        for name, value in expected.items():
            assert float(columns[name][i].detach()) == pytest.approx(float(value.detach()), rel=1e-9), name
    assert float(columns["log_volume"].detach().std()) > 1e-3


def test_the_way_back_undoes_the_embedding():
    model = tiny("rectangular", SHAPE, double=True, scale=0.3)
    z, noise = normal(6, model.latents), noise_of(6)
    image = model.decode(z, noise).reshape(6, 4, 4, 1)
    torch.testing.assert_close(model.embedding(image, noise)[0][0], z, rtol=0, atol=1e-9)


def test_the_stochastic_gradient_has_the_exact_one_as_its_mean():
    model = tiny("rectangular", SHAPE, double=True, latents=3)
    x, noise = some_images(1, SHAPE), noise_of(1)
    parameters = [p for name, p in model.named_parameters() if name.startswith("embedding")]
    z = model.encode(x, noise)[1]
    exact = torch.autograd.grad(model.decode_with_volume(z, noise)[1].sum(), parameters, retain_graph=True)
    exact = torch.cat([g.flatten() for g in exact])
    probes, batches = 400, 25
    means = []
    for batch in range(batches):
        many = z.expand(probes, -1)
        surrogate = volume_surrogate(lambda part: model.decode(part, noise), many, normal(probes, 3, seed=batch))
        gradient = torch.autograd.grad(surrogate.mean(), parameters, retain_graph=True)
        means.append(torch.cat([g.flatten() for g in gradient]))
    found = torch.stack(means)
    error = found.std(0) / math.sqrt(batches)
    assert float((found.mean(0) - exact).norm() / exact.norm()) < 0.05
    assert float(((found.mean(0) - exact).abs() / (error + 1e-6 * exact.norm())).max()) < 6


def test_the_loss_has_the_gradient_of_the_surrogate_and_without_gradients_the_exact_value():
    model = tiny("rectangular", SHAPE, double=True)
    x, noise = some_images(3, SHAPE), noise_of(3)
    with torch.no_grad():
        torch.testing.assert_close(model.loss(x, noise), -model.statistics(x, noise)["log_p_ambient"])
    flow = list(model.prior.parameters())  # the volume does not depend on these: no chance enters their gradient
    ours = torch.autograd.grad(model.loss(x, noise).sum(), flow)
    exact = torch.autograd.grad(-model.statistics(x, noise)["log_p_ambient"].sum(), flow)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_columns_of_a_linear_map_are_its_matrix_in_any_chunks(monkeypatch):
    matrix, z = normal(7, 3), normal(5, 3, seed=1)
    j = jacobian_columns(lambda t: t @ matrix.T, z)
    torch.testing.assert_close(j, matrix.expand(5, -1, -1), rtol=0, atol=1e-14)
    expected = torch.full((5,), 0.5 * float(torch.linalg.slogdet(matrix.T @ matrix)[1]), dtype=torch.float64)
    for rows in (1, 6, 10_000):
        monkeypatch.setattr("oodbench.models.manifold.jacobian._ROWS", rows)
        torch.testing.assert_close(log_volume(lambda t, _: t @ matrix.T, z), expected, rtol=1e-12, atol=0)


def test_a_jacobian_without_full_rank_is_told():
    with pytest.raises(OodbenchError, match=r"full rank of 3 at 5 of 5 images: train with fewer latents\.$"):
        log_volume(lambda t, _: torch.stack([t[:, 0], t[:, 1], 0 * t[:, 2], t[:, 0]], 1), normal(5, 3))


def test_conjugate_gradients_solve_every_system_or_raise():
    root = normal(20, 6, 6)
    a, b = root @ root.mT + 0.1 * torch.eye(6, dtype=torch.float64), normal(20, 6, seed=1)
    b[3] = 0  # solved at once, while others are not
    x = conjugate_gradients(lambda v: (a @ v[..., None])[..., 0], b, tolerance=1e-10)
    torch.testing.assert_close(x, torch.linalg.solve(a, b), rtol=1e-6, atol=1e-7)
    with pytest.raises(OodbenchError, match=r"did not converge in 2 iterations"):
        conjugate_gradients(lambda v: (a @ v[..., None])[..., 0], b, tolerance=1e-10, iterations=2)
    with pytest.raises(OodbenchError, match="did not converge"):
        conjugate_gradients(lambda v: v * math.nan, b)


def test_the_log_determinant_of_threads_is_that_of_one():
    """Forward mode belongs to the process: evaluation's lanes must not meet in it."""
    from concurrent.futures import ThreadPoolExecutor

    model = tiny("rectangular", SHAPE, double=True)
    x, noise = some_images(8, SHAPE), noise_of(8)

    def one(i: int) -> Tensor:
        rows = slice(i, i + 1)
        with torch.no_grad():
            return model.statistics(x[rows], noise.rows(rows))["log_px"]

    with ThreadPoolExecutor(4) as pool:
        together = torch.cat(list(pool.map(one, range(8))))
    with torch.no_grad():
        torch.testing.assert_close(together, model.statistics(x, noise)["log_px"], rtol=1e-10, atol=0)
