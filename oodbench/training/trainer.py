"""The trainer: AdamW, warm-up and cosine, clipping, averaged weights; every random number a function of the step."""

import copy
import hashlib
import json
import math
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from oodbench.data import Adaptation, Images, adaptation, in_domain, load
from oodbench.engine.device import choose_device, is_out_of_memory, keep_freed_memory
from oodbench.errors import ModelError, OodbenchError
from oodbench.files import cache_dir, check_writable
from oodbench.messages import tell
from oodbench.models.base import DensityModel, bits_per_dim, has_bits
from oodbench.models.configuration import check_configuration
from oodbench.models.nn import networks
from oodbench.models.noise import Noise
from oodbench.models.posteriors.posterior import WeightPosterior
from oodbench.pretrained import TrainedModel, has_weights, is_usual, load_model, own_folder, save_model
from oodbench.provenance import device_name
from oodbench.registry import MODELS
from oodbench.training.checkpoint import load_checkpoint, save_checkpoint
from oodbench.training.interrupts import interrupts
from oodbench.training.recipe import Recipe, load_recipe

__all__ = ["train"]

VALIDATION_IMAGES = 256  # for the curve; detectors are fitted on all of them later
CALIBRATION_IMAGES = 5000  # of the training and of the validation part each
CURVE_POINTS = 20
REFRESHING_BATCHES = 50  # that normalisation statistics of drawn weights are taken from
CHECKPOINT_SECONDS = 60.0
ESTIMATE_AFTER = 10  # steps, before the time that is left is announced
UNDERTRAINED = 0.01  # a model whose bits/dim fell by more than this share in the last fifth of its steps


def train(
    model: str,
    dataset: str,
    *,
    preset: str = "small",
    background: bool = False,
    data_root: Path | str | None = None,
    device: str = "auto",
    pretrained: Path | str | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: bool = True,
) -> TrainedModel:
    """Trains a registered model on a data set's training part and adds it to the `pretrained` folder's index.

    A run that was killed continues from its last checkpoint to the same weights. `background` trains the companion
    of a likelihood ratio, on mutated images. NaN losses raise `OodbenchError`.
    """
    build = MODELS.get(model)
    pretrained = check_writable(pretrained or own_folder())
    check_writable(cache_dir() / "checkpoints")
    recipe = recipe or load_recipe(model, dataset, preset, background)
    train_images, validation = load(dataset, "train", data_root), load(dataset, "validation", data_root)
    domain = in_domain(train_images)
    with torch.random.fork_rng(devices=[]), _blaming(model):
        torch.manual_seed(seed)
        check_configuration(model, build, recipe.config)
        module: DensityModel = build(domain.shape, **recipe.config)
    identity = {
        "model": model, "recipe": recipe.as_dict(), "data": train_images.fingerprint, "seed": seed, "version": 1,
    }  # fmt: skip
    if (
        code := MODELS.version_of(model)
    ) is not None:  # a plugin's file: what another state of it began is not continued
        identity["plugin"] = code
    if isinstance(module, WeightPosterior):
        identity["starts"] = starts = _starts(
            module,
            dataset,
            preset,
            background,
            seed,
            data_root=data_root,
            device=device,
            pretrained=pretrained,
            progress=progress,
        )
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    with _blaming(model):
        run = _Run(
            module.to(choose_device(device)),
            recipe,
            seed,
            train_images,
            validation,
            adaptation(train_images, domain),
            cache_dir() / "checkpoints" / f"{key[:32]}.safetensors",
            f"{model}{' background' if background else ''} on {dataset}",
            progress,
        )
        averaged, state = run.finish()
    entry = {
        "dataset": dataset,
        "model": model,
        "role": "background" if background else "model",
        "preset": preset,
        "seed": seed,
        "shape": list(domain.shape),
        "likelihood": module.likelihood.value,
        "recipe": recipe.as_dict(),
        "data_fingerprint": train_images.fingerprint,
        "device": device_name(device),
        "seconds": round(state["seconds"], 1),
        "torch": torch.__version__,
        "bits_per_dim": state["curve"][-1][2] if has_bits(module.likelihood) else None,
        "curve": state["curve"],
        "undertrained": _undertrained(state["curve"], recipe.steps),
    }
    if isinstance(module, WeightPosterior):
        entry["starts"] = starts
    trained = save_model(averaged, entry, pretrained)
    run.checkpoint.unlink(missing_ok=True)
    if not background and not is_usual(trained):
        file = shlex.quote(str(pretrained / trained.entry["file"]))
        tell(f"oodbench: runs take other weights of {model} where these are not named: --weights {file}")
    return trained


@contextmanager
def _blaming(model: str) -> Iterator[None]:
    """Tells of too little memory and of a plugin's model that failed in a sentence; bugs of our own are raised."""
    try:
        yield
    except OodbenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OodbenchError(
                f"Out of memory in training {model}: use another device or a smaller preset, and run again to continue."
            ) from error
        origin = MODELS.origin_of(model)
        if origin == "oodbench":
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"The model {model!r} of {origin} failed in training ({what}): mend it.") from error


def _starts(
    module: WeightPosterior, dataset: str, preset: str, background: bool, seed: int, *, pretrained: Path, **how: Any
) -> list[str]:
    """Gives a posterior the weights that it begins at, trained now if they are missing; their SHA-256."""
    role = "background" if background else "model"
    hashes = []
    for each in module.seeds(seed):
        wanted: dict[str, Any] = {"preset": preset, "seed": each}
        here = [pretrained] if (pretrained / "index.json").is_file() else []
        for place in (*here, None):  # None: the usual ones
            if has_weights(module.model, dataset, role=role, weights=place, **wanted):
                trained = load_model(module.model, dataset, role=role, weights=place, **wanted)
                break
        else:
            trained = train(module.model, dataset, background=background, pretrained=pretrained, **wanted, **how)
        module.start(trained)
        hashes.append(trained.weights)
    return hashes


class _Run:
    """One training run: the loop and what it needs."""

    def __init__(
        self,
        module: DensityModel,
        recipe: Recipe,
        seed: int,
        images: Images,
        validation: Images,
        adapt: Adaptation,
        checkpoint: Path,
        title: str,
        progress: bool,
    ) -> None:
        if len(images) < recipe.batch_size:
            raise OodbenchError(
                f"{images.name} has {len(images)} training images, fewer than one batch of {recipe.batch_size}: "
                "use a larger data set."
            )
        self.module, self.recipe, self.seed = module, recipe, seed
        self.images, self.held_out, self.adapt = images, validation, adapt
        self.validation = validation.limit(VALIDATION_IMAGES, seed=0)
        self.checkpoint, self.title, self.progress = checkpoint, title, progress
        self.averaged: DensityModel
        self.optimizer: torch.optim.Optimizer
        if isinstance(module, WeightPosterior):  # which moves its own weights, and keeps what it needs of them
            self.averaged = module
            self.optimizer = module.optimizer(recipe, len(images), seed)
        else:
            self.averaged = copy.deepcopy(module).requires_grad_(False).eval()
            self.optimizer = torch.optim.AdamW(
                module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True
            )
        self.dtype = torch.bfloat16 if recipe.precision == "bfloat16" else None

    def finish(self) -> tuple[DensityModel, dict[str, Any]]:
        """Trains to the last step, from a checkpoint where there is one; (averaged model on the CPU, state)."""
        keep_freed_memory()
        state = load_checkpoint(self.checkpoint, self.module, self.averaged, self.optimizer)
        if state is None:
            state = {"step": 0, "seconds": 0.0, "curve": []}
            if not isinstance(self.module, WeightPosterior):
                batch, noise = self.batch(0)
                self.calibrate()
                self.module.initialise(batch, noise)
                self.averaged.load_state_dict(self.module.state_dict())
        elif state["step"]:
            tell(f"{self.title}: continuing at step {state['step']} of {self.recipe.steps}")
        every = max(1, self.recipe.steps // CURVE_POINTS)
        with (
            interrupts() as interrupted,
            tqdm(
                total=self.recipe.steps,
                initial=state["step"],
                desc=self.title,
                unit="step",
                disable=not self.progress,
                mininterval=1.0,
            ) as bar,
        ):
            first, started = state["step"], time.perf_counter()
            begin, saved = started - state["seconds"], started
            while state["step"] < self.recipe.steps:
                loss = self.step(state["step"])
                state["step"] += 1
                bar.update()
                stopped = bool(interrupted)
                if state["step"] == first + ESTIMATE_AFTER:
                    per_step = (time.perf_counter() - started) / ESTIMATE_AFTER
                    minutes = per_step * (self.recipe.steps - state["step"]) / 60
                    tell(f"{self.title}: {self.recipe.steps} steps, about {minutes:.1f} minutes to go")
                if state["step"] % every == 0 or state["step"] == self.recipe.steps:
                    self._check(float(loss), state["step"])
                    self._check_weights(state["step"])
                    bpd = self.validate()
                    self._check(bpd, state["step"])
                    state["seconds"] = time.perf_counter() - begin
                    state["curve"].append([state["step"], round(state["seconds"], 1), round(bpd, 5)])
                    unit = "bits/dim" if has_bits(self.module.likelihood) else "nats/dim of loss"
                    bar.set_postfix_str(f"validation {bpd:.3f} {unit}")
                if stopped or time.perf_counter() - saved > CHECKPOINT_SECONDS:
                    self._check(float(loss), state["step"])
                    self._check_weights(state["step"])
                    state["seconds"] = time.perf_counter() - begin
                    save_checkpoint(self.checkpoint, self.module, self.averaged, self.optimizer, state)
                    saved = time.perf_counter()
                if stopped:
                    raise KeyboardInterrupt
        if isinstance(self.module, WeightPosterior):
            with networks(self.dtype):
                self.module.refresh(self.batch, REFRESHING_BATCHES)
        if not state["curve"]:  # an ensemble, of which nothing is left to train
            state["curve"].append([0, 0.0, round(self.validate(), 5)])
        return self.averaged.cpu(), state

    def calibrate(self) -> None:
        """Shows the model images from either part, seeded and in the model's domain."""
        parts = (part.limit(CALIBRATION_IMAGES, self.seed) for part in (self.images, self.held_out))
        known, held_out = (torch.from_numpy(self.adapt(np.asarray(part.pixels))) for part in parts)
        self.module.calibrate(known.to(self.module.device), held_out.to(self.module.device))

    def step(self, step: int) -> Tensor:
        """One update; returns the loss in nats per dimension, still on the device."""
        module, recipe = self.module, self.recipe
        module.train()
        module.progress = step / recipe.steps
        x, noise = self.batch(step)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * (
                module.rate(step, recipe)
                if isinstance(module, WeightPosterior)
                else _schedule(step, recipe.warmup, recipe.steps)
            )
        with networks(self.dtype):
            loss = module.loss(x, noise).mean() / module.dimensions
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.clip, foreach=True)
        self.optimizer.step()
        if isinstance(module, WeightPosterior):
            module.collect_after(step + 1, recipe, self.optimizer)
            return loss.detach()
        module.after_step()
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(module.parameters()), 1 - decay)
        return loss.detach()

    def batch(self, step: int) -> tuple[Tensor, Noise]:
        """The images of a step, in a seeded order that is new every epoch, and their noise; mutated if so asked."""
        size = self.recipe.batch_size
        epoch, place = divmod(step, len(self.images) // size)
        order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.images))
        rows = np.sort(order[place * size : (place + 1) * size])
        noise = Noise.of(torch.from_numpy(self.images.index[rows]), self.seed, draw=epoch).to(self.module.device)
        x = torch.from_numpy(self.adapt(self.images.pixels[rows])).to(self.module.device)
        return (_mutate(x, noise, self.recipe.mutation) if self.recipe.mutation else x), noise

    @torch.no_grad()
    def validate(self) -> float:
        """Bits/dim of the averaged weights on the validation images; of a manifold model the loss in nats/dim.

        Of a posterior's chain those of the weights where it is now, which costs as much as one member; of one that has
        nothing to train, an ensemble, those of the mean of its members' p(x).
        """
        total, bits = 0.0, has_bits(self.module.likelihood)
        model = self.averaged
        if isinstance(model, WeightPosterior) and self.recipe.steps:
            model = model.inner
        with networks(self.dtype, fold=True):
            for start in range(0, len(self.validation), 64):
                rows = slice(start, start + 64)
                noise = Noise.of(torch.from_numpy(self.validation.index[rows])).to(self.module.device)
                x = torch.from_numpy(self.adapt(self.validation.pixels[rows])).to(self.module.device)
                nats = -model.log_prob(x, noise) if bits else model.loss(x, noise)
                total += float(nats.double().sum())
        mean = total / len(self.validation)
        return float(bits_per_dim(-mean, self.module.dimensions)) if bits else mean / self.module.dimensions

    def _check(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            self._diverged(f"the loss is {loss}", step)

    def _check_weights(self, step: int) -> None:
        """A finite loss can have gradients that are not: what the last step did to the weights no loss has seen yet."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.module.parameters()):
            self._diverged("weights are no longer finite", step)

    def _diverged(self, how: str, step: int) -> NoReturn:
        kept = " The last good checkpoint is kept." if self.checkpoint.is_file() else ""
        raise ModelError(
            f"Training {self.title} diverged: {how} at step {step}. Another seed may not; a recipe with a lower "
            f"learning_rate or clip is given in Python: oodbench.training.train(model, data, recipe=...).{kept}"
        )


def _schedule(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _mutate(x: Tensor, noise: Noise, rate: float) -> Tensor:
    """Each value is replaced with probability `rate` by a uniform one of 0 ... 255 (Ren et al. 2019, Section 4)."""
    shape = tuple(x.shape[1:])
    replaced = noise.uniform(shape, "mutated") < rate
    return torch.where(replaced, (noise.uniform(shape, "mutation") * 256).to(torch.uint8), x)


def _undertrained(curve: list[list[float]], steps: int) -> bool:
    """Whether bits/dim (or a loss, which may be negative) still fell by over 1 % in the last fifth of training."""
    before = [bpd for step, _, bpd in curve if step <= 0.8 * steps]
    return bool(before) and before[-1] - curve[-1][2] > UNDERTRAINED * abs(curve[-1][2])
