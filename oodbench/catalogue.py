"""What there is: registered names, weights, data sets, and the installation itself."""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from oodbench.files import Paths, cache_dir
from oodbench.plugins import load_plugins, loaded
from oodbench.provenance import installed_version
from oodbench.registry import DATASETS, DETECTORS, MODELS, POSTERIORS, STATISTICS

__all__ = ["as_json", "as_text", "catalogue", "installation"]

Row = dict[str, Any]


def catalogue(kind: str, *, data_root: Path | str | None = None, plugins: Paths = ()) -> list[Row]:
    """Rows on all `models`, `detectors`, `datasets`, `statistics`, `pretrained`, `suites`; only weights need torch."""
    load_plugins(plugins, builtin=kind != "models")
    kinds: dict[str, Callable[[], list[Row]]] = {
        "models": _models,
        "detectors": _detectors,
        "datasets": lambda: _datasets(data_root),
        "statistics": _statistics,
        "pretrained": _pretrained,
        "suites": _suites,
    }
    return kinds[kind]()


def _models() -> list[Row]:
    return [{"name": name, "from": MODELS.origin_of(name), "what": MODELS.summary(name)} for name in MODELS] + [
        {"name": f"{name}(MODEL)", "from": "oodbench", "what": POSTERIORS.summary(name)} for name in POSTERIORS
    ]


def _detectors() -> list[Row]:
    return [
        {
            "name": name,
            "needs": list(DETECTORS.get(name).needs),
            "groups": list(DETECTORS.get(name).group_sizes),
            "from": DETECTORS.origin_of(name),
            "what": DETECTORS.summary(name) + _cost(DETECTORS.get(name).most_images),
        }
        for name in sorted(DETECTORS)
    ]


def _cost(most_images: int | None) -> str:
    return "" if most_images is None else f" (only when named, on {most_images:,} images a set)"


def _datasets(data_root: Path | str | None) -> list[Row]:
    from oodbench.data import available

    return [{"name": name, "from": source, "what": summary} for name, summary, source in available(data_root)]


def _statistics() -> list[Row]:
    """The registered ones, and the columns of a model's forward pass that some detector reads."""
    from oodbench.detector import EVERY_COLUMN  # with numpy, which a list of models does not need

    rows = {
        name: {
            "name": name,
            "needs": "a model" if STATISTICS.get(name).needs_model else "images",
            "from": STATISTICS.origin_of(name),
            "what": STATISTICS.summary(name),
        }
        for name in STATISTICS
    }
    for detector in DETECTORS:
        for need in set(DETECTORS.get(detector).needs) - {EVERY_COLUMN}:
            what = "A column of the model's forward pass" + (", of its companion" if "@" in need else "")
            rows.setdefault(need, {"name": need, "needs": "a model", "from": "oodbench", "what": what})
    return [rows[name] for name in sorted(rows)]


def _pretrained() -> list[Row]:
    from oodbench.pretrained import entries

    fields = ("dataset", "model", "role", "preset", "seed", "bits_per_dim", "undertrained")
    return [{field: entry.get(field) for field in fields} | {"file": str(file)} for file, entry in entries()]


def _suites() -> list[Row]:
    from oodbench.suites import available_suites

    return [
        {
            "name": suite.name,
            "pairs": [f"{pair.in_} → {' '.join(pair.out)}" for pair in suite.pairs],
            "models": list(suite.models),
            "detectors": list(suite.detectors),
            "what": suite.title,
        }
        for suite in available_suites()
    ]


def installation(*, data_root: Path | str | None = None, plugins: Paths = ()) -> list[Row]:
    """Versions, devices, folders and plugins, as rows of `name` and `value`."""
    load_plugins(plugins)
    import torch

    from oodbench.pretrained import pretrained_folders

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    sizes = []
    for path in cache_dir().rglob("*"):
        with suppress(FileNotFoundError):  # other commands may write and remove files meanwhile
            sizes += [path.stat().st_size] if path.is_file() else []
    root = data_root or os.environ.get("OODBENCH_DATA")
    facts = [
        ("oodbench", f"{installed_version('oodbench') or 'checkout'} in {Path(__file__).resolve().parent}"),
        ("python", f"{sys.version.split()[0]} on {platform.platform()}"),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads)"),
        *((name, installed_version(name) or "not installed")
          for name in ("torchvision", "numpy", "pandas", "scikit-learn", "pillow")),
        ("devices", ", ".join(["cpu", *(f"cuda:{number} ({name})" for number, name in enumerate(gpus))])),
        ("cache", f"{cache_dir()} ({sum(sizes) / 2**20:,.1f} MB in {len(sizes)} files)"),
        ("data root", str(root or "none (--data-root or OODBENCH_DATA)")),
        ("pretrained", ", ".join(map(str, pretrained_folders())) or "none"),
        ("registered", f"{len(MODELS)} models, {len(DETECTORS)} detectors, {len(STATISTICS)} statistics, "
                       f"{len(DATASETS)} data sets"),
        *(("plugin", f"{plugin.where}: {'skipped' if plugin.fault else _names(plugin.names)}")
          for plugin in loaded() if plugin.origin != "oodbench" or plugin.fault),
    ]  # fmt: skip
    return [{"name": name, "value": value} for name, value in facts]


def _names(names: Iterable[tuple[Any, str]]) -> str:
    return ", ".join(f"{registry.kind} {name}" for registry, name in names) or "registers nothing"


def as_json(rows: list[Row]) -> str:
    """A JSON array of objects."""
    return json.dumps(rows, indent=2, ensure_ascii=False)


def as_text(rows: list[Row]) -> str:
    """Aligned columns under their names."""
    if not rows:
        return "none"
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)
