"""Everything that a model computes with lies where its parameters lie, and comes out as on the CPU."""

from collections.abc import Callable

import pytest
import torch
from elsewhere import Elsewhere, elsewhere, move
from tiny_models import CONFIGS, noise_of, smooth_images, tiny
from torch import Tensor

from oodbench.models.base import DensityModel
from oodbench.models.nn import networks
from oodbench.models.noise import Noise

SHAPE = (1, 4, 4)

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


@pytest.mark.parametrize("work", [evaluated, learned, sampled, started])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_takes_all_of_its_tensors_to_its_device(name: str, work: Work) -> None:
    x, noise = smooth_images(2, SHAPE), noise_of(2)
    expected = work(tiny(name, SHAPE), x, noise)
    model = tiny(name, SHAPE)
    with elsewhere():
        move(model)
        made = work(model, Elsewhere(x), Noise(noise.seed, Elsewhere(noise.index), Elsewhere(noise.draw)))
    assert made.keys() == expected.keys()
    for key, values in made.items():
        assert isinstance(values, Elsewhere), key
        torch.testing.assert_close(values.here, expected[key], rtol=1e-4, atol=1e-4)
