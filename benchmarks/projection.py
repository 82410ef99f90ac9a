"""Does likelihood regret fail where an encoder starts as a projection? One VAE, started in two ways, then its regret.

    python benchmarks/projection.py --in cifar10 --out svhn --start principal
    python benchmarks/projection.py --in cifar10 --out svhn --start mean

A convolutional VAE with as many latents as `vae-dcgan` and its recipe, whose encoder and decoder have a linear map of
the whole image beside their network. The maps start at principal components ("principal"), as those of every VAE here
but vae-dcgan do, or at zero ("mean"): then it starts as the mean image alone, like vae-dcgan.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oodbench.benchmark import run_records
from oodbench.models.vae.principal import mean_alone
from oodbench.models.vae.vae import DenseVAE
from oodbench.registry import MODELS
from oodbench.training import load_recipe, train


class FromMeanImage(DenseVAE):
    """Starts as the mean image, whatever the latents."""

    @torch.no_grad()
    def calibrate(self, known: Tensor, held_out: Tensor) -> None:
        mean = mean_alone(self.values(known).double().flatten(1))
        self.encoder.start_at(mean, self.latents)
        self.decoder.start_at(mean, self.pixel)


STARTS = {"principal": DenseVAE, "mean": FromMeanImage}


def main() -> None:
    """Prints bits/dim and the AUROC of likelihood, reconstruction, KL and regret."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in", dest="in_", default="cifar10")
    parser.add_argument("--out", default="svhn")
    parser.add_argument("--start", choices=STARTS, required=True)
    parser.add_argument("--steps", type=int, help="default: those of vae-dcgan")
    parser.add_argument("--images", type=int, default=500, help="a set")
    parser.add_argument("--folder", type=Path, default=Path("projection"), help="gets the weights and the records")
    arguments = parser.parse_args()

    name = f"vae-from-{arguments.start}"
    MODELS.add(name, STARTS[arguments.start])
    recipe = load_recipe("vae-dcgan", arguments.in_)
    config: dict[str, Any] = recipe.config | {"network": "convolutional"}
    trained = train(
        name,
        arguments.in_,
        recipe=replace(recipe, steps=arguments.steps or recipe.steps, config=config),
        pretrained=arguments.folder / "weights",
    )
    print(f"{name}: {trained.entry['bits_per_dim']:.3f} bits/dim of validation images")
    records = run_records(
        arguments.in_,
        arguments.out,
        name,
        ["likelihood", "reconstruction", "kl", "likelihood_regret"],
        limit=arguments.images,
        weights=arguments.folder / "weights",
        results=arguments.folder / "results",
    )
    for record in records:
        auroc, bits = record["metrics"]["auroc"], record["bits_per_dim"]
        print(
            f"{record['detector']:20} {auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}]"
            f"   n = {record['n_in']} / {record['n_out']}, bits/dim {bits['in']:.3f} / {bits['out']:.3f}"
        )


if __name__ == "__main__":
    main()
