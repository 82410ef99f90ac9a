"""Everything that a model computes with lies where its parameters lie, and comes out as on the CPU."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere, elsewhere, move
from tiny_models import CONFIGS, noise_of, perturb, smooth_images, tiny
from torch import Tensor

from oodbench.models.base import DensityModel
from oodbench.models.nn import networks
from oodbench.models.noise import Noise
from oodbench.models.posteriors.bbb import BBB

SHAPE = (1, 8, 8)

Work = Callable[[DensityModel, Tensor, Noise], dict[str, Tensor]]


@torch.inference_mode()
def evaluated(model: DensityModel, x: Tensor, noise: Noise) -> dict[str, Tensor]:
    with networks(torch.bfloat16, fold=True):
        return model.statistics(x, noise)


def learned(model: DensityModel, x: Tensor, noise: Noise) -> dict[str, Tensor]:
    model.train()
    loss = model.loss(x, noise)
    loss.mean().backward()
    model.after_step()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def sampled(model: DensityModel, x: Tensor, noise: Noise) -> dict[str, Tensor]:
    return {"sample": model.sample(len(x), noise)}


@torch.no_grad()
def started(model: DensityModel, x: Tensor, noise: Noise) -> dict[str, Tensor]:
    model.calibrate(x, x.flip(3))
    model.initialise(x, noise)
    return dict(model.state_dict())


def there(x: Tensor, noise: Noise) -> tuple[Tensor, Noise]:
    return Elsewhere(x), Noise(noise.seed, Elsewhere(noise.index), Elsewhere(noise.draw))


def compare(made: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert made.keys() == expected.keys()
    for key, values in made.items():
        assert isinstance(values, Elsewhere), key
        torch.testing.assert_close(values.here, expected[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("work", [evaluated, learned, sampled, started])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_takes_all_of_its_tensors_to_its_device(name: str, work: Work) -> None:
    x, noise = smooth_images(2, SHAPE), noise_of(2)
    scale = 0.2 if work is sampled else 0.5  # samples of wilder flows explode
    expected = work(tiny(name, SHAPE, scale=scale), x, noise)
    model = tiny(name, SHAPE, scale=scale)
    with elsewhere():
        move(model)
        compare(work(model, *there(x, noise)), expected)


@pytest.mark.parametrize("work", [evaluated, learned, sampled])
@pytest.mark.parametrize(("name", "part"), [("glow", ""), ("vae", "decoder"), ("vae-mlp", "decoder")])
def test_so_does_a_posterior_over_weights(name: str, part: str, work: Work) -> None:
    def posterior() -> BBB:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = BBB(SHAPE, name, CONFIGS[name], members=2, part=part)
        perturb(model.inner)
        for factor in (1.0, 0.9):
            model.keep({key: factor * p for key, p in model.random.items()})
        return model.eval()

    x, noise = smooth_images(2, SHAPE), noise_of(2)
    expected = work(posterior(), x, noise)
    model = posterior()
    with elsewhere():
        move(model)
        # On a GPU parameters stay the same objects, as only their data moves.
        model.random = {key: p for key, p in model.inner.named_parameters() if key in model.random}
        compare(work(model, *there(x, noise)), expected)


def test_what_stays_behind_is_found() -> None:
    with elsewhere():
        x = Elsewhere(torch.ones(3))
        for stray in (torch.arange(3), torch.from_numpy(np.ones(3))):
            with pytest.raises(RuntimeError, match="two devices"):
                x + stray
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()
        assert ((x + torch.arange(3, device=x.device)) * torch.tensor(2.0)).cpu().tolist() == [2, 4, 6]
