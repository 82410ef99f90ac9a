"""The engine gives every image the same numbers whatever happens around it, and computes nothing twice."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from elsewhere import PLACE, elsewhere
from factorised import SHAPE, Factorised, Trained, identity, run, some_images
from threads import fixture_of

from oodbench.data import Domain, adaptation
from oodbench.engine import evaluate
from oodbench.errors import OodbenchError
from oodbench.models.noise import Noise
from oodbench.registry import STATISTICS
from oodbench.statistic import Statistic

loop = sys.modules["oodbench.engine.evaluate"]  # the module: the package's attribute of that name is the function
NAMES = Factorised.columns

pytestmark = pytest.mark.usefixtures("two_lanes")


def same(a, b, **tolerance):
    for name in NAMES:
        np.testing.assert_allclose(a.columns[name], b.columns[name], **{"rtol": 1e-6, **tolerance})


@pytest.fixture
def add_statistic():
    """Registers statistics that disappear after the test."""
    added = []

    def add(name, function, **declared):
        STATISTICS.add(name, Statistic(name, function, **declared))
        added.append(name)

    yield add
    for name in set(added) & set(STATISTICS):
        STATISTICS.remove(name)


one_thread = fixture_of(1)  # one batch at a time, where a test counts them


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return run(some_images(), tmp_path_factory.mktemp("reference"))


def test_columns_are_what_the_model_says_of_each_image_alone(reference):
    images, model = some_images(), Factorised()
    for i in (0, 77, 149):
        x, noise = torch.from_numpy(images.pixels[i : i + 1]), Noise.of(torch.tensor([images.index[i]]))
        for name, column in model.statistics(x, noise).items():
            np.testing.assert_allclose(reference.columns[name][i], column[0].detach(), rtol=1e-6)
    assert reference.columns.dimensions == 64
    assert reference.columns["log_px"].dtype == np.float32
    assert reference.columns["log_px_draws"].shape == (150, 3)
    assert reference.computed == 150
    assert reference.seconds_per_image > 0


@pytest.mark.parametrize("batch_size", [1, 7, 64, 512])
def test_any_batch_size_gives_the_same_columns(tmp_path, reference, batch_size):
    same(run(some_images(), tmp_path, batch_size=batch_size), reference)


def test_shuffled_and_repeated_images_keep_their_numbers(tmp_path, reference):
    order = np.append(np.random.default_rng(1).permutation(150), [3, 3, 140])
    shuffled = run(some_images().take(order), tmp_path, batch_size=16)
    assert shuffled.computed == 150
    for name in NAMES:
        np.testing.assert_allclose(shuffled.columns[name], reference.columns[name][order], rtol=1e-6)


def test_a_limited_run_is_part_of_the_full_one_and_its_rows_are_not_computed_again(tmp_path, reference):
    images = some_images()
    subset = images.limit(40, seed=2)
    model = Trained()
    limited = run(subset, tmp_path, model)
    for name in NAMES:
        np.testing.assert_allclose(limited.columns[name], reference.columns[name][subset.rows], rtol=1e-6)
    full = run(images, tmp_path, model)
    assert full.computed == 110
    assert sum(model.module.batches) == 150
    same(full, reference)


def test_a_rerun_computes_nothing_and_reports_the_time_measured_then(tmp_path):
    first = run(some_images(), tmp_path)
    model = Trained()
    again = run(some_images(), tmp_path, model)
    assert again.computed == 0
    assert model.module.batches == []
    assert again.seconds_per_image == pytest.approx(first.seconds_per_image)
    same(again, first, rtol=0)


def test_an_evaluation_stopped_by_an_error_keeps_what_it_has(tmp_path, reference, one_thread):
    class Stopping(Factorised):
        def statistics(self, x, noise):
            if len(self.batches) == 4:
                raise KeyboardInterrupt
            return super().statistics(x, noise)

    with pytest.raises(KeyboardInterrupt):
        run(some_images(), tmp_path, Trained(Stopping()), batch_size=16)
    resumed = run(some_images(), tmp_path, batch_size=32)
    assert resumed.computed == 150 - 4 * 16
    same(resumed, reference)


def test_an_evaluation_killed_by_the_system_resumes_from_its_last_chunk(tmp_path, reference):
    script, root = Path(__file__).with_name("factorised.py"), Path(loop.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.rglob("*.safetensors"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = run(some_images(), tmp_path, Trained(Factorised(pause=0)))
    assert 0 < resumed.computed < 150
    same(resumed, reference)


def test_all_columns_of_a_forward_pass_cost_one_pass_and_other_statistics_one_each(tmp_path, add_statistic):
    calls = []

    def brightness(model, x, noise):
        calls.append(len(x))
        assert model is None
        return x.double().mean((1, 2, 3))

    def shifted(model, x, noise):
        return model.mean.sum() + noise.uniform((2,), "shift")

    add_statistic("brightness", brightness, needs_model=False)
    add_statistic("shifted", shifted)
    model, images = Trained(), some_images()
    result = run(images, tmp_path, model, ("log_px", "brightness", "shifted", "log_px_draws"), batch_size=50)
    assert model.module.batches == [50, 50, 50]
    assert calls == [50, 50, 50]
    np.testing.assert_allclose(result.columns["brightness"], images.pixels.mean((1, 2, 3)))
    assert list(result.columns) == ["log_px", "brightness", "shifted", "log_px_draws"]
    other = Trained(weights="1" * 64)  # a model-free column is shared by all models
    assert run(images, tmp_path, other, ("brightness",)).computed == 0
    assert run(images, tmp_path, other, ("shifted",)).computed == 150
    assert evaluate(["brightness"], images, identity(images), model=None, cache=tmp_path).computed == 0


def test_only_the_statistics_that_miss_an_image_are_computed_for_it(tmp_path, add_statistic):
    seen = []

    def brightness(model, x, noise):
        seen.extend(noise.index.tolist())
        return x.double().mean((1, 2, 3))

    add_statistic("brightness", brightness, needs_model=False)
    images, model = some_images(), Trained()
    half = images.take(np.arange(0, 150, 2))
    run(half, tmp_path, names=("brightness",))
    result = run(images, tmp_path, model, ("brightness", "log_px"), batch_size=16)
    assert sorted(seen) == sorted(images.index.tolist())
    assert sum(model.module.batches) == 150
    np.testing.assert_allclose(result.columns["brightness"], images.pixels.mean((1, 2, 3)))


def test_a_statistic_may_take_gradients(tmp_path, add_statistic):
    def gradient_norm(model, x, noise):
        with torch.inference_mode(False), torch.enable_grad():
            y = x.float().requires_grad_()
            (gradient,) = torch.autograd.grad(torch.distributions.Normal(model.mean, 40.0).log_prob(y).sum(), y)
        return gradient.flatten(1).norm(dim=1)

    add_statistic("gradient_norm", gradient_norm)
    images = some_images(20)
    expected = (images.pixels - Factorised().mean.detach().numpy()) / 1600
    result = run(images, tmp_path, names=("gradient_norm",))
    np.testing.assert_allclose(result.columns["gradient_norm"], np.sqrt((expected**2).sum((1, 2, 3))), rtol=1e-5)


def test_the_model_runs_in_evaluation_mode_without_gradients(tmp_path):
    class Watching(Factorised):
        def statistics(self, x, noise):
            assert x.dtype == torch.uint8
            assert not self.training
            outputs = super().statistics(x, noise)
            assert not outputs["log_px"].requires_grad
            return outputs

    run(some_images(5), tmp_path, Trained(Watching().train()))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("can't allocate memory")])
def test_out_of_memory_halves_the_batch_and_changes_no_number(tmp_path, reference, error, capsys, one_thread):
    class Large(Factorised):
        def statistics(self, x, noise):
            if len(x) > 20:
                raise error
            return super().statistics(x, noise)

    model = Trained(Large())
    same(run(some_images(), tmp_path, model, batch_size=128), reference)
    assert model.module.batches == [16] * 9 + [6]
    assert "going on with 64" in capsys.readouterr().err


def test_out_of_memory_with_one_image_is_told_in_a_sentence_and_other_errors_are_not_taken_for_it(tmp_path):
    class Failing(Factorised):
        error: Exception

        def statistics(self, x, noise):
            raise self.error

    Failing.error = MemoryError()
    with pytest.raises(OodbenchError, match="single image"):
        run(some_images(), tmp_path, Trained(Failing()))
    Failing.error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(some_images(), tmp_path, Trained(Failing()))


def test_the_key_has_everything_that_changes_a_number_and_nothing_else(tmp_path, add_statistic):
    images = some_images(10)
    base = Trained()

    def fresh(model=base, images=images, rule=None, names=NAMES, **options):
        rule = rule or identity(images)
        options = {"progress": False, **options}
        return evaluate(names, images, rule, model=model, cache=tmp_path, **options).computed > 0

    class Renamed(Factorised):
        columns = (*NAMES, "other")

        def statistics(self, x, noise):
            return {**super().statistics(x, noise), "other": x[:, 0, 0, 0]}

    assert fresh()
    assert not fresh()
    assert fresh(replace(base, weights="1" * 64))
    assert fresh(replace(base, name="another"))
    assert fresh(replace(base, config={"width": 3}))
    assert fresh(replace(base, module=Factorised(draws=4)))
    assert fresh(replace(base, module=Renamed()))
    assert fresh(images=some_images(10, seed=1))
    assert fresh(seed=1)
    assert fresh(precision="bfloat16")
    assert fresh(Trained(Factorised((1, 4, 4))), rule=adaptation(images, Domain(1, 4, 4)))
    assert not fresh(images=replace(images, name="a copy by another name", split="validation"))
    assert not fresh(replace(base, dataset="a label"))
    assert not fresh(batch_size=3)
    assert not fresh(device="cpu")
    if torch.cuda.is_available():
        assert not fresh(device="cuda")
    for declared in ({}, {"version": 2}, {"parameters": {"size": np.int64(3)}}):
        add_statistic("mean", lambda model, x, noise: x.double().mean((1, 2, 3)), **declared)
        assert fresh(names=("mean",))
        assert not fresh(names=("mean",))
        STATISTICS.remove("mean")
    add_statistic("mean", lambda model, x, noise: x.double().mean((1, 2, 3)), cached=False)
    assert fresh(names=("mean",))
    assert fresh(names=("mean",))


def test_one_model_free_column_is_kept_for_each_adaptation(tmp_path, add_statistic):
    add_statistic("mean", lambda model, x, noise: x.double().mean((1, 2, 3)), needs_model=False)
    images = some_images(10)
    rules = [identity(images), adaptation(images, Domain(1, 4, 4))]
    for computed in (10, 0):
        for rule in rules:
            result = evaluate(["mean"], images, rule, model=None, cache=tmp_path)
            assert result.computed == computed
            np.testing.assert_allclose(result.columns["mean"], rule(images.pixels).mean((1, 2, 3)))
            assert result.columns.dimensions == np.prod(rule.domain.shape)


def test_another_pillow_gives_scaled_images_new_columns_and_others_none(tmp_path, add_statistic, monkeypatch):
    add_statistic("mean", lambda model, x, noise: x.double().mean((1, 2, 3)), needs_model=False)
    images = some_images(10)
    large = replace(images, pixels=np.zeros((10, 1, 28, 28), np.uint8))
    unscaled = [(images, identity(images)), (images, adaptation(images, Domain(3, 8, 8))), (large, identity(large))]
    scaled = [(images, adaptation(images, Domain(1, 4, 4))), (large, adaptation(large, Domain(3, 8, 8)))]

    def computed(pairs):
        return [evaluate(["mean"], *pair, model=None, cache=tmp_path, progress=False).computed for pair in pairs]

    computed(unscaled + scaled)
    monkeypatch.setattr("PIL.__version__", "0.1")
    assert computed(unscaled) == [0, 0, 0]
    assert computed(scaled) == [10, 10]
    assert computed(scaled) == [0, 0]


def test_non_finite_values_are_kept_and_counted_on_stderr(tmp_path, capsys):
    class Broken(Factorised):
        def statistics(self, x, noise):
            outputs = super().statistics(x, noise)
            outputs["log_px"][noise.index < 10] = torch.nan
            outputs["log_px_draws"][noise.index == 1, 0] = -torch.inf
            return outputs

    for _ in range(2):  # computed, then cached
        result = run(some_images(), tmp_path, Trained(Broken()))
        assert np.isnan(result.columns["log_px"]).sum() == 3
        message = capsys.readouterr().err
        assert "log_px is not finite for 3 of 150 images" in message
        assert "log_px_draws is not finite for 1 of 150 images" in message


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"names": ("log_pxx",)}, "did you mean log_px"),
        ({"device": "tpu9"}, "use auto, cpu, cuda"),
        ({"device": "meta"}, "use auto, cpu, cuda"),
        ({"device": "cuda:99"}, "--device cpu"),
        ({"batch_size": 0}, "batch size"),
        ({"batch_size": "many"}, "batch size"),
        ({"precision": "float8"}, "float32 or bfloat16"),
    ],
)
def test_wrong_input_is_told_in_a_sentence_before_any_work(tmp_path, options, sentence):
    model = Trained()
    with pytest.raises(OodbenchError, match=sentence):
        run(some_images(), tmp_path, model, **options)
    assert model.module.batches == []


def test_a_model_statistic_without_a_model_and_an_empty_set_are_told_in_a_sentence(tmp_path, add_statistic):
    add_statistic("norm", lambda model, x, noise: x.double().mean((1, 2, 3)))
    images = some_images()
    with pytest.raises(OodbenchError, match="needs a model"):
        evaluate(["norm"], images, identity(images), model=None, cache=tmp_path)
    with pytest.raises(OodbenchError, match="no images"):
        run(images.take(np.arange(0)), tmp_path)


def test_a_statistic_with_the_wrong_shape_or_a_missing_column_is_named(tmp_path, add_statistic):
    class Forgetful(Factorised):
        def statistics(self, x, noise):
            return {"log_px": super().statistics(x, noise)["log_px"]}

    add_statistic("total", lambda model, x, noise: x.sum())
    with pytest.raises(OodbenchError, match=r"'total' gave the shape \(\)"):
        run(some_images(), tmp_path, names=("total",))
    with pytest.raises(OodbenchError, match="log_px_draws"):
        run(some_images(), tmp_path, Trained(Forgetful()))


def test_columns_become_the_numbers_that_detectors_expect(tmp_path, add_statistic):
    kinds = {
        torch.bfloat16: np.float32, torch.float32: np.float32, torch.float64: np.float64,
        torch.uint8: np.uint8, torch.int64: np.float64, torch.bool: np.uint8,
    }  # fmt: skip
    for given, expected in kinds.items():
        name = str(given).removeprefix("torch.")
        add_statistic(name, lambda model, x, noise, given=given: (x[:, 0, 0] > 9).to(given), needs_model=False)
        column = run(some_images(9), tmp_path, names=(name,)).columns[name]
        assert column.dtype == expected
        np.testing.assert_array_equal(column, some_images(9).pixels[:, 0, 0] > 9)
    add_statistic("array", lambda model, x, noise: x.numpy().mean((1, 2, 3)), needs_model=False)
    assert run(some_images(9), tmp_path, names=("array",)).columns["array"].dtype == np.float64


def test_columns_know_of_how_many_numbers_a_latent_norm_is(tmp_path):
    class Surface(Factorised):
        latent_dimensions = 5

    assert run(some_images(3), tmp_path, Trained(Surface())).columns.latents == 5
    assert run(some_images(3), tmp_path).columns.latents == np.prod(SHAPE)


def test_no_statistics_are_no_columns(tmp_path):
    images = some_images(3)
    result = evaluate([], images, identity(images), model=None, cache=tmp_path)
    assert list(result.columns) == []
    assert result.columns.dimensions == np.prod(SHAPE)
    assert result.seconds_per_image is None


def test_images_and_noise_go_where_the_model_is_and_those_without_a_model_stay(
    tmp_path, reference, add_statistic, monkeypatch
):
    def brightness(model, x, noise):
        assert x.device.type == noise.index.device.type == "cpu"
        return x.double().mean((1, 2, 3))

    add_statistic("brightness", brightness, needs_model=False)
    monkeypatch.setattr(loop, "choose_device", lambda name: PLACE)
    with elsewhere():
        model = Trained()
        result = run(some_images(), tmp_path, model, (*NAMES, "brightness"), batch_size=64)
    assert model.module.device == PLACE
    same(result, reference)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_one_shape_and_gives_the_same_columns(tmp_path, reference):
    model = Trained()
    same(run(some_images(), tmp_path, model, device="cuda", batch_size=64), reference, rtol=1e-5)
    assert model.module.batches == [64, 64, 64]
