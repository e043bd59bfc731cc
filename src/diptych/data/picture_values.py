"""Convert pictures given as paths, encoded bytes, Pillow images, arrays or tensors to RGB images."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diptych.data.picture_safety import PictureError, convert_picture, open_picture

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8] | Tensor
EXPECTED = (
    "a path, encoded bytes, a Pillow image, a u8 array [height width], [height width 3] or [height width 4], "
    "or a u8 tensor [height width], [3 height width] or [4 height width]"
)


def pictures_in(value: Any) -> Iterable[Picture]:
    """The value itself if it contains several pictures; a list of the value if it is one picture, or an open file."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return [value.item()]
    if isinstance(value, np.ndarray | Tensor):
        is_one = value.ndim in (0, 2, 3) and not (isinstance(value, np.ndarray) and value.dtype.kind in "OSU")
    else:
        is_one = isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | io.IOBase)
    return [value] if is_one else value


def rgb_image(picture: Picture) -> Image.Image:
    """The picture in mode RGB, upright, in sRGB, transparency over white.

    Raises:
        PictureError: if it is not a readable picture.
        OSError: if its file cannot be read.
        TypeError, ValueError: if it is not in one of the forms of `Picture`.
    """
    if isinstance(picture, str | os.PathLike):
        return _opened(picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        return open_picture(bytes(picture))
    if isinstance(picture, Image.Image):
        return convert_picture(picture)
    if isinstance(picture, np.ndarray):
        return convert_picture(_from_array(picture))
    if isinstance(picture, Tensor):
        return convert_picture(_from_tensor(picture))
    raise TypeError(f"got {type(picture).__name__}; expected {EXPECTED}")


def _opened(path: str | os.PathLike[str]) -> Image.Image:
    with open(path, "rb") as file:
        data = file.read()
    try:
        return open_picture(data)
    except PictureError as error:
        raise PictureError(error.reason, f"{os.fspath(path)}: {error}") from error


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8:
        raise TypeError(f"got an array of {array.dtype}; expected uint8, values from 0 to 255")
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (1, 3, 4)):
        raise ValueError(
            f"got an array [{_shown(array.shape)}]; expected [height width], [height width 3] or [height width 4]"
            + ("; array.transpose(1, 2, 0) puts the channels last" if _leads_with_channels(array.shape) else "")
        )
    if not array.size:
        raise ValueError(f"got an array [{_shown(array.shape)}]: there is no pixel in it")
    squeezed = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return Image.fromarray(np.ascontiguousarray(squeezed))


def _from_tensor(tensor: Tensor) -> Image.Image:
    if str(tensor.dtype) != "torch.uint8":
        raise TypeError(f"got a tensor of {tensor.dtype}; expected torch.uint8, values from 0 to 255")
    if tensor.ndim == 2:
        return _from_array(tensor.detach().cpu().numpy())
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise ValueError(
            f"got a tensor [{_shown(tensor.shape)}]; expected [height width], [3 height width] or [4 height width]"
            + ("; tensor.permute(2, 0, 1) puts the channels first" if tensor.ndim == 3 else "")
        )
    return _from_array(tensor.detach().cpu().permute(1, 2, 0).numpy())


def _leads_with_channels(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3, 4)


def _shown(shape: Iterable[int]) -> str:
    return " ".join(map(str, shape))
