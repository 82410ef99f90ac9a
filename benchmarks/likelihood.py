"""How much of the convolutions' speed the likelihood of a Glow keeps: the engine against the bare convolutions.

    python benchmarks/likelihood.py --threads 2

Everything runs in one process and in turns, so that a busy or throttled machine slows all contenders alike: read the
ratios. A ratio is that of the two medians; `best` compares the fastest repeats instead, which disturbances only slow.
The floor is the three convolutions of every coupling, channels last with bias on dense inputs, and nothing else.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor
from turns import in_turns

from oodbench.data import Images, adaptation, in_domain, load
from oodbench.engine import evaluate
from oodbench.engine.device import keep_freed_memory
from oodbench.models.flows.glow import Glow
from oodbench.models.flows.networks import ConvolutionNetwork
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.squeeze import Squeeze
from oodbench.models.nn import networks
from oodbench.models.noise import Noise
from oodbench.pretrained import TrainedModel

CONFIG = {"levels": 3, "steps": 8, "hidden": 128}
Layer = tuple[Tensor, Tensor, tuple[int, int]]
PRECISIONS: tuple[Literal["float32"], Literal["bfloat16"]] = ("float32", "bfloat16")


def main() -> None:
    """Prints a table of images/s, the ratios to the floor, and what bfloat16 changes in log P."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    parser.add_argument(
        "--images",
        type=int,
        default=1024,
        help="images a contender evaluates in one turn, best a multiple of the batch",
    )
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contender")
    parser.add_argument("--weights", type=Path, help="safetensors of a trained 3x32x32 Glow; default: perturbed ones")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # the engine does it anyway: the others shall have it too

    images = crops(arguments.images)
    model = glow(images, arguments.weights)
    log_px: dict[str, np.ndarray] = {}
    contenders: dict[str, Callable[[], None]] = {}
    for precision in PRECISIONS:
        contenders[f"engine {precision}"] = engine(model, images, arguments.batch, precision, log_px)
        contenders[f"statistics() {precision}"] = direct(model, images, arguments.batch, precision)
        contenders[f"convolutions {precision}"] = convolutions(model, len(images), arguments.batch, precision)
    seconds = in_turns(contenders, arguments.repeats)

    n, threads = len(images), arguments.threads
    print(f"Glow 3x32x32, {CONFIG}, batch {arguments.batch}, {threads} threads, n = {arguments.repeats} x {n} images")
    print(f"{'':24}{'images/s':>10}{'of floor':>10}{'best':>10}{'of floor':>10}")
    for name, times in seconds.items():
        floor = seconds[f"convolutions {name.split()[-1]}"]
        middle, fastest = statistics.median(times), min(times)
        ratios = statistics.median(floor) / middle, min(floor) / fastest
        print(f"{name:24}{n / middle:10.0f}{ratios[0]:10.1%}{n / fastest:10.0f}{ratios[1]:10.1%}")
    error = (log_px["bfloat16"] - log_px["float32"]).astype(np.float64)
    print(
        f"log P in bfloat16 - float32, nats: mean {error.mean():+.3f}, mean size {np.abs(error).mean():.3f}, "
        f"largest {np.abs(error).max():.3f} (float32: {log_px['float32'].mean():.0f} on average)"
    )


def crops(n: int) -> Images:
    """n natural 3x32x32 images in memory, the embedded ones repeated if they are too few."""
    photos = load("photos", "train")
    again = np.arange(n) % len(photos)
    rows = np.arange(n)
    return Images(photos.name, photos.split, photos.pixels[again], None, rows, photos.fingerprint, rows)


def glow(images: Images, weights: Path | None) -> TrainedModel:
    """A Glow with these weights, else with Actnorm's start on the images and seeded noise on every parameter."""
    module = Glow(images.shape, **CONFIG)
    if weights is not None:
        from safetensors.torch import load_file

        module.load_state_dict(load_file(weights))
    else:
        first = torch.from_numpy(images.pixels[:256])
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            module.initialise(first, Noise.of(torch.arange(len(first))))
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return TrainedModel(module.eval(), "glow", images.name, str(weights), {"recipe": {"config": CONFIG}})


def engine(
    model: TrainedModel,
    images: Images,
    batch: int,
    precision: Literal["float32", "bfloat16"],
    log_px: dict[str, np.ndarray],
) -> Callable[[], None]:
    """The whole of `evaluate`, from pixels to cached columns, each time into an empty cache."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as cache:
            result = evaluate(
                ["log_px"],
                images,
                adaptation(images, in_domain(images)),
                model=model,
                device="cpu",
                batch_size=batch,
                precision=precision,
                cache=Path(cache),
                progress=False,
            )
        log_px[precision] = result.columns["log_px"]

    return run


def direct(model: TrainedModel, images: Images, batch: int, precision: str) -> Callable[[], None]:
    """The model's statistics(), a batch at a time."""
    x, noise = torch.from_numpy(images.pixels), Noise.of(torch.from_numpy(images.index))
    parts = [slice(i, i + batch) for i in range(0, len(x), batch)]

    def run() -> None:
        with torch.inference_mode(), networks(torch.bfloat16 if precision == "bfloat16" else None, fold=True):
            for part in parts:
                model.module.statistics(x[part], noise.rows(part))

    return run


def convolutions(model: TrainedModel, n: int, batch: int, precision: str) -> Callable[[], None]:
    """The floor: nothing but the couplings' convolutions, for as many batches."""
    assert isinstance(model.module, Glow)
    couplings = convolution_layers(model.module, batch, getattr(torch, precision))

    def run() -> None:
        with torch.inference_mode():
            for _ in range(0, n, batch):
                for x, layers in couplings:
                    for weight, bias, padding in layers:
                        x = torch.conv2d(x, weight, bias, 1, padding)

    return run


def convolution_layers(module: Glow, batch: int, dtype: torch.dtype) -> list[tuple[Tensor, list[Layer]]]:
    """For every coupling a dense channels-last input (B, kept, H, W), and weight, bias and padding of its layers."""
    side, couplings = module.shape[1], []
    with torch.no_grad(), networks(dtype):
        for layer in module.flow.layers:
            if isinstance(layer, Squeeze):
                side //= 2
            elif isinstance(layer, Coupling):
                network = cast(ConvolutionNetwork, layer.network)
                parts = [network.first, network.second, network.last]
                x = torch.randn(batch, side, side, layer.kept, device=module.device).to(dtype).permute(0, 3, 1, 2)
                layers = [(*(t.detach().clone() for t in part.parameters_now()), part.padding) for part in parts]
                couplings.append((x, cast("list[Layer]", layers)))
    return couplings


if __name__ == "__main__":
    main()
