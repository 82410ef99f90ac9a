"""Posteriors over weights: against conjugate posteriors in closed form, and what holds for every one of them."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from posterior_training import recipe, register, run
from tiny_models import CONFIGS, noise_of, perturb, smooth_images, some_images, tiny
from torch import Tensor, nn

from oodbench.engine.passes import passes_for
from oodbench.errors import OodbenchError
from oodbench.models.base import DensityModel, Likelihood
from oodbench.models.nn import networks
from oodbench.models.noise import Noise
from oodbench.models.posteriors import posterior as posterior_room
from oodbench.models.posteriors.bbb import BBB
from oodbench.models.posteriors.posterior import WeightPosterior
from oodbench.models.posteriors.sghmc import SGHMC, HamiltonianDynamics
from oodbench.models.posteriors.swag import SWAG, collect
from oodbench.models.vae import latent
from oodbench.models.vae.observations import LogisticMixture
from oodbench.registry import MODELS
from oodbench.training.recipe import load_recipe

DIMENSIONS = 3


class Regression(DensityModel):
    """y = A w + noise of scale s, for one fixed set of observations: the loss is that of all of them, per observation.

    With the prior N(0, 1) on w the posterior is N(mean, covariance), which is not diagonal.
    """

    likelihood = Likelihood.EXACT

    def __init__(self, shape: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__(shape)
        generator = torch.Generator().manual_seed(0)
        self.a = torch.randn(40, DIMENSIONS, generator=generator, dtype=torch.float64)
        self.a[:, 1] += 0.7 * self.a[:, 0]
        self.y = self.a @ torch.tensor([1.0, -0.5, 0.3]).double()
        self.y += 0.8 * torch.randn(40, generator=generator, dtype=torch.float64)
        self.w = nn.Parameter(torch.zeros(DIMENSIONS, dtype=torch.float64))
        self.s = 0.8

    @property
    def precision(self) -> Tensor:
        return self.a.T @ self.a / self.s**2 + torch.eye(DIMENSIONS, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        return torch.linalg.solve(self.precision, self.a.T @ self.y / self.s**2)

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        return -self.loss(x, noise)

    def loss(self, x: Tensor, noise: Noise) -> Tensor:
        return (self.y - self.a @ self.w).square().mean().expand(len(x)) / (2 * self.s**2)


@pytest.fixture
def regression(monkeypatch: pytest.MonkeyPatch) -> Regression:
    register(monkeypatch, "regression", Regression)
    return Regression()


def chain(model: Regression, friction: float, rate: float, steps: int, chains: int = 400) -> Tensor:
    """(steps, chains, D) states of independent chains on the same posterior, after as many dropped ones."""
    w = model.mean.expand(chains, DIMENSIONS).clone().requires_grad_()
    dynamics = HamiltonianDynamics([w], rate, 40.0, friction, seed=1)
    states = []
    for step in range(2 * steps):
        w.grad = -(model.y - w.detach() @ model.a.T) @ model.a / model.s**2 / 40
        dynamics.step()
        if step >= steps:
            states.append(w.detach().clone())
    return torch.stack(states)


@pytest.mark.parametrize("friction", [0.2, 1.0], ids=["sghmc", "sgld"])
def test_the_moments_of_the_chain_converge_to_the_posterior_as_the_step_shrinks(friction: float) -> None:
    model = Regression()
    covariance = torch.linalg.inv(model.precision)
    errors = []
    for rate, steps in ((0.4, 60), (0.1, 150)):
        states = chain(model, friction, rate, steps).flatten(0, 1)
        torch.testing.assert_close(states.mean(0), model.mean, rtol=0, atol=0.02)
        errors.append(float((torch.cov(states.T) - covariance).norm() / covariance.norm()))
    assert errors[1] < 0.12
    assert errors[1] < errors[0]


def test_a_chain_of_members_has_the_posteriors_variances(regression: Regression) -> None:
    """Through the loss in nats per dimension and the number of images, on which the temperature depends."""
    posterior = SGHMC((3, 1, 1), "regression", members=300, friction=0.3, burn_in=0.05)
    run(posterior, recipe(4000, 0.5), 40)
    drawn, covariance = posterior.stack("w"), torch.linalg.inv(regression.precision)
    torch.testing.assert_close(drawn.mean(0), regression.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.var(0), covariance.diagonal(), rtol=0.4, atol=0)


def test_langevin_dynamics_has_the_variance_of_its_closed_form_at_a_finite_step() -> None:
    """theta <- (1 - e l) theta + N(0, 2 e) has the variance 1 / (l (1 - e l / 2))."""
    curvature, e = 4.0, 0.2
    w = torch.zeros(20_000, dtype=torch.float64, requires_grad=True)
    dynamics = HamiltonianDynamics([w], e, 1.0, 1.0, prior_std=1 / np.sqrt(curvature), seed=0)
    for _ in range(40):
        w.grad = torch.zeros_like(w)
        dynamics.step()
    expected = 1 / (curvature * (1 - e * curvature / 2))
    assert float(w.detach().var()) == pytest.approx(expected, rel=0.05)


def test_a_cold_chain_is_gradient_descent_with_momentum() -> None:
    ours, theirs = (torch.tensor([3.0, -2.0]).double().requires_grad_() for _ in range(2))
    cold = HamiltonianDynamics([ours], 0.1, 7.0, 0.25, temperature=0.0, prior_std=1e9)
    known = torch.optim.SGD([theirs], 0.1, momentum=0.75)
    for _ in range(20):
        for w, optimizer in ((ours, cold), (theirs, known)):
            w.grad = 2 * w.detach()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=0)


@pytest.mark.parametrize("plan", ["constant", "cyclic"])
def test_members_are_kept_evenly_after_the_burn_in(regression: Regression, plan: str) -> None:
    posterior = SGHMC((1, 1, 1), "regression", members=4, burn_in=0.5, steps=plan)
    kept = []
    posterior.keep = lambda weights: (kept.append(step), posterior.kept.add_(1))  # type: ignore[assignment]
    optimizer = posterior.optimizer(recipe(100), 40, 0)
    rates = []
    for step in range(100):
        rates.append(posterior.rate(step, recipe(100)))
        posterior.collect_after(step + 1, recipe(100), optimizer)
    assert len(kept) == 4
    assert kept[-1] == 99
    assert kept[0] >= 61
    assert np.ptp(np.diff(kept)) <= 1
    if plan == "cyclic":  # every member lies at the end of a cycle
        assert all(rates[step] < 0.05 for step in kept)
        assert max(rates[kept[0] + 1 : kept[1]]) > 0.95
    else:
        assert set(rates) == {1.0}


@pytest.mark.parametrize("start_std", [1e-3, 0.02], ids=["too narrow", "too wide"])
@pytest.mark.parametrize("images", [40, 45_000])
def test_bayes_by_backprop_reaches_the_best_mean_field_solution(
    regression: Regression, images: int, start_std: float
) -> None:
    """The diagonal Gaussian closest in KL(q || p) has the posterior's mean and the variances 1 / precision_ii.

    With the learning rate of images and their numbers, so many that a KL is worth 7e-9 of the trainer's loss a weight.
    """
    shape = (3, 32, 32)
    posterior = BBB(shape, "regression", members=5, start_std=start_std)
    with torch.no_grad():  # it starts at trained weights
        posterior.random["w"].copy_(regression.mean)
    plan = load_recipe("bbb(vae)", "cifar10")
    run(posterior, replace(plan, steps=3000), images)
    # Each of the images costs as much as one of 40 observations does on average.
    precision = regression.a.T @ regression.a / regression.s**2 * images / 40 + torch.eye(DIMENSIONS).double()
    expected = precision.diagonal().rsqrt()
    torch.testing.assert_close(posterior.scales()["w"].detach(), expected, rtol=0.12, atol=0)
    solution = torch.linalg.solve(precision, regression.a.T @ regression.y / regression.s**2 * images / 40)
    torch.testing.assert_close(posterior.random["w"].detach(), solution, rtol=0, atol=0.03)
    assert float(posterior.stack("w").std(0).min()) > 0


def test_the_scales_of_weights_that_say_nothing_become_those_of_the_prior() -> None:
    """The KL alone moves them, with 1e-10 of the trainer's loss: also those of layers that are read and not called."""
    posterior = BBB((3, 32, 32), "lidvae", CONFIGS["lidvae"], members=1, part="decoder", prior_std=0.01)
    optimizer = posterior.optimizer(recipe(1, 1e-4), 10**6, 0)
    for _ in range(1000):
        optimizer.zero_grad()
        (posterior.kl() / 10**6 / 3072).backward()
        optimizer.step()
    for scale in posterior.scales().values():
        torch.testing.assert_close(scale.detach(), torch.full_like(scale, 0.01), rtol=0.05, atol=0)


def test_the_kl_of_weights_is_torchs(regression: Regression) -> None:
    from torch.distributions import Normal, kl_divergence

    posterior = BBB((1, 1, 1), "regression", prior_std=0.7, start_std=0.3)
    with torch.no_grad():
        posterior.random["w"].copy_(torch.tensor([0.1, -2.0, 0.5]))
    expected = kl_divergence(Normal(posterior.random["w"], posterior.scales()["w"]), Normal(0.0, 0.7)).sum()
    torch.testing.assert_close(posterior.kl(), expected)


def test_local_reparameterisation_has_the_moments_of_random_weights() -> None:
    posterior = BBB((1, 8, 8), "vae-mlp", CONFIGS["vae-mlp"], members=1, part="decoder", start_std=0.05)
    perturb(posterior.inner)
    layer, z = posterior.inner.decoder.linear, torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    n = 4000
    with torch.no_grad(), posterior._drawn(Noise.of(torch.arange(n))):
        out = layer(z.expand(n, -1))
    std = torch.full_like(layer.weight, 0.05)
    expected = (z.square() @ std.T.square() + 0.05**2).sqrt()[0]
    torch.testing.assert_close(out.std(0), expected.detach(), rtol=0.1, atol=0)
    torch.testing.assert_close(out.mean(0), layer(z)[0].detach(), rtol=0, atol=0.01)


@torch.no_grad()
def test_every_row_that_a_perceptron_decodes_has_weights_of_its_own() -> None:
    """One latent many times: with weights drawn once for the batch, all rows would come out the same."""
    posterior = BBB((1, 8, 8), "vae-mlp", CONFIGS["vae-mlp"], members=1, part="decoder", start_std=0.05)
    perturb(posterior.inner)
    z = torch.randn(1, 4, generator=torch.Generator().manual_seed(0)).expand(2000, -1)
    with posterior._drawn(Noise.of(torch.arange(2000))):
        out = posterior.inner.decoder(z).flatten(1)
    apart = torch.corrcoef(out[:, :40].T).fill_diagonal_(0)
    assert float(out.std(0).min()) > 0.05
    hidden = posterior.inner.decoder.layers.hidden(z[:1])
    last = 0.05 * (z[0].square().sum() + hidden.square().sum() + 2).sqrt()
    assert float(out.std(0).mean()) > float(last)  # of the last layer alone; those below it add to it
    assert float(apart.abs().mean()) < 0.9


@pytest.mark.parametrize("part", ["decoder.linear.weight", "decoder.linear.bias", "decoder.layers.0.weight"])
def test_a_part_may_be_weights_without_their_biases_and_the_other_way(part: str) -> None:
    posterior = BBB((1, 8, 8), "vae-mlp", CONFIGS["vae-mlp"], members=1, part=part, start_std=0.3)
    perturb(posterior.inner)
    before = {key: value.clone() for key, value in posterior.inner.state_dict().items()}
    z, n = torch.randn(1, 4, generator=torch.Generator().manual_seed(0)), 3000
    layer = posterior.inner.get_submodule(part.rpartition(".")[0])
    with torch.no_grad():
        alone = layer(z)
        with posterior._drawn(Noise.of(torch.arange(n))):
            out = layer(z.expand(n, -1))
    if part.endswith("weight"):  # noise of each row, without the bias's
        torch.testing.assert_close(out.std(0), (0.3 * z.norm()).expand(out.shape[1]), rtol=0.1, atol=0)
        torch.testing.assert_close(out.mean(0), alone[0], rtol=0, atol=0.05)
    else:  # the same for a batch
        assert torch.equal(out, out[:1].expand_as(out))
        assert 0.2 < float((out - alone)[0].std()) < 0.4
    run(posterior, recipe(3, 1e-3), 1000)
    assert [key for key, value in posterior.inner.state_dict().items() if not torch.equal(value, before[key])] == [part]


@torch.no_grad()
def test_layers_that_are_read_and_not_called_are_random_too() -> None:
    """The Brenier maps' own: without noise, their scales would grow to the prior's whatever the images say."""
    posterior = BBB((1, 8, 8), "lidvae", CONFIGS["lidvae"], members=1, part="decoder", start_std=0.3)
    name = next(name for name in posterior.random if name.endswith("layer.weight"))
    layer = posterior.inner.get_submodule(name.removesuffix(".weight"))
    mean = posterior.random[name]
    with posterior._drawn(noise_of(3)):
        drawn, _ = layer.parameters_now()
    assert 0.2 < float((drawn - mean).std()) < 0.4
    assert layer.parameters_now()[0] is mean


def test_swags_moments_are_those_of_the_trajectory() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(30, 2, 3, generator=generator, dtype=torch.float64).cumsum(0)
    state: dict[str, Any] = {}
    for count, point in enumerate(points, 1):
        collect(state, point, count, rank=4)
    torch.testing.assert_close(state["swag_first"] + state["swag_mean"], points.mean(0))
    torch.testing.assert_close(state["swag_variance"], points.var(0, correction=0))
    running = torch.stack([points[: k + 1].mean(0) for k in range(26, 30)])
    expected = {tuple(row.flatten().tolist()) for row in (points[26:] - running).round(decimals=9)}
    assert {tuple(row.flatten().tolist()) for row in state["swag_deviations"].round(decimals=9)} == expected


def test_swags_variances_are_right_where_large_weights_hardly_move() -> None:
    """In float32 the squares of such weights round away more than the variance is."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([1e-3, 0.05, 1.0, -30.0])
    points = size + 3e-5 * size * torch.randn(50, 4, generator=generator)
    state: dict[str, Any] = {}
    for count, point in enumerate(points, 1):
        collect(state, point, count, rank=4)
    exact = points.double()
    torch.testing.assert_close(state["swag_variance"].double(), exact.var(0, correction=0), rtol=1e-4, atol=0)
    mean = state["swag_first"].double() + state["swag_mean"].double()
    torch.testing.assert_close(mean, exact.mean(0), rtol=1e-9, atol=0)
    deviations = torch.stack([exact[k] - exact[: k + 1].mean(0) for k in (48, 49, 46, 47)])
    torch.testing.assert_close(state["swag_deviations"].double(), deviations, rtol=1e-3, atol=1e-11)


def test_swags_members_have_the_papers_covariance(regression: Regression) -> None:
    """Half the trajectory's variances on the diagonal, plus half of D D' / (R - 1)."""
    posterior = SWAG((1, 1, 1), "regression", rank=5, every=2, burn_in=0.0)
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Any] = {}
    for count in range(1, 40):
        collect(state, torch.randn(3, generator=generator).double() * torch.tensor([1.0, 2.0, 0.1]), count, 5)
    drawn = torch.stack([posterior._draw(state, torch.randn(5, generator=generator), generator) for _ in range(40_000)])
    d = state["swag_deviations"]
    expected = 0.5 * torch.diag(state["swag_variance"]) + d.T @ d / (2 * 4)
    errors = (torch.cov(drawn.T) - expected) / expected.diagonal().outer(expected.diagonal()).sqrt()
    assert float(errors.abs().max()) < 0.04  # the third weight's variance is a hundredth of the others'
    centre = state["swag_first"] + state["swag_mean"]
    torch.testing.assert_close(drawn.mean(0), centre, rtol=0, atol=0.04)


def test_swag_follows_gradient_descent_and_draws_all_members(regression: Regression) -> None:
    """Around the mean of its points, with half their variances and half the covariance of the last deviations."""
    posterior = SWAG((1, 1, 1), "regression", members=20_000, rank=5, every=2, burn_in=0.5, momentum=0.0)
    w, points = torch.zeros(DIMENSIONS).double(), []
    for step in range(1, 101):
        w = w + 0.05 * (regression.y - regression.a @ w) @ regression.a / regression.s**2 / 40
        if step > 50 and step % 2 == 0:
            points.append(w)
    run(posterior, recipe(100, 0.05), 40)
    torch.testing.assert_close(posterior.random["w"].detach(), w)
    assert int(posterior.kept) == 20_000
    drawn, trajectory = posterior.stack("w"), torch.stack(points)
    running = trajectory.cumsum(0) / torch.arange(1, 26)[:, None]
    d = (trajectory - running)[-5:]
    expected = 0.5 * torch.diag(trajectory.var(0, correction=0)) + d.T @ d / (2 * 4)
    unit = expected.diagonal().sqrt()
    assert float(((torch.cov(drawn.T) - expected) / unit.outer(unit)).abs().max()) < 0.05
    assert float(((drawn.mean(0) - trajectory.mean(0)) / unit).abs().max()) < 0.04
    with pytest.raises(OodbenchError, match="points of a trajectory"):
        SWAG((1, 1, 1), "regression", rank=20, every=10).optimizer(recipe(100), 40, 0)


INNER = {"vae": "decoder", "vae-mlp": "decoder", "glow": "", "pixelcnn++": ""}
OF_DECODERS = {
    **dict.fromkeys(("nf-vae", "iaf-vae", "svae", "lidvae", "tsc-vae", "vqvae-bridge", "vlae", "lae"), "decoder"),
    "vae-mlp": "decoder.layers",
}


def posterior_of(name: str, part: str, members: int = 3, double: bool = True) -> WeightPosterior:
    posterior: WeightPosterior = MODELS.get(f"sghmc({name})")(
        (3, 8, 8), config=CONFIGS[name], members=members, part=part
    )
    perturb(posterior.inner, 0.3)
    posterior = posterior.double() if double else posterior
    for member in range(members):
        generator = torch.Generator().manual_seed(member)
        drawn = {
            key: p.detach() + 0.05 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            for key, p in posterior.random.items()
        }
        posterior.keep(drawn)
    return posterior.eval()


@pytest.mark.parametrize(("name", "part"), [*INNER.items(), *OF_DECODERS.items()])
@pytest.mark.parametrize("fold", [False, True])
@torch.no_grad()
def test_members_in_one_pass_are_members_one_by_one(name: str, part: str, fold: bool) -> None:
    posterior, x, noise = posterior_of(name, part), some_images(5), noise_of(5)
    with networks(fold=fold):
        columns = [posterior.statistics(x, noise) for _ in range(2)][-1]
    alone = MODELS.get(name)((3, 8, 8), **CONFIGS[name]).double().eval()
    for member in range(3):
        weights = posterior.inner.state_dict() | {key: posterior.stack(key)[member] for key in posterior.random}
        alone.load_state_dict(weights)
        torch.testing.assert_close(columns["log_px_members"][:, member], alone.log_prob(x, noise), rtol=1e-9, atol=1e-7)
    expected = columns["log_px_members"].logsumexp(1) - np.log(3)
    torch.testing.assert_close(columns["log_px"], expected)


@pytest.mark.parametrize(("name", "part"), INNER.items())
@torch.no_grad()
def test_a_single_member_is_the_ordinary_model(name: str, part: str) -> None:
    posterior = MODELS.get(f"swag({name})")((3, 8, 8), config=CONFIGS[name], members=1, part=part).eval()
    perturb(posterior.inner, 0.3)
    posterior.keep(posterior.random)
    x, noise = some_images(4), noise_of(4)
    torch.testing.assert_close(posterior.log_prob(x, noise), posterior.inner.log_prob(x, noise), rtol=1e-6, atol=1e-3)
    assert torch.equal(posterior.sample(4, noise), posterior.inner.sample(4, noise))


@pytest.mark.parametrize("name", ["glow", "vae"])
def test_columns_of_a_posterior_are_as_new_as_its_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that comes to give other numbers does so for its posteriors: the cache key says so."""
    for version in (MODELS.get(name).version, 7):
        monkeypatch.setattr(MODELS.get(name), "version", version)
        posterior = MODELS.get(f"swag({name})")((1, 8, 8), config=CONFIGS[name], members=1)
        trained: Any = SimpleNamespace(name=f"swag({name})", module=posterior, weights="", config={})
        (one,) = passes_for(["log_px_members"], trained, "float32")
        assert one.facts["model_version"] == version


OUTER = ["sghmc", "sgld", "bbb", "swag"]
MOVED = [(outer, name) for outer in OUTER for name in ("vae", "glow", "vae-mlp", "pixelcnn")]
MOVED += [("bbb", name) for name in CONFIGS if ("bbb", name) not in MOVED]  # the one that changes what layers compute


@pytest.mark.parametrize(("outer", "name"), MOVED)
def test_every_posterior_moves_its_part_of_any_model_and_nothing_else(outer: str, name: str) -> None:
    part = "decoder" if name.startswith("vae") else ""
    options = {"rank": 2, "every": 2} if outer == "swag" else {}
    posterior = MODELS.get(f"{outer}({name})")((1, 8, 8), config=CONFIGS[name], members=2, part=part, **options)
    perturb(posterior.inner, 0.1)
    before = {key: value.clone() for key, value in posterior.inner.state_dict().items()}
    run(posterior, recipe(6, 1e-4), 1000)
    assert int(posterior.kept) == 2
    for key, p in posterior.inner.named_parameters():
        assert torch.equal(p.detach(), before[key]) == (key not in posterior.random), key
    for key in posterior.random:
        assert not torch.equal(posterior.stack(key)[0], posterior.stack(key)[1]), key
    x, noise = smooth_images(3, (1, 8, 8)), noise_of(3)
    with torch.no_grad():
        columns = posterior.statistics(x, noise)
    assert columns["log_px_members"].shape == (3, 2)
    assert columns["log_px_members"].isfinite().all()


@pytest.mark.parametrize("name", ["vae", "vae-mlp"])
@pytest.mark.parametrize("rows", [4, 16])
@torch.no_grad()
def test_memory_stays_bounded_as_members_grow(monkeypatch: pytest.MonkeyPatch, name: str, rows: int) -> None:
    """No call to the pixels' likelihood sees more than so many rows, of however many members."""
    posterior = posterior_of(name, "decoder", 9)
    expected = posterior.log_px_members(some_images(3), noise_of(3))
    monkeypatch.setattr(latent, "DECODER_ROWS", rows)
    monkeypatch.setattr(posterior_room, "DECODER_ROWS", rows)
    seen: list[int] = []
    log_prob = LogisticMixture.log_prob

    def watch(self: LogisticMixture, x: Tensor, parameters: Tensor) -> Tensor:
        seen.append(len(parameters))
        return log_prob(self, x, parameters)

    monkeypatch.setattr(LogisticMixture, "log_prob", watch)
    found = posterior.log_px_members(some_images(3), noise_of(3))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert max(seen) <= rows
    assert sum(seen) == 9 * 3 * 3  # members, images, draws


class Normalised(DensityModel):
    """Batch normalisation of brightness, whose statistics and scale are all that log P depends on."""

    likelihood = Likelihood.EXACT

    def __init__(self, shape: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__(shape)
        self.gain = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm1d(1)

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        return -self.norm(self.gain * x.float().flatten(1).mean(1, keepdim=True)).square()[:, 0]


def test_normalisation_statistics_are_those_of_each_members_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "normalised", Normalised)
    posterior = SWAG((1, 1, 1), "normalised", members=3)
    posterior.inner.norm(torch.full((5, 1), 7.0))  # what was seen before counts for nothing
    for gain in (1.0, 2.0, 5.0):
        posterior.keep({**posterior.random, "gain": torch.tensor(gain)})
    batches = [(some_images(6, (1, 2, 2), seed), noise_of(6)) for seed in range(4)]
    posterior.train().refresh(lambda k: batches[k], 4)
    bright = [x.float().flatten(1).mean(1) for x, _ in batches]
    means, variances = torch.stack([b.mean() for b in bright]), torch.stack([b.var() for b in bright])
    gains = torch.tensor([1.0, 2.0, 5.0])
    torch.testing.assert_close(posterior.stack("norm.running_mean")[:, 0], gains * means.mean())
    torch.testing.assert_close(posterior.stack("norm.running_var")[:, 0], gains.square() * variances.mean())
    with torch.no_grad():
        columns = posterior.eval().log_px_members(batches[0][0], noise_of(6))
    torch.testing.assert_close(columns, columns[:, :1].expand(-1, 3), rtol=1e-3, atol=1e-3)  # normalised away
    expected = -(bright[0] - means.mean()).square() / variances.mean()
    torch.testing.assert_close(columns[:, 0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["glow", "inflow", "tsc-vae"])
@torch.no_grad()
def test_an_ensembles_members_keep_their_own_buffers(name: str) -> None:
    """What calibration fitted to each training's images, say."""

    @dataclass
    class Trained:
        module: DensityModel
        name: str = ""
        dataset: str = ""

    ensemble, alone = MODELS.get(f"ensemble({name})")((3, 8, 8), config=CONFIGS[name], members=2).eval(), []
    for seed in range(2):
        module = tiny(name)
        perturb(module, 0.2, seed)
        module.calibrate(smooth_images(40, (3, 8, 8), seed), smooth_images(40, (3, 8, 8), seed + 10))
        for buffer in module.buffers():
            if seed and buffer.shape == ():  # thresholds, sizes of steps
                buffer.mul_(0.5)
        ensemble.start(Trained(module))
        alone.append(module.eval())
    x, noise = smooth_images(5), noise_of(5)
    expected = torch.stack([module.log_prob(x, noise) for module in alone], 1)
    torch.testing.assert_close(ensemble.statistics(x, noise)["log_px_members"], expected)
    for key, buffer in alone[0].named_buffers():
        if key in alone[0].state_dict():
            assert torch.equal(ensemble.models()[0].get_buffer(key), buffer)


def test_members_are_stacked_on_disk_and_come_back(tmp_path: Path) -> None:
    from oodbench.pretrained import load_model, save_model

    posterior = posterior_of("vae", "decoder", double=False)
    entry = {
        "dataset": "digits", "model": "sghmc(vae)", "role": "model", "preset": "small", "seed": 0, "shape": [3, 8, 8],
        "recipe": {"config": {"config": CONFIGS["vae"], "members": 3, "part": "decoder"}}, "data_fingerprint": "",
        "undertrained": False,
    }  # fmt: skip
    save_model(posterior, entry, tmp_path)
    again = load_model("sghmc(vae)", "digits", weights=tmp_path).module
    x, noise = some_images(3), noise_of(3)
    with torch.no_grad():
        assert torch.equal(again.statistics(x, noise)["log_px_members"], posterior.log_px_members(x, noise))


def test_wrong_configurations_are_told_so() -> None:
    def build(name: str, **config: Any) -> Any:
        return MODELS.get(name)((3, 8, 8), **{"config": CONFIGS["vae"], **config})

    for name, config, sentence in (
        ("sghmc(vae)", {"part": "decodr"}, "no part 'decodr': take one of decoder, encoder"),
        ("sghmc(vae)", {"part": "dec"}, "no part 'dec': take one of decoder, encoder"),
        ("sghmc(vae)", {"members": 0}, "at least one member"),
        ("sghmc(vae)", {"friction": 0.0}, "friction"),
        ("sghmc(vae)", {"steps": "wavy"}, "'constant' or 'cyclic'"),
        ("swag(vae)", {"rank": 1}, "at least 2 deviations"),
        ("bbb(vae)", {"start_std": 0.0}, "positive"),
        ("sghmcc(vae)", {}, "did you mean sghmc"),
        ("sghmc(vea)", {}, "did you mean vae"),
    ):
        with pytest.raises(OodbenchError, match=sentence):
            build(name, **config)
    with pytest.raises(TypeError):  # Langevin dynamics has no friction to choose
        MODELS.get("sgld(vae)")((3, 8, 8), config=CONFIGS["vae"], friction=0.5)
