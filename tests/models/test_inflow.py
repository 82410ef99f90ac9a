"""InFlow: gated couplings, and a gate that every image opens for itself."""

import math

import numpy as np
import pytest
import torch
from tiny_models import noise_of, perturb, smooth_images, some_images, tiny

from oodbench.errors import OodbenchError
from oodbench.models.base import Likelihood
from oodbench.models.flows.attention import Attention, rbf
from oodbench.models.flows.flow import standard_normal
from oodbench.models.flows.inflow import InFlow
from oodbench.models.flows.networks import ConvolutionNetwork
from oodbench.models.flows.transforms.coupling import Coupling
from oodbench.models.flows.transforms.elementwise import Affine
from oodbench.models.flows.transforms.permutation import swap_halves
from oodbench.models.flows.transforms.squeeze import Squeeze
from oodbench.plugins import load_builtin
from oodbench.registry import STATISTICS
from oodbench.training import Recipe, train


def calibrated(double: bool = True) -> InFlow:
    """Its gate knows smooth images."""
    model = tiny("inflow", double=double)
    assert isinstance(model, InFlow)
    model.calibrate(smooth_images(60), smooth_images(40, seed=1))
    return model


@torch.no_grad()
def test_the_gate_multiplies_scale_shift_and_volume():
    """Against y = exp(c s) x + c t and log|det| = c sum s, coupling by coupling."""
    model = calibrated()
    x = torch.cat([smooth_images(6, seed=2), some_images(6)])
    noise = noise_of(12)
    columns = model.statistics(x, noise)
    c = (columns["attention_margin"] >= 0).double()
    assert 0 < int(c.sum()) < 12
    h, volume = model.dequantise(x, noise), -model.dimensions * math.log(256) + torch.zeros(12, dtype=torch.float64)
    for layer in model.flow.layers:
        if isinstance(layer, Coupling):
            kept, moved = h[..., : layer.kept], h[..., layer.kept :]
            shift, raw = layer.network(kept).chunk(2, -1)
            s = 3 * (raw / 3).tanh() * c[:, None, None, None]
            h = torch.cat([kept, s.exp() * moved + c[:, None, None, None] * shift], -1)
            volume = volume + s.flatten(1).sum(1)
        else:
            h = layer(h, noise)[0]
    torch.testing.assert_close(columns["log_det"], volume, rtol=1e-12, atol=0)
    torch.testing.assert_close(columns["log_pz"], standard_normal(h), rtol=1e-12, atol=0)
    torch.testing.assert_close(columns["latent_norm"], h.flatten(1).norm(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(columns["log_px"], columns["log_pz"] + columns["log_det"], rtol=1e-12, atol=0)
    torch.testing.assert_close(columns["log_px_scales"].sum(1), columns["log_px"], rtol=1e-12, atol=0)
    chosen = torch.where(c > 0, columns["log_px_open"], columns["log_px_closed"])
    assert torch.equal(columns["log_px"], chosen)
    assert model.likelihood is Likelihood.ESTIMATE


@torch.no_grad()
def test_training_goes_through_the_open_flow():
    model = calibrated()
    x, noise = some_images(6), noise_of(6)
    columns = model.statistics(x, noise)
    assert (columns["attention_margin"] < 0).any()
    torch.testing.assert_close(model.loss(x, noise), -columns["log_px_open"], rtol=1e-14, atol=0)


@torch.no_grad()
def test_an_open_flow_is_a_bijection():
    model = tiny("inflow", (2, 4, 4), double=True, scale=0.3)
    h, noise = torch.randn(2, 4, 4, 2, dtype=torch.float64), noise_of(2)
    torch.testing.assert_close(model.flow.inverse(model.flow(h, noise)[0], noise), h, rtol=0, atol=1e-9)
    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(
            lambda flat: model.flow(flat.reshape(1, 4, 4, 2), noise)[0][0].flatten(), h[0].flatten()
        )
    expected = float(torch.linalg.slogdet(jacobian)[1])
    assert float(model.flow(h[:1], noise)[1].sum()) == pytest.approx(expected, rel=1e-11)
    assert isinstance(model.flow.layers[0], Squeeze)


class OfTwoNumbers(InFlow):
    """Images that cannot be squeezed, and as few as 65,536."""

    def layers(self, shape, levels, steps, hidden):
        for _ in range(2):
            yield Coupling(1, ConvolutionNetwork(1, hidden, 2), Affine())
            yield swap_halves(2)


@torch.no_grad()
def test_a_gated_flow_has_no_unit_mass_though_the_open_one_has():
    """Over every sixteenth image, and so over the square of pixels, in which the open flow's deviation is a tenth."""
    model = OfTwoNumbers((2, 1, 1), hidden=6, references=50)
    perturb(model.flow, 0.3)
    for layer in model.flow.layers:
        if isinstance(layer, Coupling):
            layer.network.last.bias[1] = 3 * math.atanh(2.3 / 3)
    known, held_out = (128 + 25 * torch.randn(2, 200, 2, 1, 1)).clamp(0, 255).to(torch.uint8)
    model.calibrate(known, held_out)
    x = torch.cartesian_prod(*2 * [torch.arange(2, 256, 4)]).to(torch.uint8).reshape(-1, 2, 1, 1)
    columns = model.double().statistics(x, noise_of(len(x)))
    mass = {name: 16 * float(columns[name].exp().sum()) for name in ("log_px", "log_px_open", "log_px_closed")}
    assert mass["log_px_open"] == pytest.approx(1, abs=2e-3)
    assert mass["log_px_closed"] == pytest.approx(math.erf(0.5 / math.sqrt(2)) ** 2, abs=1e-3)  # that of N(0, I) inside
    assert 0.2 < float((columns["attention_margin"] < 0).double().mean()) < 0.99
    assert abs(mass["log_px"] - 1) > 0.03


@torch.no_grad()
def test_the_witness_is_the_kernel_mean_and_the_threshold_a_quantile_of_held_out_images():
    gate = Attention((3, 8, 8), references=30, level=0.1)
    known, held_out = smooth_images(30), smooth_images(50, seed=1)
    assert (gate.margin(held_out) >= 0).all()  # not fitted: every image passes
    gate.fit(known, held_out)
    a, r = gate.encode(held_out), gate.encode(known)
    expected = [
        float(np.mean([math.exp(-float((x - y).square().sum()) / (2 * float(gate.bandwidth) ** 2)) for y in r]))
        for x in a[:4]
    ]
    np.testing.assert_allclose(gate.witness(held_out[:4]).numpy(), expected, rtol=1e-4)
    assert float((gate.margin(held_out) < 0).double().mean()) == pytest.approx(0.1)
    assert float(rbf(a, a, gate.bandwidth.double()).diagonal().min()) == pytest.approx(1)
    assert float(gate.bandwidth) == pytest.approx(float(torch.pdist(r).median()), rel=1e-5)
    assert float((gate.margin(some_images(40)) < 0).double().mean()) > 0.4  # noise is unlike smooth images


@pytest.mark.parametrize("name", ["inflow", "glow", "vae"])
def test_only_a_model_with_a_gate_has_the_numbers_that_it_looks_at(name):
    load_builtin()
    assert STATISTICS.get("attention_encoding").applies(tiny(name)) == (name == "inflow")


@torch.no_grad()
def test_an_image_opens_its_own_gate():
    model = calibrated(double=False)
    x = torch.cat([smooth_images(3, seed=2), some_images(3)])
    together = model.attention.margin(x)
    for i in range(6):
        torch.testing.assert_close(model.attention.margin(x[i : i + 1]), together[i : i + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 2, 6), (1, 7, 5)])
def test_images_of_any_size_have_32_features(shape):
    encoding = Attention(shape, 4, 0.05).encode(some_images(3, shape))
    assert encoding.shape == (3, 32)
    assert float(encoding.std(0).min()) > 0


def test_few_training_images_count_several_times():
    gate = Attention((1, 8, 8), 10, 0.05)
    gate.fit(smooth_images(4, (1, 8, 8)), smooth_images(4, (1, 8, 8)))
    assert len(gate.reference.unique(dim=0)) == 4


def test_training_fits_the_gate_and_saves_it():
    recipe = Recipe(2, 16, 1e-3, 1, config={"levels": 1, "steps": 2, "hidden": 8, "references": 50})
    gate = train("inflow", "digits", recipe=recipe, progress=False).module.attention
    assert 0 < float(gate.threshold) < 1
    assert float(gate.reference.std(0).min()) > 0


@pytest.mark.parametrize(("config", "words"), [({"references": 1}, "not 1"), ({"level": 1.0}, "a share 1.0")])
def test_a_gate_that_cannot_be_is_told_in_one_sentence(config, words):
    with pytest.raises(OodbenchError, match=words):
        InFlow((3, 8, 8), **config)
