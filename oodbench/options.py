"""The commands' options: names, environment variables, help."""

import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "BatchSize",
    "DataRoot",
    "Detectors",
    "Device",
    "Format",
    "FormatOption",
    "In",
    "Kind",
    "Limit",
    "Metric",
    "Model",
    "Models",
    "Out",
    "Picture",
    "Plugins",
    "Precision",
    "Preset",
    "Results",
    "Rows",
    "Seed",
    "Seeds",
    "TrainedOn",
    "Weights",
    "computing",
]


class Kind(StrEnum):
    """What can be listed."""

    MODELS = "models"
    DETECTORS = "detectors"
    DATASETS = "datasets"
    STATISTICS = "statistics"
    PRETRAINED = "pretrained"
    SUITES = "suites"


class Format(StrEnum):
    """How a table is printed."""

    TABLE = "table"
    MARKDOWN = "markdown"
    CSV = "csv"
    LATEX = "latex"
    JSON = "json"


class Rows(StrEnum):
    """What the rows of a table are."""

    AUTO = "auto"
    DETECTORS = "detectors"
    MODELS = "models"


class Metric(StrEnum):
    """What a table shows."""

    AUROC = "auroc"
    AUPR_IN = "aupr_in"
    AUPR_OUT = "aupr_out"
    FPR95 = "fpr95"


class Picture(StrEnum):
    """What a picture's file is."""

    PNG = "png"
    PDF = "pdf"
    SVG = "svg"


class Preset(StrEnum):
    """How large a model is."""

    TINY = "tiny"
    SMALL = "small"
    PAPER = "paper"


def _batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither 'auto' nor a positive number of images.")
    return int(text)


def _precision(text: str) -> str:
    if text not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"{text!r} is neither 'float32' nor 'bfloat16'.")
    return text


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) < 2**32 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of seeds such as 0,1,2.")
    return list(dict.fromkeys(map(int, parts)))


In = Annotated[
    list[str] | None,
    typer.Option("--in", envvar="OODBENCH_IN", help="In-distribution data set; may be repeated.", metavar="NAME"),
]
Out = Annotated[
    list[str] | None,
    typer.Option(
        "--out",
        envvar="OODBENCH_OUT",
        help="Out-of-distribution data set: a name, folder:PATH or npz:PATH, any with +PERTURBATION; may be repeated.",
        metavar="NAME",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        envvar="OODBENCH_MODEL",
        help="Density model; may be repeated. Default: every model with weights for the in-distribution set. "
        "A named one without weights is trained first.",
        metavar="NAME",
    ),
]
Detectors = Annotated[
    list[str] | None,
    typer.Option(
        "--detector",
        envvar="OODBENCH_DETECTOR",
        help="Detector; may be repeated. Default: every one that applies.",
        metavar="NAME",
    ),
]
TrainedOn = Annotated[
    str, typer.Option("--in", envvar="OODBENCH_IN", help="The data set the model is trained on.", metavar="NAME")
]
Model = Annotated[str, typer.Option("--model", envvar="OODBENCH_MODEL", help="Density model.", metavar="NAME")]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        envvar=["OODBENCH_DATA", "OODBENCH_DATA_ROOT"],
        help="Folder of prepared <name>/<split>.npz, which win over downloading.",
    ),
]
Results = Annotated[Path, typer.Option("--results", envvar="OODBENCH_RESULTS", help="Folder of the records.")]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        envvar="OODBENCH_SEED",
        min=0,
        max=2**32 - 1,
        help="Of all random numbers: the same seed, the same result.",
    ),
]
Seeds = Annotated[
    Any,
    typer.Option(
        "--seeds",
        envvar="OODBENCH_SEEDS",
        parser=_seeds,
        metavar="S,S,...",
        help="Training seeds, such as 0,1,2: weights of each, and their mean and spread in the table. "
        "`run` trains a named model without such weights first; a suite does with --train.",
    ),
]
Device = Annotated[str, typer.Option("--device", envvar="OODBENCH_DEVICE", help="auto, cpu, cuda, cuda:1 ...")]
BatchSize = Annotated[
    Any,
    typer.Option(
        "--batch-size", envvar="OODBENCH_BATCH_SIZE", parser=_batch_size, metavar="auto|N", help="Images at a time."
    ),
]
Precision = Annotated[
    Any,
    typer.Option(
        "--precision",
        envvar="OODBENCH_PRECISION",
        parser=_precision,
        metavar="float32|bfloat16",
        help="What the networks compute in; likelihoods are summed in float32 or better.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", envvar="OODBENCH_LIMIT", min=1, help="Take a seeded subset of so many images of each set."),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        envvar="OODBENCH_PLUGIN",
        help="Python file that registers detectors, statistics, models or data sets; may be repeated.",
        metavar="FILE",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", envvar="OODBENCH_WEIGHTS", help="Weights (.safetensors beside their index) or a folder of them."
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", envvar="OODBENCH_FORMAT", help="How the table is printed.")]


def _common(
    *,
    data_root: DataRoot = None,
    seed: Seed = 0,
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    precision: Precision = "float32",
    limit: Limit = None,
    plugins: Plugins = [],  # noqa: B006  # typer makes a new list
    weights: Weights = None,
) -> None:
    """The options of all commands that compute columns, by the names of `How`."""


def computing(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options `_common` in place of its `**options`, which receives them."""
    own = [each for each in inspect.signature(command).parameters.values() if each.kind is not each.VAR_KEYWORD]
    parameters = [*own, *inspect.signature(_common).parameters.values()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # where typer looks
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command
