"""One kind of registry for data sets, models, statistics and detectors, and the names that fill them."""

import difflib
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from oodbench.errors import OodbenchError

if TYPE_CHECKING:
    from oodbench.statistic import Statistic

__all__ = [
    "DATASETS",
    "DETECTORS",
    "MODELS",
    "POSTERIORS",
    "STATISTICS",
    "ModelRegistry",
    "Registry",
    "hint",
    "register",
    "skipped",
    "split_posterior",
]

T = TypeVar("T")


skipped: set[str] = set()  # the plugins that could not be loaded: the plugin loader fills it


def hint(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """What to do about an unknown name: near ones, plugins that may have brought it, `otherwise`, or all there are."""
    near = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.5)
    said = [f"did you mean {' or '.join(near)}?"] if near else []
    said += [f"the plugin {plugin} may have it, but was skipped: mend it." for plugin in sorted(skipped)]
    return " Or ".join(said) or otherwise or f"there are {', '.join(dict.fromkeys(known))}."


@dataclass
class _Entry(Generic[T]):
    value: T | str  # a string is "module:attribute", imported when first asked for
    summary: str
    origin: str
    version: str | None


class Registry(Generic[T]):
    """Names to things of one kind. Built-in things are named by module, so that listing them imports nothing heavy."""

    def __init__(self, kind: str, builtin: dict[str, tuple[str, str]] | None = None) -> None:
        self.kind = kind
        # Who registers now, and a hash of its code: the plugin loader sets these while a plugin runs.
        self.origin = "oodbench"
        self.version: str | None = None
        self._entries: dict[str, _Entry[T]] = {
            name: _Entry(where, summary, "oodbench", None) for name, (where, summary) in (builtin or {}).items()
        }

    def add(self, name: str, value: T, summary: str = "") -> None:
        """Registers `value`; a name that is taken is an error, so that no plugin replaces another unnoticed."""
        if not name or any(character in name for character in "/\\@ ,"):
            raise OodbenchError(f"{name!r} cannot name a {self.kind}: use letters, digits, '-', '_' and '+'.")
        if name in self._entries:
            raise OodbenchError(
                f"A {self.kind} named {name!r} exists already (from {self._entries[name].origin}): choose another name."
            )
        lines = (summary or getattr(value, "__doc__", None) or "").strip().splitlines()
        self._entries[name] = _Entry(value, lines[0] if lines else "", self.origin, self.version)

    def remove(self, name: str) -> None:
        """Takes a name out again."""
        del self._entries[name]

    def get(self, name: str) -> T:
        """The thing of that name; an unknown name is an `OodbenchError` that says which ones are near."""
        entry = self._entries.get(name)
        if entry is None:
            raise OodbenchError(self.unknown(name))
        if isinstance(entry.value, str):
            module, _, attribute = entry.value.partition(":")
            entry.value = getattr(importlib.import_module(module), attribute)
        return entry.value  # type: ignore[return-value]  # a string was replaced just above

    def unknown(self, name: str) -> str:
        """The sentence for a name that is not here."""
        return f"Unknown {self.kind} {name!r}: {hint(name, sorted(self._entries))}"

    def summary(self, name: str) -> str:
        """One line about the thing, without importing it."""
        return self._entries[name].summary

    def origin_of(self, name: str) -> str:
        """Who registered the name: `oodbench`, or the plugin's file or entry point."""
        return self._entries[name].origin

    def version_of(self, name: str) -> str | None:
        """What tells one state of a plugin's code from another; None for what is our own, or not registered."""
        return self._entries[name].version if name in self._entries else None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class ModelRegistry(Registry[Any]):
    """Models by name, and posteriors over the weights of any of them: `sghmc(vae)`."""

    def get(self, name: str) -> Any:
        posterior, inner = split_posterior(name)
        if posterior is None:
            return super().get(name)
        build, _ = POSTERIORS.get(posterior), super().get(inner)  # both names are told apart before any work
        return functools.partial(build, model=inner)

    def summary(self, name: str) -> str:
        posterior, inner = split_posterior(name)
        if posterior is None:
            return super().summary(name)
        return f"{POSTERIORS.summary(posterior)}, over the weights of {inner}"

    def origin_of(self, name: str) -> str:
        return super().origin_of(split_posterior(name)[1])

    def version_of(self, name: str) -> str | None:
        return super().version_of(split_posterior(name)[1])

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        posterior, inner = split_posterior(name)
        return super().__contains__(inner) and (posterior is None or posterior in POSTERIORS)

    def ordered(self, names: set[str]) -> list[str]:
        """Those of the names that exist, in registry order: models, then posteriors over each."""
        wrapped = [f"{posterior}({name})" for name in self for posterior in POSTERIORS]
        return [name for name in [*self, *wrapped] if name in names]


def split_posterior(name: str) -> tuple[str | None, str]:
    """`sghmc(vae)` as ("sghmc", "vae"), any other name as (None, name)."""
    outer, bracket, rest = name.partition("(")
    return (outer, rest[:-1]) if bracket and rest.endswith(")") else (None, name)


POSTERIORS: Registry[Any] = Registry(
    "posterior",
    {
        "sghmc": (
            "oodbench.models.posteriors.sghmc:SGHMC",
            "Stochastic-gradient Hamiltonian Monte Carlo (Chen et al. 2014)",
        ),
        "sgld": (
            "oodbench.models.posteriors.sghmc:SGLD",
            "Stochastic-gradient Langevin dynamics (Welling & Teh 2011)",
        ),
        "bbb": ("oodbench.models.posteriors.bbb:BBB", "Bayes by Backprop (Blundell et al. 2015)"),
        "swag": ("oodbench.models.posteriors.swag:SWAG", "SWAG (Maddox et al. 2019)"),
        "ensemble": (
            "oodbench.models.posteriors.ensemble:Ensemble",
            "Independent trainings (Lakshminarayanan et al. 2017)",
        ),
    },
)
"""Classes of posteriors over weights, called as models are, with the inner model's name as `model`."""

MODELS: ModelRegistry = ModelRegistry(
    "model",
    {
        "glow": ("oodbench.models.flows.glow:Glow", "Multi-scale flow with affine couplings (Kingma & Dhariwal 2018)"),
        "glow-cv": (
            "oodbench.models.flows.glow:ConstantVolumeGlow",
            "Glow with additive couplings: constant volume (Nalisnick et al. 2019)",
        ),
        "nice": ("oodbench.models.flows.nice:NICE", "Additive couplings by MLPs, one scaling (Dinh et al. 2015)"),
        "realnvp": (
            "oodbench.models.flows.realnvp:RealNVP",
            "Multi-scale flow with checkerboard and channel couplings (Dinh et al. 2017)",
        ),
        "maf": ("oodbench.models.flows.maf:MAF", "Masked autoregressive flow on vectors (Papamakarios et al. 2017)"),
        "iaf": (
            "oodbench.models.flows.maf:IAF",
            "Inverse autoregressive flow as a density, for small images (Kingma et al. 2016)",
        ),
        "nsf": ("oodbench.models.flows.nsf:NSF", "Multi-scale flow with spline couplings (Durkan et al. 2019)"),
        "nsf-ar": (
            "oodbench.models.flows.nsf:AutoregressiveNSF",
            "Autoregressive spline flow on vectors (Durkan et al. 2019)",
        ),
        "nxn-flow": (
            "oodbench.models.flows.nxn:NxNFlow",
            "Glow with invertible n x n convolutions (Truong et al. 2019, Hoogeboom et al. 2019)",
        ),
        "iresnet": (
            "oodbench.models.flows.iresnet:IResNet",
            "Invertible residual network (Behrmann et al. 2019; unbiased: Chen et al. 2019)",
        ),
        "funnel": (
            "oodbench.models.flows.funnel:FunnelFlow",
            "Flow that drops dimensions by exact surjections (Klein et al. 2021, Nielsen et al. 2020)",
        ),
        "inflow": (
            "oodbench.models.flows.inflow:InFlow",
            "Couplings behind a gate that looks at the image (Kumar et al. 2021)",
        ),
        "vae": ("oodbench.models.vae.vae:VAE", "Convolutional VAE, discretised-logistic decoder, K importance draws"),
        "vae-mlp": ("oodbench.models.vae.vae:DenseVAE", "Fully connected VAE on one vector of latents"),
        "vae-dcgan": (
            "oodbench.models.vae.vae:DCGANVAE",
            "VAE of strided convolutions alone on one vector of latents, as in Xiao et al. 2020",
        ),
        "nf-vae": (
            "oodbench.models.vae.nf:NormalizingFlowVAE",
            "VAE with a planar, radial or Householder posterior (Rezende & Mohamed 2015, Tomczak & Welling 2016)",
        ),
        "iaf-vae": (
            "oodbench.models.vae.iaf:InverseAutoregressiveVAE",
            "VAE whose posterior an inverse autoregressive flow refines (Kingma et al. 2016)",
        ),
        "svae": (
            "oodbench.models.vae.spherical:SphericalVAE",
            "VAE with von Mises-Fisher posteriors on a sphere (Davidson et al. 2018)",
        ),
        "vlae": (
            "oodbench.models.vae.vlae:VLAE",
            "VAE with a full-covariance Laplace posterior at the mode (Park et al. 2019)",
        ),
        "vqvae-bridge": (
            "oodbench.models.vae.vqvae_bridge:VQVAEBridge",
            "Discrete codes with a diffusion bridge as their prior (Cohen et al. 2022)",
        ),
        "cygen": ("oodbench.models.vae.cygen:CyGen", "Two compatible conditionals and no prior (Liu et al. 2021)"),
        "lidvae": (
            "oodbench.models.vae.lidvae:LIDVAE",
            "VAE with an injective decoder of convex potentials' gradients (Wang et al. 2021)",
        ),
        "lae": ("oodbench.models.vae.lae:LAE", "Langevin autoencoder, its encoder sampled (Taniguchi et al. 2022)"),
        "tsc-vae": (
            "oodbench.models.vae.tsc:TSCVAE",
            "VAE by transport score climbing: HMC in a warped latent space (Zhang et al. 2023)",
        ),
        "pixelcnn": (
            "oodbench.models.autoregressive.pixelcnn:PixelCNN",
            "Gated PixelCNN with a 256-way softmax (van den Oord et al. 2016)",
        ),
        "pixelcnn++": (
            "oodbench.models.autoregressive.pixelcnnpp:PixelCNNPP",
            "PixelCNN++ with a discretised logistic mixture (Salimans et al. 2017)",
        ),
        "aef": (
            "oodbench.models.manifold.aef:AEF",
            "Autoencoder within a flow: a bijection made of an encoder and a decoder (Silvestri et al. 2023)",
        ),
        # On an embedded surface: they stand last in tables and are not ranked.
        "conformal": (
            "oodbench.models.manifold.conformal:Conformal",
            "Conformal embedding flow, a density on a surface (Ross & Cresswell 2021)",
        ),
        "rectangular": (
            "oodbench.models.manifold.rectangular:Rectangular",
            "Rectangular flow, a density on a surface and beside it (Caterini et al. 2021)",
        ),
        "two-step": (
            "oodbench.models.manifold.two_step:TwoStep",
            "Encoder-decoder, then a flow on its latents (Loaiza-Ganem et al. 2022)",
        ),
    },
)
"""Classes of density models, called with the image shape and a configuration."""

STATISTICS: Registry["Statistic"] = Registry("statistic")
DETECTORS: Registry[Any] = Registry("detector")
DATASETS: Registry[Any] = Registry("data set")


class _Register:
    """What a plugin calls: `@register.detector("name")`, and the same for `statistic`, `model` and `dataset`."""

    def detector(self, name: str) -> Callable[[type], type]:
        """Decorates a `Detector` class."""
        return _decorator(DETECTORS, name)

    def model(self, name: str) -> Callable[[type], type]:
        """Decorates a `DensityModel` class, which is called as `cls(shape, **configuration)`."""
        return _decorator(MODELS, name)

    def dataset(self, name: str) -> Callable[[Any], Any]:
        """Decorates `load(split: str) -> (pixels uint8 (N, C, H, W), labels int64 (N,) or None)`.

        `split` is "train" or "test"; a data set without the one asked for raises `OodbenchError`.
        """
        return _decorator(DATASETS, name)

    def statistic(self, name: str, **declared: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorates `function(model, x, noise) -> (B, ...)`; keywords are the fields of `Statistic`."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            from oodbench.statistic import Statistic

            STATISTICS.add(name, Statistic(name=name, function=function, **declared), summary=function.__doc__ or "")
            return function

        return decorate


def _decorator(registry: Registry[Any], name: str) -> Callable[[Any], Any]:
    def decorate(value: Any) -> Any:
        registry.add(name, value)
        return value

    return decorate


register = _Register()
