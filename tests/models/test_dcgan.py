"""Encoders and decoders of strided convolutions alone."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import noise_of, smooth_images, tiny

from oodbench.errors import OodbenchError
from oodbench.models.vae.dcgan import DCGANDecoder, DCGANEncoder
from oodbench.models.vae.observations import observation
from oodbench.models.vae.refit import can_refit, regret


@pytest.mark.parametrize(
    ("shape", "channels", "place"),
    [
        ((3, 32, 32), [5, 10, 20], (20, 4, 4)),
        ((1, 28, 28), [5, 10], (10, 7, 7)),
        ((1, 8, 8), [5], (5, 4, 4)),
        ((2, 12, 40), [5, 10], (10, 3, 10)),  # until one side is odd, or four
    ],
)
def test_every_halving_of_the_sides_doubles_the_channels(shape, channels, place):
    pixel = observation("bernoulli", shape[0], 1)
    encoder, decoder = DCGANEncoder(shape, 5, 6), DCGANDecoder(shape, 5, 4, pixel)
    assert [layer.weight.shape[0] for layer in encoder.layers] == channels
    assert [layer.weight.shape[1] for layer in decoder.layers] == channels[::-1]
    assert decoder.place == place
    assert encoder(torch.randn(2, *shape)).shape == (2, 6)
    assert decoder(torch.randn(2, 4)).shape == (2, pixel.outputs, *shape[1:])


@pytest.mark.parametrize("side", [31, 4])
def test_an_image_that_cannot_be_halved_is_told_so(side):
    with pytest.raises(OodbenchError, match=f"{side}x{side} images: sides must be even and above 4"):
        tiny("vae-dcgan", (3, side, side))


@pytest.mark.parametrize("name", ["iaf-vae", "svae", "vqvae-bridge"])
def test_models_that_start_at_principal_components_refuse_it(name):
    with pytest.raises(OodbenchError, match="take another network"):
        tiny(name, (1, 8, 8), network="dcgan")


def test_images_that_are_all_alike_can_be_started_from():
    model, images = tiny("vae-dcgan", (1, 8, 8), scale=0.0), torch.full((10, 1, 8, 8), 77, dtype=torch.uint8)
    model.calibrate(images, images)
    assert bool(model.log_prob(images[:2], noise_of(2)).isfinite().all())


@torch.no_grad()
def test_the_decoder_can_be_that_of_transposed_convolutions():
    torch.manual_seed(0)
    decoder = DCGANDecoder((2, 8, 8), 3, 4, observation("bernoulli", 2, 1)).double()
    z, transposed = torch.randn(5, 4).double(), torch.randn(3, 2, 4, 4).double()
    # Output 2i + p takes from inputs i + d - 1 the kernel's row k: 2(i + d - 1) - 1 + k = 2i + p.
    plain = torch.zeros(2, 2, 2, 3, 3, 3).double()  # outputs, parities, inputs, kernel
    for p in range(2):
        for q in range(2):
            for d in range(3):
                for e in range(3):
                    row, column = p + 3 - 2 * d, q + 3 - 2 * e
                    if 0 <= row < 4 and 0 <= column < 4:
                        plain[:, p, q, :, d, e] = transposed[:, :, row, column].T
    decoder.layers[0].weight.copy_(plain.flatten(0, 2))
    decoder.start.copy_(torch.randn(2, 8, 8))
    hidden = F.relu(decoder.first(z).reshape(5, 3, 4, 4))
    expected = F.conv_transpose2d(hidden, transposed, stride=2, padding=1) + decoder.start
    torch.testing.assert_close(decoder(z), expected, rtol=0, atol=1e-12)


def test_it_starts_at_the_mean_image_and_at_the_prior():
    shape = (3, 8, 8)
    model = tiny("vae-dcgan", shape, scale=0.0, mixtures=2)
    images = smooth_images(50, shape)
    model.calibrate(images, images)
    x, noise = images[:4], noise_of(4)
    columns = model.statistics(x, noise)
    torch.testing.assert_close(columns["kl"], torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(columns["log_px"], columns["elbo"], rtol=0, atol=1e-3)
    values = images.float() / 127.5 - 1
    located = model.decoder.start[slice(*model.pixel.location)].reshape(3, 2, 8, 8)
    torch.testing.assert_close(located.mean(1), values.mean(0), rtol=0, atol=1e-6)  # two logistics around it


def test_its_encoder_can_be_refitted_and_the_bound_rises():
    shape = (1, 8, 8)
    model = tiny("vae-dcgan", shape, scale=0.1)
    assert can_refit(model)
    x, noise = smooth_images(3, shape), noise_of(3)
    gains = regret(model, x, noise, steps=30, rate=2e-2)
    assert float(gains.min()) > 1
    alone = torch.cat([regret(model, x[i : i + 1], noise.rows(slice(i, i + 1)), steps=30, rate=2e-2) for i in range(3)])
    torch.testing.assert_close(gains, alone, rtol=1e-3, atol=1e-2)
