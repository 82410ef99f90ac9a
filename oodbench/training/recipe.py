"""A recipe: how a model of one preset is built and trained on one data set. The numbers live in `recipes/*.toml`."""

import tomllib
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from typing import Any

from oodbench.errors import OodbenchError
from oodbench.registry import split_posterior

__all__ = ["PRESETS", "Recipe", "load_recipe"]

PRESETS = ("tiny", "small", "paper")


@dataclass(frozen=True)
class Recipe:
    """Everything that training depends on besides the images and the seed."""

    steps: int
    batch_size: int
    learning_rate: float  # at its peak: linear warm-up, then a cosine to zero
    warmup: int = 200  # steps
    weight_decay: float = 0.0  # AdamW's, on every parameter
    clip: float = 1.0  # largest global gradient norm, of the loss in nats per dimension
    ema: float = 0.999  # the weights that are kept are an exponential moving average
    precision: str = "float32"  # of the networks: "float32" or "bfloat16"
    mutation: float = 0.0  # share of pixel values replaced by uniform ones (background models, Ren et al. 2019)
    config: dict[str, Any] = field(default_factory=dict)  # the model's configuration

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for indices and hashes."""
        return asdict(self)


def load_recipe(model: str, dataset: str, preset: str = "small", background: bool = False) -> Recipe:
    """The recipe of `recipes/<preset>.toml`: its defaults, then the model's table, then the one for the data set.

    Tables are named `[glow]`, `[glow.cifar10]` and `[glow.cifar10.background]`; the last holds what a background model
    changes. A `config` table adds to the one before it. Of `sghmc(vae)` it is that of vae, in which `[sghmc]`,
    `[sghmc.vae]` and `[sghmc.vae.cifar10]` change what they name; its config holds that of vae as `config`.
    """
    if preset not in PRESETS:
        raise OodbenchError(f"Unknown preset {preset!r}: there are {', '.join(PRESETS)}.")
    text = resources.files("oodbench.training").joinpath("recipes", f"{preset}.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    posterior, model = split_posterior(model)
    own = tables.get(model, {})
    values: dict[str, Any] = {}
    config: dict[str, Any] = {}
    for_data = own.get(dataset, {})
    for table in (tables["defaults"], own, for_data, for_data.get("background", {}) if background else {}):
        config |= table.get("config", {})
        values |= {key: value for key, value in table.items() if not isinstance(value, dict)}
    if posterior is not None:
        around = tables.get(posterior, {})
        of_model = around.get(model, {})
        config = {"config": config}
        for table in (around, of_model, of_model.get(dataset, {})):
            config |= table.get("config", {})
            values |= {key: value for key, value in table.items() if not isinstance(value, dict)}
    if background:
        values.setdefault("mutation", tables["background"]["mutation"])
        values["weight_decay"] = values.get("weight_decay") or tables["background"]["weight_decay"]
    unknown = set(values) - {f.name for f in fields(Recipe)}
    if unknown:
        raise OodbenchError(f"The {preset} recipe of {model} has unknown entries: {', '.join(sorted(unknown))}.")
    return Recipe(**values, config=config)
