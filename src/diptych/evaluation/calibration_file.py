"""Keep a calibration in the model's folder, next to the weights."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from diptych.documents import parse_json
from diptych.errors import UserError
from diptych.evaluation.calibration import Calibration
from diptych.evaluation.null_distribution import NullDistribution
from diptych.evaluation.similarity import unit_norm
from diptych.files import commit_file

CALIBRATION_FILE = "calibration.json"
NULL_FILE = "null_distribution.npz"
FORMAT = "diptych-calibration"
VERSION = 1

WAY_OUT = "run `diptych calibrate` again"


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write a calibration into a model folder; what it does not have is kept from an earlier one."""
    earlier = _read_document(folder / CALIBRATION_FILE)
    document = {**earlier, "format": FORMAT, "version": VERSION, **calibration.document}
    if calibration.null is not None:
        commit_file(folder / NULL_FILE, _packed(calibration.null))
    commit_file(folder / CALIBRATION_FILE, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def read_calibration(folder: Path, *, with_null: bool = False) -> Calibration:
    """The calibration of a model folder; one without a document if the model was never calibrated.

    with_null: read the null distribution too.

    Raises:
        UserError: a file is damaged, or the null distribution is missing.
    """
    document = _read_document(folder / CALIBRATION_FILE)
    if not with_null:
        return Calibration(document)
    if "independent" not in document or not (folder / NULL_FILE).is_file():
        raise UserError(
            f"{folder} has no null distribution, which independent labels need; make it once with "
            "`diptych calibrate RUN --retrieval DATA` (pictures with captions) or --zero-shot DATA (with labels)"
        )
    return Calibration(document, _unpacked(folder / NULL_FILE))


def copy_calibration(source: Path, folder: Path) -> None:
    """Copy the calibration of a model folder, if it has one, into another folder of the same model."""
    for name in (CALIBRATION_FILE, NULL_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _read_document(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise ValueError(f"has format {document['format']} {document['version']}")
        return dict(document)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is not a calibration of version {VERSION} ({error}); remove it and {WAY_OUT}"
        ) from error


def _packed(null: NullDistribution) -> bytes:
    """The null distribution as .npz without pickle: half precision moves cosines by less than 0.001."""
    file = io.BytesIO()
    captions = "\n".join(" ".join(caption.split()) for caption in null.captions)
    np.savez(file, pictures=null.pictures.astype(np.float16), captions=np.frombuffer(captions.encode(), np.uint8))
    return file.getvalue()


def _unpacked(path: Path) -> NullDistribution:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            captions = tuple(arrays["captions"].tobytes().decode().split("\n"))
            pictures = unit_norm(arrays["pictures"])
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); {WAY_OUT}") from error
    if len(captions) != len(pictures):
        raise UserError(f"{path} has {len(pictures)} pictures and {len(captions)} captions; {WAY_OUT}")
    return NullDistribution(pictures, captions)
