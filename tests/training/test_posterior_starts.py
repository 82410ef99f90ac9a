"""Posteriors over weights begin at trained models, which are trained first where they are missing."""

import math

import numpy as np
import pytest
import torch

from oodbench.data import load
from oodbench.errors import OodbenchError
from oodbench.models.base import bits_per_dim
from oodbench.models.noise import Noise
from oodbench.pretrained import load_model
from oodbench.registry import MODELS
from oodbench.training import Recipe, train
from oodbench.training import trainer as room

CONFIG = {"latents": 4, "hidden": 16, "mixtures": 1, "draws": 4}  # the tiny preset's


def test_starts_in_the_folder_of_the_weights_are_not_trained_again(tmp_path, monkeypatch):
    recipe = Recipe(0, 16, 1e-3, config={"config": CONFIG, "members": 2})
    trainings = []
    save = room.save_model
    monkeypatch.setattr(room, "save_model", lambda *rest: trainings.append(rest[1]["model"]) or save(*rest))
    for _ in range(2):
        train("ensemble(vae)", "digits", preset="tiny", recipe=recipe, pretrained=tmp_path, progress=False)
    assert trainings == ["vae", "vae", "ensemble(vae)", "ensemble(vae)"]


def test_an_ensembles_members_are_the_trainings_of_its_seeds(tmp_path, monkeypatch):
    monkeypatch.setenv("OODBENCH_PRETRAINED", str(tmp_path))
    recipe = Recipe(0, 16, 1e-3, config={"config": CONFIG, "members": 3})
    trained = train("ensemble(vae)", "digits", preset="tiny", recipe=recipe, seed=2, progress=False)
    alone = [load_model("vae", "digits", preset="tiny", seed=seed) for seed in (6, 7, 8)]
    assert trained.entry["starts"] == [each.weights for each in alone]
    x = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise = Noise.of(torch.arange(6))
    with torch.no_grad():
        columns = trained.module.statistics(x, noise)
        expected = torch.stack([each.module.log_prob(x, noise) for each in alone], 1)
    torch.testing.assert_close(columns["log_px_members"], expected)
    torch.testing.assert_close(columns["log_px"], expected.logsumexp(1) - math.log(3))
    assert float(expected.std(1).min()) > 0.1  # trainings of their own


def test_an_ensembles_bits_are_those_of_all_its_members(tmp_path, monkeypatch):
    monkeypatch.setenv("OODBENCH_PRETRAINED", str(tmp_path))
    recipe = Recipe(0, 16, 1e-3, config={"config": CONFIG, "members": 2})
    trained = train("ensemble(vae)", "digits", preset="tiny", recipe=recipe, progress=False)
    validation = load("digits", "validation").limit(room.VALIDATION_IMAGES, seed=0)
    x, noise = torch.from_numpy(np.array(validation.pixels)), Noise.of(torch.from_numpy(validation.index))
    with torch.no_grad():
        expected = bits_per_dim(trained.module.log_prob(x, noise).double().mean(), 64)
    assert trained.entry["bits_per_dim"] == pytest.approx(float(expected), abs=1e-4)


def test_the_members_of_a_background_are_backgrounds(tmp_path):
    recipe = Recipe(0, 16, 1e-3, config={"config": CONFIG, "members": 2})
    here = {"preset": "tiny", "recipe": recipe, "pretrained": tmp_path, "progress": False}
    model, companion = (train("ensemble(vae)", "digits", background=b, **here) for b in (False, True))
    assert companion.entry["role"] == "background"
    alone = {"role": "background", "preset": "tiny", "weights": tmp_path}
    assert companion.entry["starts"] == [load_model("vae", "digits", seed=s, **alone).weights for s in (0, 1)]
    assert not set(companion.entry["starts"]) & set(model.entry["starts"])


def test_ensembles_of_different_seeds_share_no_member():
    posterior = MODELS.get("ensemble(vae)")((1, 8, 8), config=CONFIG, members=3)
    assert [posterior.seeds(seed) for seed in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_an_ensemble_has_no_part():
    posterior = MODELS.get("ensemble(vae)")((1, 8, 8), config=CONFIG, part="decoder")
    with pytest.raises(OodbenchError, match="leave out `part`"):
        posterior.seeds(0)
