"""Pictures: files of any format as arrays, all alike, with errors that name the file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip
MANY = 5000
"""Reading as many shows a progress bar."""

Pixels = NDArray[np.uint8]


def files_in(folder: Path) -> list[Path]:
    """The picture files in a folder and the folders in it, in the order of their names.

    Links are followed; what is hidden is not looked at.

    Raises:
        ValueError: If there are none.
    """
    found = sorted(path for path in _files(folder) if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    return found


def warn_of_others(folders: Sequence[Path]) -> None:
    """Warn if files are not among those that `files_in` finds in folders, for their suffix."""
    others = [f for folder in folders for f in _files(folder) if f.suffix.lower() not in SUFFIXES]
    if others:
        warnings.warn(
            f"{len(others)} files, such as {min(others)}, are left out: images end in "
            f"{', '.join(SUFFIXES)}",
            stacklevel=4,
        )


def _files(folder: Path) -> Iterator[Path]:
    """All files that are not hidden."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files if not name.startswith("."))


def read_all(
    pictures: Sequence[Any],
    names: Sequence[str] | None = None,
    *,
    mode: str | None = None,
    size: int | None = None,
) -> Pixels:
    """Pictures as one array (N, channels, rows, columns).

    Args:
        pictures: Files, or pictures of Pillow.
        names: What errors call them; the files when omitted.
        mode: ``"RGB"`` or ``"L"``, into which they are converted; as they are when omitted.
        size: The shorter side of each is resized to it, and a square cut from the middle.

    Raises:
        ValueError: If one cannot be read, is transparent, or is of another size or kind than the
            first; the message names it.
    """
    pixels: Pixels | None = None
    first = ""
    bar = tqdm(pictures, "images", disable=None if len(pictures) > MANY else True)
    for place, picture in enumerate(bar):
        name = str(picture) if names is None else names[place]
        array = read(picture, name, mode=mode, size=size)
        if pixels is None:
            pixels, first = np.empty((len(pictures), *array.shape), np.uint8), name
        if array.shape != pixels.shape[1:]:
            mend = "--size 32, or another size," if len(array) == pixels.shape[1] else "--mode RGB"
            raise ValueError(
                f"{name} has {_said(array.shape)}, and {first} {_said(pixels.shape[1:])}; {mend} "
                "makes them alike"
            )
        pixels[place] = array
    if pixels is None:
        raise ValueError("there are no pictures")
    return pixels


def read(picture: Any, name: str, *, mode: str | None = None, size: int | None = None) -> Pixels:
    """A picture as an array (channels, rows, columns); arguments and errors as of `read_all`."""
    try:
        image = picture if isinstance(picture, Image.Image) else Image.open(picture)
        image.load()
        image = ImageOps.exif_transpose(image)  # as cameras mean it to be shown
    except Exception as error:  # Pillow's plugins raise errors of very many kinds
        raise ValueError(f"{name} cannot be read as an image: {error}") from error
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise ValueError(
                f"{name} is transparent in places, and what is behind it is not known; save it on "
                "a background"
            )
        image = image.convert("RGB")
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has pixels of more than 8 bits (mode {image.mode}); convert it")
    image = image.convert(mode or ("L" if image.mode in ("1", "L") else "RGB"))
    if size is not None:
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + size, top + size))
    array: Pixels = np.asarray(image)
    return array[np.newaxis] if array.ndim == 2 else array.transpose(2, 0, 1)


def _said(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[2]} pixels of {'grey' if shape[0] == 1 else 'colour'}"
