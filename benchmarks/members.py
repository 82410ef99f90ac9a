"""What M members cost beside one: in one pass over the images, and in a plain loop with load_state_dict.

    python benchmarks/members.py --threads 2

One process, contenders in turns; ratios are of medians. The members share encoder, draws and the reading of images.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from turns import in_turns

from oodbench.engine.device import keep_freed_memory
from oodbench.models.nn import networks
from oodbench.models.noise import Noise
from oodbench.models.posteriors.posterior import WeightPosterior
from oodbench.registry import MODELS

CASES: list[tuple[str, dict[str, Any], int]] = [
    ("vae-mlp", {"latents": 32, "hidden": 400, "draws": 2}, 1),
    ("vae-mlp", {"latents": 32, "hidden": 400, "draws": 16}, 1),
    ("vae-mlp", {"latents": 32, "hidden": 400, "draws": 2}, 256),
    ("vae-mlp", {"latents": 32, "hidden": 400, "draws": 16}, 256),
    ("vae", {"latents": 10, "hidden": 64, "draws": 16}, 1),
    ("vae", {"latents": 10, "hidden": 64, "draws": 16}, 64),
]
SHAPE = (1, 32, 32)


def main() -> None:
    """Prints images/s and ratios for MLP and convolutional decoders, at small and large batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", choices=sorted({name for name, _, _ in CASES}), help="one kind of decoder alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    m = arguments.members
    print(f"decoder posteriors, {SHAPE}, {arguments.threads} threads, n = {arguments.repeats}; in times of one member")
    print(f"{'':40}{'one member':>14}{f'{m} in one pass':>18}{'plain loop':>14}")
    for name, config, batch in CASES:
        if arguments.model not in (None, name):
            continue
        one, many = posterior(name, config, 1), posterior(name, config, m)
        x = torch.randint(0, 256, (batch, *SHAPE), dtype=torch.uint8)
        noise = Noise.of(torch.arange(batch))
        turns = 1 if batch > 1 else 20
        seconds = in_turns(
            {
                "one": evaluated(one, x, noise, turns),
                "pass": evaluated(many, x, noise, turns),
                "loop": looped(many, x, noise, turns),
            },
            arguments.repeats,
        )
        median = {key: statistics.median(values) / turns for key, values in seconds.items()}
        what = f"{name}, K = {config['draws']}, batch {batch}"
        print(
            f"{what:40}{median['one'] * 1e3:11.2f} ms{median['pass'] / median['one']:18.2f}"
            f"{median['loop'] / median['one']:14.2f}"
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
