"""Recipes are complete, are read as their files say, and build the models they speak of."""

import math
from importlib import resources
from pathlib import Path

import pytest
import torch

from oodbench.errors import OodbenchError
from oodbench.models.base import DensityModel
from oodbench.registry import DATASETS, MODELS, POSTERIORS
from oodbench.training import recipe as room
from oodbench.training.recipe import PRESETS, Recipe, load_recipe

NAMES = [name for name in MODELS if MODELS.origin_of(name) == "oodbench"]
SMALL_IMAGES = {"iaf"}  # models for these only
SETS = ("cifar10", "svhn", "fashionmnist", "mnist", *DATASETS)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_model_has_a_sensible_recipe_in_every_preset(name, preset, background):
    for dataset in SETS:
        recipe = load_recipe(name, dataset, preset, background)
        assert recipe.steps > recipe.warmup > 0
        assert 0 < recipe.learning_rate < 0.01
        assert 0.5 < recipe.ema < 1
        assert recipe.clip > 0
        assert recipe.precision in ("float32", "bfloat16")
        assert (recipe.mutation > 0, recipe.weight_decay > 0) == (background, background)
        assert recipe.config


@pytest.mark.parametrize("preset", PRESETS)
def test_recipe_files_speak_of_nothing_unknown(preset):
    tables = room.tomllib.loads((Path(room.__file__).parent / "recipes" / f"{preset}.toml").read_text())
    assert set(tables) == {"defaults", "background", *NAMES, *POSTERIORS}
    for posterior in POSTERIORS:
        assert {key for key, value in tables[posterior].items() if isinstance(value, dict)} <= {"config", *NAMES}
    for name in NAMES:
        for_data = {key: value for key, value in tables[name].items() if isinstance(value, dict) and key != "config"}
        assert set(for_data) <= set(SETS), name
        for table in for_data.values():
            assert {key for key, value in table.items() if isinstance(value, dict)} <= {"config", "background"}, name


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize("name", NAMES)
def test_the_models_of_small_recipes_can_be_built(name, preset, shape):
    if name in SMALL_IMAGES and shape[1] > 8:
        pytest.skip("for small images only")
    recipe = load_recipe(name, "digits" if shape[1] == 8 else "cifar10", preset)
    model = MODELS.get(name)(shape, **recipe.config)
    assert isinstance(model, DensityModel)
    limit = 300_000 if preset == "tiny" else 5_000_000
    assert sum(parameter.numel() for parameter in model.parameters()) < limit


@pytest.mark.parametrize("name", NAMES)
def test_the_models_of_paper_recipes_have_the_literatures_size(name, monkeypatch):
    # Numbers are not drawn, which would take seconds.
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda weight, **_: weight)
    shape = (1, 8, 8) if name in SMALL_IMAGES else (3, 32, 32)
    model = MODELS.get(name)(shape, **load_recipe(name, "cifar10", "paper").config)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    low, high = {
        "glow": (40, 50), "glow-cv": (35, 50), "nice": (50, 100), "realnvp": (3, 20), "maf": (80, 120), "iaf": (1, 8),
        "nsf": (5, 20), "nsf-ar": (100, 300), "nxn-flow": (40, 55), "iresnet": (20, 30), "funnel": (25, 40),
        "inflow": (5, 12), "vae": (3, 10), "vae-mlp": (5, 12), "vae-dcgan": (2, 6),
        "nf-vae": (5, 15), "iaf-vae": (40, 100),
        "svae": (5, 12), "vlae": (5, 12), "pixelcnn": (3, 10), "pixelcnn++": (25, 60),
        "vqvae-bridge": (8, 16), "cygen": (5, 12),
        "aef": (5, 15), "conformal": (1, 5), "rectangular": (15, 35), "two-step": (1, 5), "lidvae": (5, 12),
        "lae": (10, 25), "tsc-vae": (5, 12),
    }[name]  # fmt: skip
    assert low < millions < high
    if name == "vae":
        assert 100 <= math.prod(model.latent_shape) < 200


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a text in the place of `small.toml`."""

    def write(text: str) -> None:
        (tmp_path / "recipes").mkdir(exist_ok=True)
        (tmp_path / "recipes" / "small.toml").write_text(text)
        monkeypatch.setattr(resources, "files", lambda package: tmp_path)

    return write


TEXT = """
[defaults]
steps = 100
batch_size = 8
learning_rate = 1e-3
[background]
mutation = 0.2
weight_decay = 0.5
[glow]
steps = 200
config = { levels = 3, hidden = 64 }
[glow.digits]
learning_rate = 2e-3
config = { levels = 2 }
[glow.digits.background]
steps = 50
mutation = 0.3
config = { hidden = 16 }
"""


def test_tables_overlay_each_other_from_general_to_special(recipe_file):
    recipe_file(TEXT)
    assert load_recipe("vae", "digits") == Recipe(steps=100, batch_size=8, learning_rate=1e-3)
    plain = load_recipe("glow", "photos")
    assert (plain.steps, plain.learning_rate, plain.config) == (200, 1e-3, {"levels": 3, "hidden": 64})
    special = load_recipe("glow", "digits")
    assert (special.steps, special.learning_rate, special.config) == (200, 2e-3, {"levels": 2, "hidden": 64})
    assert special.mutation == special.weight_decay == 0
    background = load_recipe("glow", "digits", background=True)
    assert (background.steps, background.mutation, background.weight_decay) == (50, 0.3, 0.5)
    assert background.config == {"levels": 2, "hidden": 16}
    assert load_recipe("glow", "photos", background=True).steps == 200
    assert load_recipe("vae", "digits", background=True).mutation == 0.2
    assert special.as_dict()["config"] == special.config


def test_an_unknown_entry_is_told_in_one_sentence(recipe_file):
    recipe_file(TEXT + 'learning_rat = 3\n[vae]\nlerning_rate = 1\nwidth = "x"\n')
    with pytest.raises(OodbenchError, match=r"^The small recipe of vae has unknown entries: lerning_rate, width\.$"):
        load_recipe("vae", "digits")


def test_an_unknown_preset_is_told_in_one_sentence():
    with pytest.raises(OodbenchError, match=r"^Unknown preset 'huge': there are tiny, small, paper\.$"):
        load_recipe("glow", "digits", "huge")
