"""Weights of small models that nobody trained, as a training would leave them."""

from pathlib import Path
from typing import Any

import torch

from oodbench.data import in_domain, load
from oodbench.models.noise import Noise
from oodbench.pretrained import TrainedModel, save_model
from oodbench.registry import MODELS

CONFIGS: dict[str, dict[str, Any]] = {
    "glow": {"levels": 1, "steps": 2, "hidden": 8},
    "glow-cv": {"levels": 1, "steps": 2, "hidden": 8},
    "pixelcnn": {"layers": 1, "filters": 2},
}


def save_random(folder: Path | None, model: str, dataset: str = "digits", **changed: Any) -> TrainedModel:
    """Weights of `model` drawn with its seed and role; `changed` are fields of the index row."""
    images = load(dataset, "train")
    shape = in_domain(images).shape
    with torch.random.fork_rng():
        torch.manual_seed(2 * changed.get("seed", 0) + (changed.get("role") == "background"))
        module = MODELS.get(model)(shape, **CONFIGS[model])
        for parameter in module.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    module.initialise(torch.from_numpy(images.pixels[:64].copy()), Noise.of(torch.arange(64)))
    entry = {
        "dataset": dataset, "model": model, "role": "model", "preset": "small", "seed": 0, "shape": list(shape),
        "likelihood": module.likelihood.value, "recipe": {"steps": 1, "config": CONFIGS[model]},
        "data_fingerprint": images.fingerprint, "undertrained": False, "bits_per_dim": 0.0, "curve": [],
    }  # fmt: skip
    return save_model(module, entry | changed, folder)
