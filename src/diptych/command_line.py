"""What both commands share in reading their words."""

from __future__ import annotations

import argparse
from pathlib import Path

from diptych.errors import UserError
from diptych.files import local_path


def path_argument(text: str) -> Path:
    """`local_path` as an argparse type, for each path that is read or written without fsspec."""
    try:
        return local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
