"""Gated PixelCNN (van den Oord et al. 2016): masked convolutions without a blind spot, a 256-way softmax a channel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.errors import OodbenchError
from oodbench.models.autoregressive.sampling import sample_pixelwise
from oodbench.models.base import DensityModel, Likelihood
from oodbench.models.nn import Convolution
from oodbench.models.noise import Noise

__all__ = ["PixelCNN"]

ROWS = 16  # images at a time where nothing is kept for gradients: 256 logits a number are 3 MB for one of 3x32x32
LEVELS = 256


class ChannelMasked(Convolution):
    """A convolution over (1, k) pixels ending at the current one, whose colour groups keep the order of the channels.

    At the current pixel, outputs of group g see inputs of groups < g (`strict`, mask A) or <= g (mask B); at pixels to
    the left they see everything. `repeats` is how many times the sequence of groups runs through the outputs.
    """

    mask: Tensor

    def __init__(
        self, inputs: int, outputs: int, groups: int, columns: int = 1, strict: bool = False, repeats: int = 1
    ) -> None:
        super().__init__(inputs, outputs, (1, columns), (0, columns - 1))
        input_group = torch.arange(inputs) * groups // inputs
        output_group = (torch.arange(outputs // repeats) * groups // (outputs // repeats)).repeat(repeats)
        seen = input_group[None, :] < output_group[:, None] if strict else input_group[None, :] <= output_group[:, None]
        mask = torch.ones_like(self.weight)
        mask[:, :, 0, -1] = seen.float()
        self.register_buffer("mask", mask, persistent=False)

    def effective_weight(self) -> Tensor:
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = super().forward(x)[..., : x.shape[-1]]
        return seen


class GatedLayer(nn.Module):
    """One layer of the vertical stack (rows above) and of the horizontal stack (left, and channels before)."""

    def __init__(self, inputs: int, filters: int, groups: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.vertical = Convolution(inputs, 2 * filters, (2, 3), (1, 1))
        self.across = Convolution(2 * filters, 2 * filters)
        self.horizontal = ChannelMasked(inputs, 2 * filters, groups, 2, strict=first, repeats=2)
        self.out = ChannelMasked(filters, filters, groups)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        above = self.vertical(v)[:, :, : v.shape[2]]
        if self.first:  # from here on the vertical stack sees only rows strictly above
            above = F.pad(above, (0, 0, 1, 0))[:, :, :-1]
        left = self.out(_gate(self.horizontal(h) + self.across(above)))
        return _gate(above), left if self.first else h + left


class PixelCNN(DensityModel):
    """log P(x) = sum_i log softmax_256(x_i | x_<i), pixels in raster order and channels in order.

    `layers` gated layers of `filters` channels (rounded down to a multiple of the image's channels).
    """

    likelihood = Likelihood.EXACT

    def __init__(self, shape: tuple[int, int, int], layers: int = 6, filters: int = 48) -> None:
        super().__init__(shape)
        channels = shape[0]
        filters -= filters % channels
        if filters < channels or layers < 1:
            raise OodbenchError(f"pixelcnn needs at least one layer and {channels} filters for {channels} channels.")
        self.layers = nn.ModuleList(
            GatedLayer(channels if i == 0 else filters, filters, channels, first=i == 0) for i in range(layers)
        )
        self.hidden = ChannelMasked(filters, filters, channels)
        self.head = ChannelMasked(filters, channels * LEVELS, channels)

    def logits(self, x: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> (B, H, W, C, 256) in the network dtype."""
        value = x.to(self.head.weight.dtype).contiguous(memory_format=torch.channels_last) / 127.5 - 1
        v, h = value, value
        for layer in self.layers:
            v, h = layer(v, h)
        out = self.head(self.hidden(h.relu()).relu()).permute(0, 2, 3, 1)
        logits: Tensor = out.reshape(*out.shape[:3], self.shape[0], LEVELS)
        return logits

    def log_prob(self, x: Tensor, noise: Noise) -> Tensor:
        """log P(x) in nats (B,); exact, the noise is not used."""
        if len(x) > ROWS and not torch.is_grad_enabled():
            return torch.cat([self.log_prob(part, noise) for part in torch.split(x, ROWS)])
        logits = self.logits(x)
        target = x.permute(0, 2, 3, 1).reshape(-1).long()
        nats = F.cross_entropy(logits.reshape(-1, LEVELS).to(self.head.weight.dtype), target, reduction="none")
        return -nats.reshape(len(x), self.dimensions).sum(1)

    def sample(self, n: int, noise: Noise) -> Tensor:
        """uint8 (n, C, H, W), channel by channel and pixel by pixel: C H W network passes."""

        def draw(x: Tensor, row: int, column: int) -> Tensor:
            x = x.clone()
            for channel in range(self.shape[0]):
                logits = self.logits(x)[:, row, column, channel].float()
                u = noise.uniform((LEVELS,), f"pixel {row} {column} {channel}")
                x[:, channel, row, column] = (logits - torch.log(-torch.log(u))).argmax(-1).to(torch.uint8)
            return x[:, :, row : row + 1, column : column + 1]

        return sample_pixelwise(self.shape, n, noise, draw)


def _gate(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, 1)
    return torch.tanh(value) * torch.sigmoid(gate)
