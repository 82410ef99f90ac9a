"""What M members cost beside one: in one pass over the images, by vmap, and in a plain loop with load_state_dict.

    python benchmarks/members.py --threads 2
    python benchmarks/members.py --device cuda

One process, contenders in turns; ratios are of medians. The members share encoder, draws and the reading of images.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from turns import in_turns

from oodbench.engine.device import keep_freed_memory, true_float32
from oodbench.models.nn import Convolution, networks
from oodbench.models.noise import Noise
from oodbench.models.posteriors.posterior import WeightPosterior
from oodbench.models.vae.latent import importance_weighted_members
from oodbench.models.vae.vae import VAE
from oodbench.registry import MODELS

CASES: list[tuple[str, dict[str, Any], int]] = [
    ("vae-mlp", {"latents": 32, "hidden": 400, "draws": 2}, 1),
    ("vae-mlp", {"latents": 32, "hidden": 400, "draws": 16}, 1),
    ("vae-mlp", {"latents": 32, "hidden": 400, "draws": 16}, 16),
    ("vae-mlp", {"latents": 32, "hidden": 400, "draws": 2}, 256),
    ("vae-mlp", {"latents": 32, "hidden": 400, "draws": 16}, 256),
    ("vae", {"latents": 10, "hidden": 64, "draws": 16}, 1),
    ("vae", {"latents": 10, "hidden": 64, "draws": 16}, 16),
    ("vae", {"latents": 10, "hidden": 64, "draws": 16}, 64),
]
SHAPE = (1, 32, 32)


def main() -> None:
    """Prints images/s and ratios for MLP and convolutional decoders, at small and large batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", choices=sorted({name for name, _, _ in CASES}), help="one kind of decoder alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    m, device = arguments.members, torch.device(arguments.device)
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{arguments.threads} threads"
    print(f"decoder posteriors, {SHAPE}, {where}, n = {arguments.repeats}; in times of one member")
    print(f"{'':40}{'one member':>14}{f'{m} in one pass':>18}{'vmap':>14}{'plain loop':>14}")
    for name, config, batch in CASES:
        if arguments.model not in (None, name):
            continue
        one, many = posterior(name, config, 1).to(device), posterior(name, config, m).to(device)
        x = torch.randint(0, 256, (batch, *SHAPE), dtype=torch.uint8, device=device)
        noise = Noise.of(torch.arange(batch, device=device))
        turns = 1 if batch > 1 else 20
        with true_float32(device):
            seconds = in_turns(
                {
                    "one": evaluated(one, x, noise, turns),
                    "pass": evaluated(many, x, noise, turns),
                    "vmap": vmapped(many, x, noise, turns),
                    "loop": looped(many, x, noise, turns),
                },
                arguments.repeats,
                finish=finish,
            )
        median = {key: statistics.median(values) / turns for key, values in seconds.items()}
        what = f"{name}, K = {config['draws']}, batch {batch}"
        print(
            f"{what:40}{median['one'] * 1e3:11.2f} ms{median['pass'] / median['one']:18.2f}"
            f"{median['vmap'] / median['one']:14.2f}{median['loop'] / median['one']:14.2f}"
        )


def posterior(name: str, config: dict[str, Any], members: int) -> WeightPosterior:
    """A decoder posterior with that many members, all of them different."""
    torch.manual_seed(0)
    module: WeightPosterior = MODELS.get(f"swag({name})")(SHAPE, config=config, members=members, part="decoder")
    for _ in range(members):
        module.keep({key: p + 0.01 * torch.randn_like(p) for key, p in module.random.items()})
    return module.eval()


def evaluated(module: WeightPosterior, x: Tensor, noise: Noise, turns: int) -> Callable[[], None]:
    """As the engine does: folded weights, one call a batch."""

    def run() -> None:
        with torch.inference_mode(), networks(fold=True):
            for _ in range(turns):
                module.statistics(x, noise)

    return run


def vmapped(module: WeightPosterior, x: Tensor, noise: Noise, turns: int) -> Callable[[], None]:
    """The decoder under torch.func.vmap, over the stacked weights of all members; the rest once, as in one pass."""
    inner = cast(VAE, module.inner)
    decoder = copy.deepcopy(inner.decoder)
    for layer in decoder.modules():
        if isinstance(layer, Convolution):  # whose weights are channels last otherwise, which vmap does not know
            setattr(layer, "parameters_now", lambda layer=layer: (layer.weight, layer.bias))  # noqa: B010
    stacks = {key.removeprefix("decoder."): module.stack(key) for key in module.random}

    def log_px_given_z(x: Tensor, z: Tensor) -> Tensor:
        def of_member(weights: dict[str, Tensor]) -> Tensor:
            return inner.pixel.log_prob(x, torch.func.functional_call(decoder, weights, z))

        with torch.enable_grad():  # of which there is none to record: oneDNN's own calls have no rule for vmap
            return torch.func.vmap(of_member)(stacks)

    def run() -> None:
        with torch.no_grad():
            for _ in range(turns):
                importance_weighted_members(inner, [log_px_given_z], x, noise, inner.draws)

    return run


def looped(module: WeightPosterior, x: Tensor, noise: Noise, turns: int) -> Callable[[], None]:
    """The ordinary model, its weights loaded one member after the other for every batch."""
    inner = module.inner
    weights = [{key: module.stack(key)[m] for key in module.random} for m in range(module.members)]

    def run() -> None:
        with torch.inference_mode():
            for _ in range(turns):
                for each in weights:
                    inner.load_state_dict(each, strict=False)
                    inner.log_prob(x, noise)

    return run


if __name__ == "__main__":
    main()
