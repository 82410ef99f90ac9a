"""One step, one batch, one schedule: each is what the recipe says, and the index says how the weights were made."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toys import Slope, adamw, forget, recipe

from oodbench.data import load
from oodbench.errors import ModelError, OodbenchError
from oodbench.files import sha256
from oodbench.models.base import Likelihood
from oodbench.pretrained import load_model
from oodbench.registry import MODELS
from oodbench.training import load_recipe, train
from oodbench.training import trainer as room


@pytest.fixture(autouse=True)
def slope(register_model):
    register_model("slope", Slope)
    forget()


def run(**options):
    """Trains a `Slope` on digits, quietly; keywords that `train` does not have go to its recipe."""
    own = {key: options.pop(key) for key in ("seed", "background", "pretrained") if key in options}
    return train("slope", "digits", recipe=recipe(**options), progress=False, **own)


def rates(steps: int, warmup: int, peak: float) -> list[float]:
    """Linear from peak / warmup, then half a cosine to zero."""
    rise = [peak * (t + 1) / warmup for t in range(min(warmup, steps))]
    fall = [peak * math.cos(math.pi / 2 * t / (steps - warmup)) ** 2 for t in range(steps - warmup)]
    return rise + fall


def weights() -> np.ndarray:
    """The weight before each step."""
    return np.array([weight for weight, _, _ in Slope.seen])


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine():
    run(steps=40, warmup=8)
    np.testing.assert_allclose(weights(), adamw([1.0] * 40, rates(40, 8, 0.01))[:-1], rtol=1e-5)
    # With a constant gradient each step is as long as its rate.
    np.testing.assert_allclose(-np.diff(weights())[:8], 0.01 * np.arange(1, 9) / 8, rtol=1e-5)
    assert -np.diff(weights())[-1] < 0.0002


def test_gradients_are_clipped_and_nothing_else_is_changed():
    Slope.gradients = [0.3, 0.2, 500.0, 0.1, -0.4, 0.2, -7.0, 0.3, 0.1, 0.1]
    run(steps=10, warmup=1, clip=0.5)
    clipped = [max(-0.5, min(0.5, gradient)) for gradient in Slope.gradients]
    np.testing.assert_allclose(weights(), adamw(clipped, rates(10, 1, 0.01))[:-1], rtol=1e-4)


def test_what_a_model_moves_by_itself_comes_after_the_optimiser_and_is_averaged(register_model):
    class Own(Slope):
        def after_step(self):
            assert float(self.weight.detach()) != 7.0 + len(self.seen) - 1  # the optimiser has moved it
            with torch.no_grad():
                self.weight.fill_(7.0 + len(self.seen))

    register_model("own", Own)
    trained = train("own", "digits", recipe=recipe(steps=12, ema=0.8), progress=False)
    assert weights().tolist() == [0.0, *(7.0 + np.arange(1, 12))]
    average = 0.0
    for step in range(12):
        keep = min(0.8, (1 + step) / (10 + step))
        average = keep * average + (1 - keep) * (8.0 + step)
    assert float(trained.module.weight.detach()) == pytest.approx(average, rel=1e-6)


def test_weight_decay_is_decoupled_from_the_gradient():
    run(steps=30, weight_decay=3.0, learning_rate=0.1)
    np.testing.assert_allclose(weights(), adamw([1.0] * 30, rates(30, 5, 0.1), decay=3.0)[:-1], rtol=1e-5)


def test_the_weights_that_are_kept_are_an_exponential_average_that_starts_quickly():
    trained = run(steps=40, ema=0.8, config={"start": 3.0})
    path, average, averages = 3.0 + adamw([1.0] * 40, rates(40, 5, 0.01)), 3.0, []
    for step in range(40):
        keep = min(0.8, (1 + step) / (10 + step))
        average = keep * average + (1 - keep) * path[step + 1]
        averages.append(average)
    assert float(trained.module.weight.detach()) == pytest.approx(average, rel=1e-6)
    curve = trained.entry["curve"]
    assert [point[0] for point in curve] == list(range(2, 41, 2))
    np.testing.assert_allclose(
        [point[2] for point in curve], [8 + averages[step - 1] for step, _, _ in curve], atol=2e-5
    )
    assert trained.entry["bits_per_dim"] == curve[-1][2]


def test_an_epoch_shows_every_image_at_most_once_and_each_epoch_in_another_order():
    images = load("digits", "train")
    run(steps=24)  # 11 batches of 100 an epoch
    by_index = dict(zip(images.index.tolist(), images.pixels, strict=True))
    orders = []
    for epoch in range(2):
        steps = Slope.seen[11 * epoch : 11 * (epoch + 1)]
        order = [int(i) for _, _, noise in steps for i in noise.index]
        assert len(set(order)) == 1100
        assert set(order) <= set(by_index)
        assert all(noise.draw.eq(epoch).all() for _, _, noise in steps)  # other noise in every epoch
        orders.append(order)
    assert set(orders[0][:100]) != set(orders[1][:100])
    _, x, noise = Slope.seen[3]
    assert all(np.array_equal(image, by_index[int(i)]) for image, i in zip(x.numpy(), noise.index, strict=True))
    assert len(Slope.initialised) == 1
    assert torch.equal(Slope.initialised[0], Slope.seen[0][1])


def test_the_seed_decides_the_order_and_the_noise():
    for seed in (0, 0, 1):
        run(steps=2, seed=seed)
    first, again, other = (Slope.seen[2 * i][2] for i in range(3))
    assert torch.equal(first.index, again.index)
    assert not torch.equal(first.index, other.index)
    assert (first.seed, other.seed) == (0, 1)


def test_the_curve_is_measured_on_validation_images_only():
    run(steps=2)
    validation = load("digits", "validation")
    shown = torch.cat([noise.index for _, noise in Slope.validated])
    assert set(shown.tolist()) == set(validation.index.tolist())
    seen = torch.cat([noise.index for _, _, noise in Slope.seen])
    assert not set(seen.tolist()) & set(shown.tolist())


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_mutation_replaces_its_share_of_pixel_values_by_uniform_ones(rate):
    images = load("digits", "train")
    by_index = dict(zip(images.index.tolist(), images.pixels, strict=True))
    run(steps=22, mutation=rate)
    mutated = np.concatenate([x.numpy() for _, x, _ in Slope.seen])
    original = np.stack([by_index[int(i)] for _, _, noise in Slope.seen for i in noise.index])
    changed = mutated != original
    share = rate * 255 / 256  # a uniform value may be the old one
    error = math.sqrt(share * (1 - share) / changed.size)
    assert changed.mean() == pytest.approx(share, abs=4.5 * error)
    black = original == 0
    values = np.bincount(mutated[black & changed], minlength=256)[1:]
    assert values.min() > 0  # 255 as well
    chi_square = ((values - values.mean()) ** 2 / values.mean()).sum()
    assert abs(chi_square - 254) < 4.5 * math.sqrt(2 * 254)
    # An image is mutated anew in every epoch, and never in validation.
    index = np.concatenate([noise.index.numpy() for _, _, noise in Slope.seen])
    again = int(np.intersect1d(index[:1100], index[1100:])[0])
    assert not np.array_equal(*mutated[index == again])
    validation = load("digits", "validation")
    assert np.array_equal(np.concatenate([x.numpy() for x, _ in Slope.validated[:3]]), validation.pixels)


def test_the_index_says_how_the_weights_were_made(tmp_path: Path):
    trained = run(steps=20, seed=3, pretrained=tmp_path)
    (row,) = json.loads((tmp_path / "index.json").read_text())["weights"]
    assert row == trained.entry
    expected = {
        "dataset": "digits", "model": "slope", "role": "model", "preset": "small", "seed": 3, "shape": [1, 8, 8],
        "likelihood": "exact", "recipe": recipe(20).as_dict(), "torch": torch.__version__,
        "data_fingerprint": load("digits", "train").fingerprint,
    }  # fmt: skip
    assert row | expected == row
    assert row["device"].startswith("cpu")
    assert row["seconds"] >= 0
    assert sha256(tmp_path / row["file"]) == row["sha256"] == trained.weights
    assert (tmp_path / row["file"]).stat().st_size == row["bytes"]
    assert not trained.module.training
    assert trained.config == {}


def test_a_background_model_is_trained_by_its_recipe_and_found_by_its_role(tmp_path: Path):
    short = replace(load_recipe("vae", "digits", "tiny", background=True), steps=2)
    train("vae", "digits", preset="tiny", background=True, recipe=short, pretrained=tmp_path, progress=False)
    found = load_model("vae", "digits", role="background", weights=tmp_path)
    assert found.entry["role"] == "background"
    assert found.entry["recipe"]["mutation"] == 0.1
    assert found.entry["recipe"]["weight_decay"] == 0.01
    with pytest.raises(OodbenchError, match="no weights of vae for digits"):
        load_model("vae", "digits", weights=tmp_path)


def test_background_training_asks_for_the_background_recipe(monkeypatch):
    asked = []
    monkeypatch.setattr(room, "load_recipe", lambda *arguments: (asked.append(arguments), recipe(1, mutation=0.2))[1])
    trained = train("slope", "digits", preset="tiny", background=True, progress=False)
    assert asked == [("slope", "digits", "tiny", True)]
    assert trained.entry["recipe"]["mutation"] == 0.2


def test_weights_that_no_run_would_take_are_told_with_their_place(cache: Path, tmp_path: Path, capsys):
    run(steps=2)
    assert "--weights" not in capsys.readouterr().err
    elsewhere = train("slope", "digits", recipe=recipe(steps=3), pretrained=tmp_path / "a place", progress=False)
    told = capsys.readouterr().err
    assert f"--weights '{tmp_path / 'a place' / elsewhere.entry['file']}'" in told
    tiny = train("slope", "digits", preset="tiny", recipe=recipe(steps=4), progress=False)
    assert str(cache / "pretrained" / tiny.entry["file"]) in capsys.readouterr().err
    train("slope", "digits", recipe=recipe(steps=5), seed=1, progress=False)  # found by its seed
    assert "--weights" not in capsys.readouterr().err


def test_a_model_that_still_improves_at_the_end_is_marked():
    # From 8 bits/dim: 1 % of it in the last fifth, which a rate that has fallen to a tenth cannot do.
    assert not run(steps=40, learning_rate=0.02).entry["undertrained"]
    forget()
    assert run(steps=40, learning_rate=0.5).entry["undertrained"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_training_in_one_sentence(value, cache: Path):
    Slope.gradients = [1.0] * 6 + [value] * 14
    with pytest.raises(OodbenchError) as caught:
        run(steps=20)
    # The first bad loss is told, not what the weights became of it.
    message = f"Training slope on digits diverged: the loss is {-value if value == math.inf else value} at step 7."
    assert str(caught.value).startswith(message)
    assert "a lower learning_rate" in str(caught.value)
    assert "checkpoint" not in str(caught.value)  # there is none yet
    assert not (cache / "pretrained").exists()


def test_a_gradient_that_is_no_number_reaches_no_checkpoint_under_a_finite_loss(
    register_model, monkeypatch, cache: Path
):
    class Root(Slope):
        def loss(self, x, noise):
            # The root of 0 is 0, and its slope infinite; times 0 that is no number.
            hidden = 0.0 if len(self.seen) < 6 else (0 * self.weight).sqrt()
            return super().loss(x, noise) + hidden

    register_model("root", Root)
    monkeypatch.setattr(room, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(room, "CURVE_POINTS", 1)
    for _ in range(2):  # the second run continues at the last good step, and fails where the first did
        forget()
        with pytest.raises(OodbenchError, match=r"^Training root on digits diverged: weights are no longer finite at"):
            train("root", "digits", recipe=recipe(20), progress=False)
    (checkpoint,) = (cache / "checkpoints").iterdir()
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint).values() if tensor.is_floating_point())


def test_too_little_memory_is_told_in_one_sentence(monkeypatch):
    def loss(self, x, noise):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(Slope, "loss", loss)
    with pytest.raises(OodbenchError, match=r"^Out of memory in training slope: use another device .*\.$"):
        run(steps=20)


def test_a_plugins_model_that_fails_is_told_in_one_sentence_and_a_bug_of_our_own_is_not_hidden(monkeypatch):
    def loss(self, x, noise):
        raise KeyError("x")

    monkeypatch.setattr(Slope, "loss", loss)
    with pytest.raises(KeyError):
        run(steps=20)
    monkeypatch.setattr(MODELS, "origin_of", lambda name: "mine.py")
    told = r"^The model 'slope' of mine\.py failed in training \(KeyError: 'x'\): mend it\.$"
    with pytest.raises(ModelError, match=told):
        run(steps=20)


def test_too_few_images_are_told_in_one_sentence():
    with pytest.raises(OodbenchError, match=r"^digits has 1159 training images, fewer than one batch of 5000: .*\.$"):
        run(batch_size=5000)


def test_a_place_for_checkpoints_that_is_none_is_told_before_anything_is_read(monkeypatch, cache: Path, tmp_path: Path):
    (cache / "checkpoints").write_text("")
    monkeypatch.setattr(room, "load", None)
    with pytest.raises(OodbenchError, match="set OODBENCH_CACHE"):
        train("glow", "digits", pretrained=tmp_path / "weights")


def test_an_unknown_model_is_told_before_anything_is_read():
    with pytest.raises(OodbenchError, match="Unknown model 'gloww': did you mean glow"):
        train("gloww", "no-such-data")


def test_training_leaves_torchs_global_generator_alone():
    before = torch.get_rng_state()
    train("vae", "digits", recipe=replace(load_recipe("vae", "digits", "tiny"), steps=1), progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_on_a_manifold_has_a_curve_of_its_loss_and_no_bits(monkeypatch):
    monkeypatch.setattr(Slope, "likelihood", Likelihood.MANIFOLD)
    entry = run(steps=20).entry
    assert entry["bits_per_dim"] is None
    assert entry["likelihood"] == "manifold"
    assert not Slope.validated  # log_prob is not asked
    averaged = float(load_model("slope", "digits").module.weight.detach())
    assert averaged < 0
    assert entry["curve"][-1][2] == pytest.approx(averaged, abs=1e-5)  # nats a dimension: the gradient is 1
    assert not math.isnan(entry["curve"][0][2])


def test_a_negative_loss_that_no_longer_falls_is_not_undertrained():
    assert not room._undertrained([[80, 0.0, -2.0], [100, 0.0, -2.001]], 100)
    assert room._undertrained([[80, 0.0, -2.0], [100, 0.0, -2.1]], 100)
    assert room._undertrained([[80, 0.0, 3.1], [100, 0.0, 3.0]], 100)
