"""Scores of a user's own images, held against the validation images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from oodbench.data import load
from oodbench.engine.device import choose_device
from oodbench.errors import OodbenchError
from oodbench.files import check_writable, expanded, write_atomically
from oodbench.how import How, Options, listed
from oodbench.plugins import load_plugins
from oodbench.selection import check_names, contenders
from oodbench.trial import Trial, measure

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["score_images"]


def score_images(
    images: str,
    model: str,
    dataset: str,
    detector: Sequence[str] | str | None = None,
    output: Path | str | None = None,
    **options: Unpack[Options],
) -> "pd.DataFrame":
    """Scores of a user's images by a model of `dataset`: a row an image and detector, also written to `output` as CSV.

    `image` is the file of a folder's image, as a path in it, else the image's index. `percentile` is the share of
    validation images with a smaller or equal score, in percent; `p_value` is the conformal
    (1 + #{validation scores >= score}) / (1 + n): small means unlike the in-distribution images. A score that is NaN
    has neither. The keywords are the fields of `How`; `limit` holds for the user's images only. A detector that costs
    seconds an image scores a subset.
    """
    import pandas as pd

    how, detector = How(**options), listed(detector)
    load_plugins(how.plugins)
    if output is not None:
        output = expanded(output)
        if output.exists() and not output.is_file():
            raise OodbenchError(f"{output} is not a file: name the CSV file to write.")
        check_writable(output.parent)
    check_names([model], detector)
    choose_device(how.device)
    validation, users = load(dataset, "validation", how.data_root), how.load(images, "test")
    tables = []
    found = contenders(validation, [model], detector, how)
    trials = [Trial(contender, validation, validation, [users]) for contender in found]
    for trial, _, scored in measure(trials, how):
        for one in (s for s in scored if s.group_size == 1):
            reference = np.sort(one.score_in)
            below = np.searchsorted(reference, one.score_out, "left")
            up_to = np.searchsorted(reference, one.score_out, "right")
            ranked = np.where(np.isnan(one.score_out), np.nan, 1)  # what has no score has no place among the others
            scored_images = one.outside.images
            table = {
                "image": scored_images.index if scored_images.names is None else scored_images.names,
                "model": trial.contender.name,
                "detector": one.detector,
                "score": one.score_out,
                "percentile": ranked * 100 * up_to / len(reference),
                "p_value": ranked * (1 + len(reference) - below) / (1 + len(reference)),
            }
            tables.append(pd.DataFrame(table))
    if not tables:
        raise OodbenchError("No detector gave scores of single images: name another one with --detector.")
    result = pd.concat(tables, ignore_index=True)
    if output is not None:
        with write_atomically(output) as file:
            file.write(result.to_csv(index=False).encode())
    return result
