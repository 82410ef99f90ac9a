"""What a constructor declares is what a configuration may hold."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, noise_of, some_images

from oodbench.errors import OodbenchError
from oodbench.models.configuration import check_configuration
from oodbench.pretrained import load_model, save_model
from oodbench.registry import MODELS, POSTERIORS
from oodbench.training import Recipe, train
from oodbench.training.recipe import PRESETS, load_recipe


def checked(name: str, config: Mapping[str, Any]) -> None:
    check_configuration(name, MODELS.get(name), config)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_recipe_and_every_test_model_is_taken(preset):
    for name in CONFIGS:
        checked(name, CONFIGS[name])
        for dataset in ("digits", "cifar10"):
            checked(name, load_recipe(name, dataset, preset).config)
    for posterior in POSTERIORS:
        checked(f"{posterior}(vae)", load_recipe(f"{posterior}(vae)", "cifar10", preset).config)


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("glow", {"stesp": 3}, "glow takes no 'stesp': did you mean steps?"),
        ("glow", {"shape": 3}, "glow takes no 'shape': there are hidden, levels, steps."),
        ("glow", {"steps": 2.5}, "glow takes a whole number for 'steps', not 2.5."),
        ("glow", {"steps": "3"}, "glow takes a whole number for 'steps', not '3'."),
        ("glow", {"steps": True}, "glow takes a whole number for 'steps', not True."),
        ("iresnet", {"terms": 2.5}, "iresnet takes a whole number for 'terms', not 2.5."),
        ("iresnet", {"coefficient": "0.9"}, "iresnet takes a number for 'coefficient', not '0.9'."),
        ("nice", {"whitten": True}, "nice takes no 'whitten': did you mean whiten or hidden?"),
        ("nice", {"whiten": 1}, "nice takes true or false for 'whiten', not 1."),
        ("nice", {"couplings": 2.0}, "nice takes a whole number for 'couplings', not 2.0."),
        ("nice", {"layers": 2}, "nice takes no 'layers': "),
        ("iaf", {"hiden": 3}, "iaf takes no 'hiden': did you mean hidden?"),
        ("maf", {"hidden": 3.5}, "maf takes a whole number for 'hidden', not 3.5."),
        ("nf-vae", {"mixtures": 1.5}, "nf-vae takes a whole number for 'mixtures', not 1.5."),
        ("two-step", {"first_config": 3}, "two-step takes a table for 'first_config', not 3."),
        ("two-step", {"first": 3}, "two-step takes a text for 'first', not 3."),
        ("sghmc(glow)", {"membres": 3}, "sghmc(glow) takes no 'membres': did you mean members?"),
        ("sghmc(glow)", {"model": "vae"}, "sghmc(glow) takes no 'model': "),
    ],
)
def test_a_keyword_or_a_kind_that_a_model_does_not_take_is_told_in_one_sentence(name, config, sentence):
    with pytest.raises(OodbenchError) as caught:
        checked(name, config)
    assert str(caught.value).startswith(sentence)


def test_numbers_are_numbers_and_what_has_no_declared_kind_is_anything():
    checked("iresnet", {"coefficient": 1, "trace": "none", "terms": 3})  # which trace, the model says itself

    class Plugin(torch.nn.Module):
        def __init__(self, shape, size=3, tables: "Unheard" = None, **others):  # type: ignore[name-defined]  # noqa: F821
            super().__init__()

    check_configuration("plugin", Plugin, {"size": "large", "tables": 3, "more": 1})
    check_configuration("function", lambda shape, size=3: None, {"size": 4.5})
    with pytest.raises(OodbenchError, match=r"^function takes no 'more': leave it out\.$"):
        check_configuration("function", lambda shape: None, {"more": 1})


def test_it_is_told_wherever_a_model_is_built_from_one(tmp_path: Path):
    wrong, shape = {"stesp": 3}, (1, 8, 8)
    recipe = Recipe(1, 4, 1e-3, config=wrong)
    with pytest.raises(OodbenchError, match="glow takes no 'stesp'"):
        train("glow", "digits", recipe=recipe, pretrained=tmp_path, progress=False)
    with pytest.raises(OodbenchError, match="glow takes no 'stesp'"):
        MODELS.get("sghmc(glow)")(shape, config=wrong)
    with pytest.raises(OodbenchError, match="vae takes no 'stesp'"):
        MODELS.get("two-step")(shape, first="vae", first_config=wrong)
    for prior in ("couplings", "maf", "iaf", "nice"):
        with pytest.raises(OodbenchError, match=f"{prior} takes no 'stesp'"):
            MODELS.get("rectangular")(shape, latents=4, prior=prior, prior_config=wrong)
    with pytest.raises(OodbenchError, match="nice takes no 'whiten'"):  # which is of images
        MODELS.get("rectangular")(shape, latents=4, prior="nice", prior_config={"whiten": True})
    model = MODELS.get("glow")(shape, **CONFIGS["glow"])
    assert model.log_prob(some_images(2, shape), noise_of(2)).isfinite().all()
    entry = {
        "dataset": "toys", "model": "glow", "role": "model", "preset": "small", "seed": 0, "shape": list(shape),
        "recipe": {"config": CONFIGS["glow"]}, "data_fingerprint": "0", "undertrained": False,
    }  # fmt: skip
    save_model(model, entry, tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    index["weights"][0]["recipe"]["config"] |= {"steps": 1.5}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(OodbenchError, match="does not fit this version: glow takes a whole number for 'steps'"):
        load_model("glow", "toys", weights=tmp_path)
