"""The speed of our models beside normflows, nflows, zuko and pythae (the extra `bench`), at equal architectures.

    python benchmarks/peers.py --rows glow,glow-best,glow-train,spline,maf,vae,regret,bfloat16 --threads 2

Rows spline-train and maf-train are training steps. Everything of a row runs in one process and in turns (`turns.py`):
read the ratios. Peers run as by default, with memory as glibc treats it of itself (`freed_memory.py`), and tuned, with
memory kept as our engine keeps it. Glow's peers get float32 inputs that are ready, ours takes 8-bit images and
dequantises them. The floor is the convolutions or matrix products alone. With `--device cuda` the Glow's core runs in
CUDA graphs, beside normflows and the floor, at three batch sizes.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import cast

import importance
import refitting
import torch
from bfloat16_error import precision_row
from freed_memory import FreedMemory
from glow_on_cuda import cuda_row
from glows import (
    check_sizes,
    convolution_training,
    log_prob,
    nflows_glow,
    normflows_glow,
    our_training,
    training,
)
from likelihood import CONFIG, convolutions, crops, direct, engine, glow
from torch import Tensor, nn
from turns import Target, in_turns, print_table
from vectors import OurDensity, density, mafs, product_training, products, splines

from oodbench.engine.device import keep_freed_memory
from oodbench.models.flows.flow import Flow
from oodbench.models.flows.glow import Glow
from oodbench.models.noise import Noise


def main() -> None:
    """Prints one table a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contender")
    parser.add_argument("--tries", type=int, default=2, help="turns of each batch size and memory format in glow-best")
    parser.add_argument("--compile", action="store_true", help="also torch.compile of the peers in glow-best")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore")  # the peers' deprecated calls
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads")
    if arguments.device == "cuda":
        cuda_row(arguments.repeats)
        return
    unknown = set(arguments.rows.split(",")) - set(ROWS)
    if unknown:
        parser.error(f"unknown rows {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    for row in arguments.rows.split(","):
        ROWS[row](arguments)


def the_glows() -> dict[str, nn.Module]:
    """The peers, whose Actnorms have seen a first batch."""
    peers = {"normflows": normflows_glow((3, 32, 32), **CONFIG), "nflows": nflows_glow((3, 32, 32), **CONFIG)}
    for model in peers.values():
        with torch.no_grad():
            model(dequantised(64))
        model.eval()
    return peers


def dequantised(n: int) -> Tensor:
    """What the peers take: (n, 3, 32, 32) on [-1/2, 1/2]."""
    x = torch.from_numpy(crops(n).pixels).float()
    return (x + torch.rand(x.shape)) / 256 - 0.5


def glow_row(arguments: argparse.Namespace, n: int = 1024, batch: int = 64) -> None:
    """log_prob as the peers run by default."""
    images, x, peers = crops(n), dequantised(n), the_glows()
    ours = glow(images, None)
    check_sizes({"ours": ours.module, **peers}, axes=4)
    contenders: dict[str, Callable[[], None]] = {}
    for name, model in peers.items():
        contenders[name] = log_prob(model, x, batch)
        contenders[f"{name} + freed memory kept"] = log_prob(model, x, batch)
    for precision in ("float32", "bfloat16"):
        contenders[f"ours {precision}"] = engine(ours, images, batch, precision, {})
        contenders[f"ours {precision}, the model alone"] = direct(ours, images, batch, precision)
        contenders[f"floor {precision}"] = convolutions(ours, n, batch, precision)
    print_table(
        f"Glow 3x32x32, {CONFIG}, log_prob, batch {batch}, {n} images a turn",
        in_turns(contenders, arguments.repeats, FreedMemory(largest_of_a_glow(batch))),
        n,
        [
            Target("ours float32", "default", 2.5),
            Target("ours float32", "floor", 0.9),
            Target("ours bfloat16", "default", 4),
        ],
    )


def largest_of_a_glow(batch: int) -> int:
    """Bytes of the largest activation: the hidden channels of the first level."""
    return 4 * batch * CONFIG["hidden"] * 16 * 16


def glow_best_row(arguments: argparse.Namespace, n: int = 256) -> None:
    """log_prob, every contender at its best of three batch sizes and two memory formats, freed memory kept."""
    images, x, peers = crops(n), dequantised(n), the_glows()
    ours = glow(images, None)
    candidates: dict[str, dict[str, Callable[[], None]]] = {}
    for name, model in peers.items():
        candidates[name] = {
            f"{'channels_last' if last else 'NCHW'}, batch {batch}": log_prob(model, x, batch, last)
            for batch in (32, 64, 128)
            for last in (False, True)
        }
    for precision in ("float32", "bfloat16"):
        candidates[f"ours {precision}"] = {f"batch {b}": engine(ours, images, b, precision, {}) for b in (32, 64, 128)}
        candidates[f"floor {precision}"] = {f"batch {b}": convolutions(ours, n, b, precision) for b in (32, 64, 128)}
    if arguments.compile:
        for name, model in peers.items():
            candidates[f"{name} + torch.compile"] = {"channels_last, batch 64": compiled(name, model, x)}
    contenders: dict[str, Callable[[], None]] = {}
    print()
    for name, options in candidates.items():
        best = min((min(times), option) for option, times in in_turns(options, arguments.tries).items())[1]
        contenders[name] = options[best]
        print(f"best of {name}: {best}")
    print_table(
        f"Glow 3x32x32, {CONFIG}, log_prob, each at its best, {n} images a turn",
        in_turns(contenders, arguments.repeats),
        n,
        [Target("ours float32", "tuned", 1.05), Target("ours bfloat16", "tuned", 1.8)],
    )


def compiled(name: str, model: nn.Module, x: Tensor) -> Callable[[], None]:
    """A peer under torch.compile, channels last."""
    run = log_prob(model, x, 64, channels_last=True, compiled=True)
    started = time.perf_counter()
    run()
    print(f"{name} compiled in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return run


def glow_training_row(arguments: argparse.Namespace, batch: int = 64) -> None:
    """Forward, backward, AdamW step."""
    images, x = crops(batch), dequantised(batch)
    pixels, noise = torch.from_numpy(images.pixels), Noise.of(torch.arange(batch))
    contenders: dict[str, Callable[[], None]] = {}
    for name, model in the_glows().items():
        contenders[name] = training(model, x)
    for name, model in the_glows().items():
        contenders[f"{name} + channels_last, memory kept"] = training(model, x, channels_last=True)
    for precision, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        model = cast(Glow, glow(images, None).module)
        contenders[f"ours {precision}"] = our_training(model, pixels, noise, dtype)
        contenders[f"floor {precision}"] = convolution_training(model, batch, dtype or torch.float32)
    print_table(
        f"Glow 3x32x32, {CONFIG}, training step, batch {batch}",
        in_turns(contenders, arguments.repeats, FreedMemory(largest_of_a_glow(batch))),
        batch,
        [Target("ours float32", "default", 1.05), Target("ours bfloat16", "default", 1.5)],
    )


def vector_row(
    arguments: argparse.Namespace,
    title: str,
    models: dict[str, nn.Module],
    targets: tuple[float, float],
    n: int = 2048,
    batch: int = 256,
) -> None:
    """Log densities of vectors of 784 numbers; ours as the engine runs batches, in lanes."""
    check_sizes(models, axes=2)
    ours = cast(Flow, models.pop("ours"))
    x = torch.randn(n, 784)
    largest = 4 * batch * max(p.shape[0] for p in ours.parameters())  # the networks' outputs
    contenders: dict[str, Callable[[], None]] = {}
    for name, model in models.items():
        contenders[name] = log_prob(model, x, batch)
        contenders[f"{name} + freed memory kept"] = log_prob(model, x, batch)
    for precision, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        contenders[f"ours {precision}"] = density(ours, x, batch, dtype)
        contenders[f"ours {precision}, no lanes"] = density(ours, x, batch, dtype, side_by_side=False)
        contenders[f"floor {precision}"] = products(ours, x, batch, dtype or torch.float32)
    print_table(
        f"{title}, batch {batch}, {n} vectors a turn",
        in_turns(contenders, arguments.repeats, FreedMemory(largest)),
        n,
        [Target("ours float32", "default", targets[0]), Target("ours float32", "floor", targets[1])],
    )


def vector_training_row(
    arguments: argparse.Namespace, title: str, models: dict[str, nn.Module], batch: int = 256
) -> None:
    """Forward, backward, AdamW step on vectors of 784 numbers."""
    check_sizes(models, axes=2)
    ours = cast(Flow, models.pop("ours"))
    x = torch.randn(batch, 784)
    largest = 4 * batch * max(p.shape[0] for p in ours.parameters())
    contenders: dict[str, Callable[[], None]] = {}
    for name, model in models.items():
        contenders[name] = training(model, x)
        contenders[f"{name} + freed memory kept"] = training(model, x)
    for precision, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        contenders[f"ours {precision}"] = training(OurDensity(ours, batch, dtype), x)
        contenders[f"floor {precision}"] = product_training(ours, batch, dtype or torch.float32)
    print_table(
        f"{title}, training step, batch {batch}",
        in_turns(contenders, arguments.repeats, FreedMemory(largest)),
        batch,
    )


SPLINES = "Spline coupling, 784 numbers, 4 layers of 256 units, 8 bins"
MAFS = "MAF, 784 numbers, 5 layers of 512 units"


def spline_row(arguments: argparse.Namespace) -> None:
    """Neural spline couplings."""
    vector_row(arguments, SPLINES, splines(784, 4, 256), (2.5, 0.65), n=1024)


def maf_row(arguments: argparse.Namespace) -> None:
    """Masked autoregressive flows; the floor's products are dense, while ours leave out blocks that are zero."""
    vector_row(arguments, MAFS, mafs(784, 5, 512), (1.2, 0.9))


def vae_row(arguments: argparse.Namespace, n: int = 256, batch: int = 64, draws: int = 64) -> None:
    """Importance-weighted likelihood; 4,096 decoded images a batch."""
    torch.manual_seed(0)
    model = importance.OneHidden(draws).eval()
    theirs, loop = importance.pythae_vae(model), importance.Loop(model)
    check_sizes({"ours": model, "pythae": theirs, "loop": loop}, axes=2)
    pixels = (torch.rand(n, *importance.SHAPE) < 0.3).to(torch.uint8) * 255
    bits = model.values(pixels)
    peers: dict[str, Callable[[Tensor], object]] = {
        "pythae": lambda part: theirs.get_nll(part, n_samples=draws, batch_size=draws),
        "a loop over draws": loop,
    }
    contenders: dict[str, Callable[[], None]] = {}
    for name, estimate in peers.items():
        contenders[name] = importance.in_batches(estimate, bits, batch)
        contenders[f"{name} + freed memory kept"] = importance.in_batches(estimate, bits, batch)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        contenders[f"ours {precision}"] = importance.ours(model, pixels, batch, dtype, side_by_side=True)
        contenders[f"ours {precision}, no lanes"] = importance.ours(model, pixels, batch, dtype, side_by_side=False)
        contenders[f"floor {precision}"] = importance.decoder_products(model, n, 512, dtype)
    print_table(
        f"VAE 784-512-64, Bernoulli pixels, K = {draws}, batch {batch}, {n} images a turn",
        in_turns(contenders, arguments.repeats, FreedMemory(4 * batch * 784)),
        n,
        [
            Target("ours float32", "pythae", 3.5),
            Target("ours float32", "tuned", 2),
            Target("ours float32", "floor", 0.8),
            Target("ours bfloat16", "pythae", 5),
            Target("ours bfloat16", "tuned", 3),
        ],
    )


def regret_row(arguments: argparse.Namespace, n: int = 32, batch: int = 16) -> None:
    """Likelihood regret; 1,000 images are to take 10 minutes at most."""
    torch.manual_seed(0)
    for name in refitting.NAMES:
        model = refitting.small_preset(name)
        x = torch.randint(0, 256, (n, *refitting.SHAPE), dtype=torch.uint8)
        seconds = in_turns(
            {
                f"{name}, an image after another": refitting.one_by_one(model, x[:4]),
                f"ours, {name}, a batch at once": refitting.ours(model, x, batch),
            },
            arguments.repeats,
        )
        for (contender, turns), images in zip(seconds.items(), (4, n), strict=True):
            each = statistics.median(turns) / images
            print(f"{contender:38}{each:8.3f} s an image, {each * 1000 / 60:6.1f} minutes for 1,000; n = {len(turns)}")


ROWS: dict[str, Callable[[argparse.Namespace], None]] = {
    "glow": glow_row,
    "glow-best": glow_best_row,
    "glow-train": glow_training_row,
    "spline": spline_row,
    "spline-train": lambda arguments: vector_training_row(arguments, SPLINES, splines(784, 4, 256)),
    "maf": maf_row,
    "maf-train": lambda arguments: vector_training_row(arguments, MAFS, mafs(784, 5, 512)),
    "vae": vae_row,
    "regret": regret_row,
    "bfloat16": lambda _: precision_row(),
}

if __name__ == "__main__":
    main()
