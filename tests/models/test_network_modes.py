"""Precision and folding hold inside their block, and nothing of them after it."""

import gc
import weakref

import pytest
import torch
from threads import threads
from tiny_models import noise_of, smooth_images, some_images, tiny

from oodbench.engine.lanes import lanes
from oodbench.models import affine
from oodbench.models import nn as room
from oodbench.models.flows.networks import ConvolutionNetwork
from oodbench.models.networks import Perceptron, Skipped
from oodbench.models.nn import Convolution, Linear, folded, in_cache, network_dtype, networks, rectified


class Counting(torch.nn.Module):
    """Counts how often its constants are derived."""

    def __init__(self, value: float = 2.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(value))
        self.calls = 0

    @folded
    def doubled(self) -> torch.Tensor:
        """Twice the weight."""
        self.calls += 1
        return 2 * self.weight

    @folded
    def nothing(self) -> None:
        """A value that is None is a value."""
        self.calls += 1


def test_outside_of_a_block_every_call_derives_anew():
    module = Counting()
    module.doubled(), module.doubled()
    with networks():
        module.doubled()
    assert module.calls == 3
    assert module.doubled.__doc__ == "Twice the weight."


@torch.no_grad()
def test_in_a_folding_block_each_module_derives_once():
    first, second = Counting(1.0), Counting(5.0)
    with networks(fold=True):
        for _ in range(3):
            assert (float(first.doubled()), float(second.doubled())) == (2.0, 10.0)
            first.nothing()
    assert (first.calls, second.calls) == (2, 1)


def test_nothing_that_was_folded_outlives_its_block():
    module = Counting()
    with networks(fold=True):
        derived = weakref.ref(module.doubled())
        with torch.no_grad():
            module.weight.fill_(7.0)
    gc.collect()
    assert derived() is None
    assert float(module.doubled()) == 14.0
    with networks(fold=True):
        assert float(module.doubled()) == 14.0


def test_nested_blocks_have_their_own_folded_weights_and_precision_and_restore_the_outer_ones():
    module = Counting()
    weight = torch.zeros(1)
    assert network_dtype(weight) == torch.float32
    with networks(torch.bfloat16, fold=True):
        outer = module.doubled()
        with networks(torch.float16):
            assert network_dtype(weight) == torch.float16
            assert module.doubled() is not outer
        with networks(fold=True):
            assert network_dtype(weight) == torch.float32
            inner = module.doubled()
            assert inner is not outer
            assert module.doubled() is inner
        assert network_dtype(weight) == torch.bfloat16
        assert module.doubled() is outer
    assert network_dtype(weight.double()) == torch.float64


def test_a_block_that_fails_restores_the_mode_too():
    with pytest.raises(ZeroDivisionError), networks(torch.bfloat16, fold=True):
        _ = 1 / 0
    assert network_dtype(torch.zeros(1)) == torch.float32
    assert room._mode.get().cache is None


@pytest.mark.parametrize("name", ["glow", "pixelcnn", "pixelcnn++", "vae"])
@torch.no_grad()
def test_a_change_of_the_weights_shows_in_the_next_block(name):
    model, x = tiny(name), some_images(2)
    with networks(fold=True):
        before = model.log_prob(x, noise_of(2))
    for parameter in model.parameters():
        parameter *= 1.1
    changed = model.log_prob(x, noise_of(2))
    with networks(fold=True):
        assert torch.equal(model.log_prob(x, noise_of(2)), changed)
    assert not torch.equal(changed, before)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_torchs_in_the_asked_for_precision(stride):
    generator = torch.Generator().manual_seed(0)
    convolution = Convolution(3, 5, (3, 3), (1, 1), stride)
    torch.nn.init.normal_(convolution.bias, generator=generator)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    expected = torch.nn.functional.conv2d(x, convolution.weight, convolution.bias, stride, 1)
    torch.testing.assert_close(convolution(x), expected, rtol=1e-5, atol=1e-5)
    with networks(torch.bfloat16):
        rough = convolution(x)
    assert rough.dtype == torch.bfloat16
    assert 0 < float((rough - expected).detach().abs().max()) < 0.1
    assert convolution.double()(x.double()).dtype == torch.float64


def test_a_zero_convolution_starts_as_the_zero_function():
    assert float(Convolution(3, 4, (3, 3), (1, 1), zero=True)(torch.randn(1, 3, 5, 5)).abs().max()) == 0
    out = Convolution(64, 256)(torch.randn(4, 64, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert float(out.var()) == pytest.approx(1, rel=0.2)  # others keep the variance


@pytest.mark.parametrize("order", ["rising", "repeated", "any"])
def test_a_masked_product_in_blocks_is_the_product_with_the_masked_weight_and_so_are_its_gradients(order: str):
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(-1, 70, (300,), generator=generator)  # of rank -1: sees nothing
    ranks = {"rising": ranks.sort()[0], "repeated": ranks[:150].sort()[0].repeat(2), "any": ranks}[order]
    mask = ranks[:, None] >= torch.arange(70)
    layer = Linear(70, 300, mask=mask).double()
    torch.nn.init.normal_(layer.bias, generator=generator)
    x = torch.randn(5, 70, dtype=torch.float64, generator=generator, requires_grad=True)
    upstream = torch.randn(5, 300, dtype=torch.float64, generator=generator)

    out, expected = layer(x), x @ (layer.weight * mask).t() + layer.bias
    torch.testing.assert_close(out, expected)
    inputs = [x, layer.weight, layer.bias]
    ours, theirs = (torch.autograd.grad(y, inputs, upstream) for y in (out, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_a_sorted_mask_leaves_out_what_is_zero():
    mask = torch.arange(512)[:, None] >= torch.arange(512)
    blocks = Linear(512, 512, mask=mask).blocks_now()
    assert [weight.shape for _, weight, _ in blocks] == [(128, 128), (128, 256), (128, 384), (128, 512)]
    assert Linear(3, 200, mask=torch.zeros(200, 3, dtype=torch.bool))(torch.ones(1, 3)).shape == (1, 200)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_onednn_computes_in_one_call_is_the_convolution_and_its_relu(
    dtype: torch.dtype | None, stride: int, fold: bool
) -> None:
    layer = Convolution(3, 16, (3, 3), (1, 1), stride)
    torch.nn.init.normal_(layer.bias)
    images = torch.randn(4, 3, 8, 8), torch.randn(1, 3, 4, 6), torch.randn(4, 3, 8, 8)
    with networks(dtype, fold):
        for x in images:  # weights are packed for each shape
            expected = layer(x)  # while gradients are recorded it is torch's convolution
            with torch.inference_mode():
                torch.testing.assert_close(layer(x), expected.detach())
                torch.testing.assert_close(rectified(layer, x), expected.detach().relu())
            assert (expected < 0).any()
            assert (expected > 0).any()


@torch.inference_mode()
def test_a_processor_without_bfloat16_in_onednn_computes_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Convolution(3, 16, (3, 3), (1, 1)), torch.randn(4, 3, 8, 8)
    module = Perceptron(64, 512, 8, zero=False).eval()
    rows = torch.randn(256, 64)
    with networks(torch.bfloat16, fold=True):
        expected = layer(x), module(rows)
    monkeypatch.setattr(room, "onednn_takes", lambda x: False)
    monkeypatch.setattr(affine, "onednn_takes", lambda x: False)
    for place in (room, affine):  # which would be called in vain
        monkeypatch.setattr(place, "_FUSED", lambda *_: pytest.fail("oneDNN was called"))
    with networks(torch.bfloat16, fold=True):
        torch.testing.assert_close(layer(x), expected[0])
        torch.testing.assert_close(module(rows), expected[1], rtol=0.02, atol=0.02)


def test_packed_weights_are_those_of_their_block() -> None:
    layer, x = Convolution(3, 4, (3, 3), (1, 1)), torch.randn(2, 3, 8, 8)
    for _ in range(2):
        with networks(fold=True), torch.inference_mode():
            out = layer(x)
        torch.testing.assert_close(out, torch.conv2d(x, layer.weight, layer.bias, padding=1))
        with torch.no_grad():
            layer.weight.mul_(-3)


def test_maps_are_parted_where_no_gradient_is_asked_and_only_there() -> None:
    x = torch.randn(10, 2, 32, 32)
    images = room._CACHE_BYTES // (100 * 32 * 32 * 4)
    assert images == 5
    assert in_cache(x, 100) == (x,)
    with torch.inference_mode():
        assert [len(part) for part in in_cache(x, 100)] == [5, 5]
        assert [len(part) for part in in_cache(x, 10**9)] == [1] * 10
        assert in_cache(x, 1) == (x,)
        with networks(torch.bfloat16):
            assert in_cache(x, 100) == (x,)


def test_a_coupling_network_gives_the_same_in_parts_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ConvolutionNetwork(3, 32, 6)
    torch.nn.init.normal_(network.last.weight)
    x = torch.randn(7, 8, 8, 3)
    whole = network(x).detach()
    monkeypatch.setattr(room, "_CACHE_BYTES", 3 * 32 * 64 * 4)
    with torch.inference_mode():
        assert len(in_cache(x.permute(0, 3, 1, 2), 32)) == 3
        torch.testing.assert_close(network(x), whole)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("rows", [3, 200])  # by torch, by oneDNN
@pytest.mark.parametrize("idle", [0, 7])
def test_one_product_in_evaluation_is_the_sum_of_two_networks_in_training(
    dtype: torch.dtype | None, rows: int, idle: int
) -> None:
    module = Skipped()
    module.linear, module.layers, module.idle = Linear(6, 50), Perceptron(6, 40, 30, 50, zero=False), idle
    module.eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(rows, 6)
    with torch.no_grad():
        network = module.layers[4](module.layers[2](module.layers[0](x).relu()).relu())
        expected = (module.linear(x) + network)[:, idle:]
    assert torch.equal(module.sum(x), expected)
    for fold in (False, True):
        with networks(dtype, fold), torch.inference_mode():
            for _ in range(2):  # with fresh weights, and with those that are folded
                found, inner = module.sum(x), module.layers(x)
                assert found.dtype == inner.dtype == torch.float32
                tolerance = 1e-5 if dtype is None else 0.15
                torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
                torch.testing.assert_close(inner, network, rtol=tolerance, atol=tolerance)


def test_the_layers_of_a_perceptron_are_called_where_gradients_are_asked() -> None:
    """What is hooked to them, or stands in their place, is heard."""
    module, called = Perceptron(3, 4, 5, 2), []
    for layer in module:
        if isinstance(layer, Linear):
            layer.register_forward_hook(lambda layer, arguments, out: called.append(layer))
    module(torch.randn(2, 3))
    assert called == [module[0], module[2], module[4]]


@pytest.mark.parametrize(("name", "dtype"), [("vlae", None), ("lae", None), ("vqvae-bridge", torch.bfloat16)])
def test_a_model_that_enters_a_mode_of_its_own_leaves_other_lanes_theirs(name: str, dtype: torch.dtype | None) -> None:
    model, x, noise = tiny(name, (1, 8, 8), hidden=64), smooth_images(64, (1, 8, 8)), noise_of(64)

    def one(first: int) -> torch.Tensor:
        rows = slice(first, first + 4)
        with torch.inference_mode():
            return model.log_prob(x[rows], noise.rows(rows))

    with threads(1), networks(dtype, fold=True):
        serial = torch.cat([one(first) for first in range(0, 64, 4)])
    for _ in range(3):
        with threads(4), networks(dtype, fold=True), lanes(4, torch.device("cpu")) as (count, each):
            assert count == 4
            torch.testing.assert_close(torch.cat(list(each(one, range(0, 64, 4)))), serial)
            assert network_dtype(torch.zeros(1)) == (dtype or torch.float32)
