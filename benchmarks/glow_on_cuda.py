"""The Glow on a GPU: its core in CUDA graphs beside normflows and the convolutions alone."""

from collections.abc import Callable
from typing import cast

import torch
from glows import log_prob, normflows_glow
from likelihood import CONFIG, Layer, convolution_layers, crops, glow
from torch import Tensor
from turns import in_turns, print_table

from oodbench.engine.device import true_float32
from oodbench.models.flows.flow import Flow
from oodbench.models.flows.glow import Glow
from oodbench.models.nn import networks
from oodbench.models.noise import Noise

__all__ = ["core", "cuda_row"]

BATCHES = (64, 512, 4096)
SHAPE = (3, 32, 32)


def cuda_row(repeats: int) -> None:
    """Prints a table a batch size; nothing synchronises within a turn."""
    device = torch.device("cuda")
    module = cast(Glow, glow(crops(256), None).module).to(device)
    peer = normflows_glow(SHAPE, **CONFIG).to(device)
    with true_float32(device):
        for batch in BATCHES:
            n, of_peers = 4 * BATCHES[-1], 4 * batch  # a call of a peer launches thousands of kernels
            x = torch.rand(n, *SHAPE, device=device) - 0.5
            with torch.no_grad():
                peer(x[:batch])
            contenders = {
                "normflows": log_prob(peer.eval(), x[:of_peers], batch),
                "normflows + channels_last": log_prob(peer, x[:of_peers], batch, True),
            }
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
                contenders[f"ours {name}, CUDA graphs"] = core(module.flow, x, batch, dtype, "reduce-overhead")
                contenders[f"ours {name}, uncompiled"] = core(module.flow, x, batch, dtype, None)
                contenders[f"floor {name}"] = _convolutions(convolution_layers(module, batch, dtype), n // batch)
            seconds = in_turns(contenders, repeats, lambda name: torch.cuda.synchronize(), torch.cuda.synchronize)
            images = {name: of_peers if name.startswith("normflows") else n for name in contenders}
            print_table(f"Glow 3x32x32, {CONFIG}, {torch.cuda.get_device_name()}, batch {batch}", seconds, images)


def core(flow: Flow, x: Tensor, batch: int, dtype: torch.dtype, mode: str | None) -> Callable[[], None]:
    """The log density of dequantised images, channels last; compiled with this mode, or not."""
    states, noise = x.permute(0, 2, 3, 1).contiguous(), Noise.of(torch.arange(batch, device=x.device))

    def density(h: Tensor) -> Tensor:
        return flow.log_density(h, noise)

    function = density if mode is None else torch.compile(density, mode=mode, dynamic=False, fullgraph=True)

    def run() -> None:
        with torch.inference_mode(), networks(None if dtype == torch.float32 else dtype, fold=True):
            density(states[:1])  # derives the folded constants outside of the graphs, which would overwrite them
            for part in states.split(batch):
                function(part)

    return run


def _convolutions(couplings: list[tuple[Tensor, list[Layer]]], times: int) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            for _ in range(times):
                for x, layers in couplings:
                    for weight, bias, padding in layers:
                        x = torch.conv2d(x, weight, bias, 1, padding)

    return run
