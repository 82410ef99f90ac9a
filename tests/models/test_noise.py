"""The noise is Philox4x32-10, uniform, independent, and belongs to the image rather than to the batch."""

import math
import zlib

import numpy as np
import pytest
import torch
from torch import Tensor

from oodbench.models.noise import Noise, philox

# Known answers published with the Random123 library: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
@pytest.mark.parametrize("make", [torch.tensor, np.array], ids=["torch", "numpy"])
def test_philox_gives_the_published_answers(make, counter, key, expected):
    k0, k1 = words(key)
    result = philox(*(make([word]) for word in words(counter)), (k0, k1))
    assert [int(word[0]) for word in result] == words(expected)


def test_philox_broadcasts_and_leaves_its_counters_alone():
    position, index = torch.arange(5)[None], torch.arange(7)[:, None]
    zero = torch.zeros(1, 1, dtype=torch.int64)
    full = [counter.expand(7, 5).clone() for counter in (position, index, zero, zero)]
    for a, b in zip(philox(position, index, zero, zero, (1, 2)), philox(*full, (1, 2)), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(position[0], torch.arange(5))
    assert torch.equal(full[0], position.expand(7, 5))


def test_uniforms_are_the_high_bits_of_philox_words_of_position_index_draw_and_stream():
    seed, index, draw = (3 << 32) + 5, 77, 2
    values = Noise.of(torch.tensor([index]), seed, draw).uniform((2, 5), "dequantise").reshape(-1)
    counters = [torch.full((3,), word) for word in (0, index, draw, zlib.crc32(b"dequantise"))]
    counters[0] = torch.arange(3)
    expected = torch.stack(philox(*counters, (5, 3)), dim=1).reshape(-1)[:10]
    assert torch.equal(values, ((expected >> 9) + 0.5).to(torch.float32) * 2.0**-23)


def kolmogorov_smirnov(cumulative: np.ndarray) -> float:
    """sqrt(n) times the largest distance of the sorted cumulative probabilities from the uniform's."""
    ordered = np.sort(cumulative.astype(np.float64))
    n = len(ordered)
    steps = np.arange(n + 1) / n
    return math.sqrt(n) * max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1]))


KS_LIMIT = 1.95  # exceeded with probability 0.001 by a true uniform; the seeds here are fixed


def normal_cdf(z: Tensor) -> np.ndarray:
    return (0.5 * torch.erfc(-z.double() / math.sqrt(2))).numpy()


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3])
def test_uniforms_are_uniform(seed):
    u = Noise.of(torch.arange(200), seed).uniform((1000,), "a").reshape(-1).numpy()
    assert kolmogorov_smirnov(u) < KS_LIMIT
    counts = np.bincount((u * 256).astype(int), minlength=256)
    chi_square = np.sum((counts - u.size / 256) ** 2) / (u.size / 256)
    assert abs(chi_square - 255) < 4 * math.sqrt(2 * 255)
    assert abs(float(u.mean(dtype=np.float64)) - 0.5) < 4 / math.sqrt(12 * u.size)


def test_each_of_the_23_bits_is_fair():
    k = (Noise.of(torch.arange(100)).uniform((1000,), "bits").double() * 2**23 - 0.5).to(torch.int64).reshape(-1)
    ones = ((k[:, None] >> torch.arange(23)) & 1).double().mean(0)
    assert ((ones - 0.5).abs() < 4.5 * 0.5 / math.sqrt(len(k))).all()


def test_normals_are_normal():
    z = Noise.of(torch.arange(200), 7).normal((1000,), "z").reshape(-1).double()
    n = len(z)
    assert kolmogorov_smirnov(normal_cdf(z)) < KS_LIMIT
    moments = [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]  # power, E z^p, Var z^p
    for power, mean, variance in moments:
        assert abs(float((z**power).mean()) - mean) < 4 * math.sqrt(variance / n), power
    assert float((z.abs() > 3).double().mean()) == pytest.approx(0.0027, abs=4 * math.sqrt(0.0027 / n))


def test_extreme_words_stay_inside_the_open_interval_and_finite(monkeypatch):
    extremes = torch.tensor([[0, 1, 2**22, 2**23 - 2, 2**23 - 1]], dtype=torch.int32)
    monkeypatch.setattr(Noise, "_words", lambda self, size, stream: extremes.clone())
    noise = Noise.of(torch.zeros(1))
    u, z = noise.uniform((5,), "a"), noise.normal((5,), "a")
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    assert len(u.unique()) == 5
    assert torch.isfinite(z).all()
    assert float(z[0, 0]) == -float(z[0, 4]) == pytest.approx(-5.293, abs=0.01)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.reshape(-1), b.reshape(-1)]).double())[0, 1])


def test_images_draws_streams_seeds_and_positions_are_independent():
    base = Noise.of(torch.arange(100)).uniform((512,), "a")
    others = {
        "image": Noise.of(torch.arange(100) + 1).uniform((512,), "a"),
        "far image": Noise.of(torch.arange(100) + 2**31).uniform((512,), "a"),
        "draw": Noise.of(torch.arange(100), draw=1).uniform((512,), "a"),
        "stream": Noise.of(torch.arange(100)).uniform((512,), "b"),
        "seed": Noise.of(torch.arange(100), seed=1).uniform((512,), "a"),
        "high seed": Noise.of(torch.arange(100), seed=1 << 32).uniform((512,), "a"),
        "position": base.roll(1, dims=1),
        "block": base.roll(4, dims=1),
    }
    bound = 4 / math.sqrt(base.numel())
    for name, other in others.items():
        assert abs(correlation(base, other)) < bound, name
        assert abs(correlation(base * (1 - base), other * (1 - other))) < bound, name
        assert not torch.equal(base, other), name


def test_pairs_fill_the_square_evenly():
    first, second = (Noise.of(torch.arange(400), draw=d).uniform((250,), "a").reshape(-1) for d in (0, 1))
    cells = (first * 16).long() * 16 + (second * 16).long()
    counts = torch.bincount(cells, minlength=256).double()
    chi_square = float(((counts - len(cells) / 256) ** 2).sum() / (len(cells) / 256))
    assert abs(chi_square - 255) < 4 * math.sqrt(2 * 255)


@pytest.mark.parametrize("size", [1, 7, 64, 200])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_every_batch_split_gives_the_same_numbers(size, kind):
    index = torch.randperm(200, generator=torch.Generator().manual_seed(0)) * 10_007
    whole = getattr(Noise.of(index, 4), kind)((3, 9, 7), "s")
    parts = [getattr(Noise.of(part, 4), kind)((3, 9, 7), "s") for part in index.split(size)]
    assert torch.equal(torch.cat(parts), whole)
    order = torch.argsort(index)
    assert torch.equal(getattr(Noise.of(index[order], 4), kind)((3, 9, 7), "s"), whole[order])


def test_rows_longer_than_one_piece_of_work_are_the_same_alone():
    noise = Noise.of(torch.arange(3), 1)
    whole = noise.uniform((200_000,), "long")
    assert torch.equal(noise.rows(slice(1, 2)).uniform((200_000,), "long")[0], whole[1])
    assert torch.equal(noise.uniform((5,), "long"), whole[:, :5])  # a prefix does not depend on the length


def test_expand_repeats_images_for_consecutive_draws():
    noise = Noise.of(torch.tensor([5, 900]), 3)
    expanded = noise.expand(0, 6)
    values = expanded.normal((11,), "z").reshape(2, 6, 11)
    for draw in range(6):
        assert torch.equal(values[:, draw], Noise.of(noise.index, 3, draw).normal((11,), "z"))
    halves = [noise.expand(first, 3).normal((11,), "z").reshape(2, 3, 11) for first in (0, 3)]
    assert torch.equal(torch.cat(halves, dim=1), values)


def test_draws_stay_with_their_rows_when_the_work_is_cut_into_pieces():
    noise = Noise.of(torch.tensor([5, 900]), 3)
    values = noise.expand(2, 20).uniform((8192,), "z").reshape(2, 20, 8192)  # 40 rows of 2,048 counters: three pieces
    for draw in range(20):
        assert torch.equal(values[:, draw], Noise.of(noise.index, 3, draw + 2).uniform((8192,), "z"))


def test_empty_batches_and_shapes_are_allowed():
    assert Noise.of(torch.arange(0)).uniform((5,), "a").shape == (0, 5)
    assert Noise.of(torch.arange(3)).normal((0,), "a").shape == (3, 0)
    assert Noise.of(torch.arange(3)).uniform((), "a").shape == (3,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_noise():
    index = torch.arange(50)
    for kind, tolerance in (("uniform", 0.0), ("normal", 1e-5)):
        here = getattr(Noise.of(index, 9), kind)((333,), "a")
        there = getattr(Noise.of(index.cuda(), 9), kind)((333,), "a").cpu()
        assert torch.allclose(here, there, rtol=tolerance, atol=0)
