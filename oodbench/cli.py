"""The commands: they read options, call one function each and print what it returns."""

import codecs
import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from oodbench.errors import OodbenchError
from oodbench.messages import tell
from oodbench.options import (
    DataRoot,
    Detectors,
    Device,
    Format,
    FormatOption,
    In,
    Kind,
    Metric,
    Model,
    Models,
    Out,
    Picture,
    Plugins,
    Preset,
    Results,
    Rows,
    Seed,
    Seeds,
    TrainedOn,
    computing,
)

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Says in one line what stopped a command."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # newer typers bring a click of their own
        try:
            return super().invoke(ctx)
        except OodbenchError as error:
            tell(f"error: {error}")
            raise typer.Exit(2) from error
        except OSError as error:
            if error.filename is None:  # not of a file or folder, whose rights, name or disk are the user's
                raise
            tell(f"error: {error.strerror}: {error.filename}: mend it, or name another place.")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            tell("interrupted; run the same command again to continue")
            raise typer.Exit(130) from error


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Out-of-distribution detection with deep density models, measured.",
    epilog=_examples(
        "oodbench run                                  the point of it all, on embedded images",
        "oodbench run --in cifar10 --out svhn          every model and score there is for one pair",
        "oodbench list detectors                       what can be measured",
    )
    + "\n\n\b\nEvery option can be set by an environment variable, such as OODBENCH_DEVICE for --device;"
    + "\nwhere an option may be repeated, the variable's values are separated by spaces (files: by colons).",
)


@app.command(
    epilog=_examples(
        "oodbench run",
        "oodbench run --in cifar10 --out svhn",
        "oodbench run --in cifar10 --out svhn --out cifar10+vflip --model glow --detector typicality --limit 2000",
        "oodbench run --in fashionmnist --out folder:~/scans --format markdown > table.md",
        "oodbench run --in mnist --out kmnist --model glow --seeds 0,1,2",
        "oodbench run --in mnist --out kmnist --plugin my_score.py --detector my_score --scores scores/",
    )
)
@computing
def run(
    in_: In = None,
    out: Out = None,
    model: Models = None,
    detector: Detectors = None,
    results: Results = Path("results"),
    scores: Annotated[
        Path | None,
        typer.Option("--scores", envvar="OODBENCH_SCORES", help="Folder to write per-image scores to, as CSV."),
    ] = None,
    seeds: Seeds = None,
    format_: FormatOption = Format.TABLE,
    **options: Any,
) -> None:
    """Measure detectors on pairs of data sets.

    Prints one table and keeps a record of every number. A rerun computes nothing twice. Without --in and --out it
    takes the embedded pairs, which need no download.
    """
    from oodbench.benchmark import run_records
    from oodbench.report import table as render

    records = run_records(
        in_=in_,
        out=out,
        models=model,
        detectors=detector,
        results=results,
        scores=scores,
        seeds=seeds or [],
        **options,
    )
    typer.echo(render(records, format=format_.value).rstrip("\n"))


@app.command(
    epilog=_examples(
        "oodbench compare --in cifar10 --out svhn --model glow --detector likelihood --detector typicality",
        "oodbench compare --in cifar10 --out svhn --detector likelihood",
        "oodbench compare --in fashionmnist --model glow --against compressed_size --limit 2000 --format markdown",
        "oodbench compare --in cifar10 --out svhn --model glow --detector likelihood --against vae:typicality",
    )
)
@computing
def compare(
    in_: In = None,
    out: Out = None,
    model: Models = None,
    detector: Detectors = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            envvar="OODBENCH_AGAINST",
            help="Detector, model, or MODEL:DETECTOR that all others are compared with. Default: everything with "
            "everything.",
            metavar="NAME",
        ),
    ] = None,
    format_: FormatOption = Format.TABLE,
    **options: Any,
) -> None:
    """Test whether one AUROC is better than another.

    Paired tests on the same images (DeLong's covariance, Holm's correction): two detectors of a model, a detector on
    two models, a control and anything, or one score of --against and anything. What is cached is not computed again.
    """
    from oodbench.comparing import compare as tests
    from oodbench.report import comparison_table

    rows = tests(in_=in_, out=out, models=model, detectors=detector, against=against, **options)
    typer.echo(comparison_table(rows, format=format_.value).rstrip("\n"))


@app.command(
    epilog=_examples(
        "oodbench suite nalisnick2019",
        "oodbench suite nalisnick2019 --in cifar10 --model glow --model vae --format latex > table.tex",
        "oodbench suite path/to/my.toml --train --limit 2000",
    )
)
@computing
def suite(
    name: Annotated[
        str, typer.Argument(help="A suite's name, of `oodbench list suites`, or a path that ends in .toml.")
    ],
    in_: Annotated[
        list[str] | None,
        typer.Option(
            "--in",
            envvar="OODBENCH_IN",
            help="Its pairs with this in-distribution data set alone; may be repeated.",
            metavar="NAME",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", envvar="OODBENCH_MODEL", help="This one of its models alone; may be repeated.", metavar="NAME"
        ),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", envvar="OODBENCH_TRAIN", help="Train the models that have no weights first.")
    ] = False,
    results: Results = Path("results"),
    seeds: Seeds = None,
    format_: FormatOption = Format.TABLE,
    **options: Any,
) -> None:
    """Run a paper's whole table.

    A suite names pairs, models and detectors. Everything goes through `oodbench run`, and one table of all of it shows
    published numbers beside ours. --in and --model run a part.
    """
    from oodbench.report import suite_table
    from oodbench.suites.running import run_suite

    shown, records = run_suite(name, in_, model, train=train, results=results, seeds=seeds or [], **options)
    typer.echo(suite_table(shown, records, format=format_.value).rstrip("\n"))


@app.command(
    epilog=_examples(
        "oodbench train --model glow --in cifar10",
        "oodbench train --model glow --in cifar10 --background",
        "oodbench train --model 'sghmc(vae)' --in fashionmnist",
        "oodbench train --model pixelcnn++ --in digits --preset tiny --pretrained weights/",
    )
)
def train(
    model: Model,
    dataset: TrainedOn,
    preset: Annotated[
        Preset,
        typer.Option(
            "--preset", envvar="OODBENCH_PRESET", help="tiny: tests; small: minutes; paper: the papers' size."
        ),
    ] = Preset.SMALL,
    background: Annotated[
        bool,
        typer.Option("--background", envvar="OODBENCH_BACKGROUND", help="The companion model of likelihood_ratio."),
    ] = False,
    data_root: DataRoot = None,
    device: Device = "auto",
    seed: Seed = 0,
    pretrained: Annotated[
        Path | None,
        typer.Option(
            "--pretrained", envvar="OODBENCH_PRETRAINED", help="Folder that gets the weights. Default: the cache."
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Train a density model.

    Its weights are added to an index. A killed training continues where it was.
    """
    from oodbench.plugins import load_plugins

    load_plugins(plugin or [])
    from oodbench.training import train as train_model

    trained = train_model(
        model,
        dataset,
        preset=preset.value,
        background=background,
        data_root=data_root,
        device=device,
        pretrained=pretrained,
        seed=seed,
    )
    entry = trained.entry
    bits = entry["bits_per_dim"]
    reached = f"{bits:.3f} bits/dim" if bits is not None else f"a loss of {entry['curve'][-1][2]:.3f} nats/dim"
    typer.echo(f"{entry['file']}: {reached} on validation images")


@app.command(
    epilog=_examples(
        "oodbench score folder:~/scans --in cifar10 --model glow",
        "oodbench score npz:new.npz --in fashionmnist --model pixelcnn++ --detector typicality --output scores.csv",
    )
)
@computing
def score(
    images: Annotated[str, typer.Argument(help="folder:PATH, npz:PATH or a data set's name.")],
    dataset: TrainedOn,
    model: Model,
    detector: Detectors = None,
    output: Annotated[
        Path | None, typer.Option("--output", envvar="OODBENCH_OUTPUT", help="CSV file. Default: standard output.")
    ] = None,
    **options: Any,
) -> None:
    """Score images of your own.

    Gives a CSV: score, percentile and p-value against the validation images.
    """
    from oodbench.scoring import score_images

    scored = score_images(images=images, model=model, dataset=dataset, detector=detector, output=output, **options)
    if output is None:
        typer.echo(scored.to_csv(index=False), nl=False)


@app.command(
    epilog=_examples(
        "oodbench table",
        "oodbench table --in cifar10 --format latex > table.tex",
        "oodbench table --in fashionmnist --rows models --format markdown",
        "oodbench table --out svhn --model glow --model none --detector typicality --detector compressed_size",
        "oodbench table --metric fpr95 --format csv",
    )
)
def table(
    in_: Annotated[
        str | None, typer.Option("--in", envvar="OODBENCH_IN", help="In-distribution data set.", metavar="NAME")
    ] = None,
    out: Annotated[
        list[str] | None,
        typer.Option("--out", envvar="OODBENCH_OUT", help="Data set to show; may be repeated.", metavar="NAME"),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            envvar="OODBENCH_MODEL",
            help="Model to show, 'none' for scores without a model; may be repeated.",
            metavar="NAME",
        ),
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(
            "--detector", envvar="OODBENCH_DETECTOR", help="Detector to show; may be repeated.", metavar="NAME"
        ),
    ] = None,
    results: Results = Path("results"),
    format_: FormatOption = Format.TABLE,
    metric: Annotated[
        Metric, typer.Option("--metric", envvar="OODBENCH_METRIC", help="The number in the table's cells.")
    ] = Metric.AUROC,
    rows: Annotated[
        Rows, typer.Option("--rows", envvar="OODBENCH_ROWS", help="What the table's rows are; auto: models if many.")
    ] = Rows.AUTO,
    published: Annotated[
        bool,
        typer.Option(
            "--published/--no-published",
            envvar="OODBENCH_PUBLISHED",
            help="Whether papers' AUROCs stand beside; csv and json never have them.",
        ),
    ] = True,
) -> None:
    """Print the table of the records in a folder."""
    from oodbench.records import read_records
    from oodbench.report import table as render

    records = read_records(results, in_=in_, models=model, outs=out, detectors=detector)
    text = render(records, format=format_.value, metric=metric.value, rows=rows.value, published=published)
    typer.echo(text.rstrip("\n"))


@app.command(
    epilog=_examples(
        "oodbench plot --in cifar10 --out svhn",
        "oodbench plot --in fashionmnist --out mnist --model glow --detector likelihood --detector typicality",
        "oodbench plot --in cifar10 --out svhn --picture pdf",
    )
)
@computing
def plot(
    in_: In = None,
    out: Out = None,
    model: Models = None,
    detector: Detectors = None,
    results: Results = Path("results"),
    picture: Annotated[
        Picture, typer.Option("--picture", envvar="OODBENCH_PICTURE", help="What the pictures are.")
    ] = Picture.PNG,
    **options: Any,
) -> None:
    """Draw score histograms and ROC curves.

    The pictures land in the folder of the records; their paths are printed.
    """
    from oodbench.pictures import plot as draw

    for path in draw(
        in_=in_, out=out, models=model, detectors=detector, results=results, picture=picture.value, **options
    ):
        typer.echo(path)


@app.command(
    "list",
    epilog=_examples(
        "oodbench list models",
        "oodbench list detectors --plugin my_score.py",
        "oodbench list datasets --data-root ~/data --json",
        "oodbench list suites",
    ),
)
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    json: Annotated[bool, typer.Option("--json", envvar="OODBENCH_JSON", help="A JSON array of objects.")] = False,
    data_root: DataRoot = None,
    plugin: Plugins = None,
) -> None:
    """List what there is, plugins included."""
    from oodbench.catalogue import as_json, as_text, catalogue

    rows = catalogue(kind.value, data_root=data_root, plugins=plugin or [])
    typer.echo(as_json(rows) if json else as_text(rows))


@app.command(epilog=_examples("oodbench info", "oodbench info --plugin my_score.py"))
def info(data_root: DataRoot = None, plugin: Plugins = None) -> None:
    """Show versions, devices, folders, plugins."""
    from oodbench.catalogue import as_text, installation

    typer.echo(as_text(installation(data_root=data_root, plugins=plugin or [])))


def main() -> None:
    """The console script `oodbench`."""
    _speak_any_alphabet()
    app()


def _speak_any_alphabet() -> None:
    """No result of hours is lost to an output that cannot encode a table's rules: files and pipes get UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            if stream.isatty():
                stream.reconfigure(errors="replace")
            else:
                stream.reconfigure(encoding="utf-8")


if __name__ == "__main__":
    main()
