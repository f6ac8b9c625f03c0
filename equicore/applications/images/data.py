"""Images with labels: from folders, CIFAR's binary files, Hugging Face's datasets, scikit-learn."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from equicore.groups import Group
from equicore.lab import pictures
from equicore.lab.store import digest
from equicore.representations import Representation

HELD_OUT = 0.1
"""Part of the training images that nothing is trained on here: methods are chosen by them."""
SPLITS = ("train", "test", "val", "validation")
CIFAR = {
    # of each version: its files of each split, the bytes before an image, and the names of classes
    "cifar10": (
        {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
        1,
        "batches.meta.txt",
    ),
    "cifar100": ({"train": ["train.bin"], "test": ["test.bin"]}, 2, "fine_label_names.txt"),
}


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one size, in memory, with their labels."""

    pixels: Tensor  # (N, channels, rows, columns), of uint8
    labels: Tensor  # (N,), the places of their classes
    classes: tuple[str, ...]
    name: str = "images"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> Images:
        """Some of them."""
        return dataclasses.replace(self, pixels=self.pixels[rows], labels=self.labels[rows])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: (channels, rows, columns)."""
        return tuple(self.pixels.shape[1:])

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen characters that are others for other images or labels."""
        return digest(self.pixels.numpy().tobytes() + self.labels.numpy().tobytes())

    def split(self, part: float, seed: int) -> tuple[Images, Images]:
        """Those that are left, and a random part of them; the same for the same seed."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        count = round(part * len(self))
        return self[order[count:]], self[order[:count]]

    def shared(self, *others: Images) -> int:
        """How many of them are also among others, by their pixels."""
        others_pixels = {image.numpy().tobytes() for images in others for image in images.pixels}
        return sum(image.numpy().tobytes() in others_pixels for image in self.pixels)

    def inputs(self) -> Tensor:
        """What networks take: values from 0 to 1, in float32."""
        return self.pixels.float() / 255

    def batches(
        self, size: int, seed: int | None = None, device: torch.device | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (inputs, labels), in their order or in a random one; the last may be smaller."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        order = torch.arange(len(self))
        if generator is not None:
            order = torch.randperm(len(self), generator=generator)
        for rows in order.split(size):
            some = self[rows]
            yield some.inputs().to(device), some.labels.to(device)

    def drawn(self, group: Group, seed: int) -> Tensor:
        """A random element for each image, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(len(group), (len(self),), generator=generator)

    def moved(self, rep: Representation, seed: int) -> Images:
        """Each image under the element that is `drawn` for it."""
        elements = self.drawn(rep.group, seed)
        return dataclasses.replace(self, pixels=rep.act_each(elements, self.pixels))


def read(
    path: str | Path | None = None,
    split: str | None = "train",
    *,
    names: str | Path | None = None,
    labelled: bool = True,
    mode: str | None = None,
    size: int | None = None,
) -> Images:
    """Images and labels of one split.

    Args:
        path: A folder of images, ``split/class/image.png``, or ``class/image.png``, of which about
            a fifth is to test, chosen by the files' names; a folder of CIFAR's official binary
            files; ``hf:NAME``, a data set of Hugging Face, or a folder that its ``save_to_disk``
            wrote, read by the package ``datasets``. None for scikit-learn's digits, 1,400 to train
            on and 397 to test.
        split: ``"train"`` or ``"test"``, which may be called ``val`` or ``validation``; None for
            all images of a folder, and of others those to train on.
        names: A file of class names, one a line, for class folders that are named by numbers: line
            0 is that of folder 0.
        labelled: Whether there are class folders. If not, all images of a folder, and of those in
            it, are of one class, "image".
        mode: ``"RGB"`` or ``"L"``, into which images are converted; as they are when omitted.
        size: The shorter side of images is resized to it, and a square cut from the middle.

    Raises:
        FileNotFoundError: If there is no such folder, split or file.
        ValueError: If there is no image in it, an image is damaged or transparent, or they differ
            in size or in their number of channels; the message names the file.
        ImportError: If a package is missing.
    """
    if mode not in (None, "RGB", "L") or (size is not None and size < 1):
        raise ValueError(f"mode is RGB or L, and size at least 1; got {mode!r} and {size}")
    if path is None:
        _check_unnamed(names, "the digits")
        return _converted(_digits(split or "train"), mode, size)
    if str(path).startswith("hf:"):
        _check_unnamed(names, "data sets of Hugging Face")
        return _hugging_face(str(path)[3:], split or "train", labelled, mode=mode, size=size)
    folder = Path(path)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; name the folder that it is in")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; name one with images of each class")
    for version, (files, skipped, listed) in CIFAR.items():
        if any((folder / name).is_file() for name in (files["train"][0], files["test"][0])):
            _check_unnamed(names, "CIFAR")
            images = _cifar(folder, version, split or "train", files, skipped, listed)
            return _converted(images, mode, size)
    if (folder / "batches.meta").is_file() or (folder / "meta").is_file():
        raise ValueError(
            f"{folder} holds CIFAR's Python version, pickled files, which could execute code when "
            "read; get the binary version (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz)"
        )
    found, labels, classes = _listed(folder, split, names, labelled)
    if not found:
        raise ValueError(f"{folder} has too few images to set a fifth of them apart")
    pixels = torch.from_numpy(pictures.read_all(found, mode=mode, size=size))
    return Images(pixels, torch.tensor(labels), classes, folder.resolve().name)


def _digits(split: str) -> Images:
    """Of scikit-learn, 8 x 8 pixels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('the digits need scikit-learn: pip install "equirl[images]"') from error
    if split not in ("train", "test"):
        raise FileNotFoundError(f"the digits have the splits train and test; got {split!r}")
    rows = slice(0, 1400) if split == "train" else slice(1400, None)
    digits = load_digits()
    pixels = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return Images(pixels[rows].unsqueeze(1), labels[rows], tuple("0123456789"), "digits")


def _cifar(folder: Path, version: str, split: str, files: Any, skipped: int, listed: str) -> Images:
    """CIFAR-10 or CIFAR-100, of which each image follows its labels, the finest last."""
    if split not in files:
        raise FileNotFoundError(f"CIFAR has the splits {', '.join(files)}; got {split!r}")
    missing = [name for name in [*files[split], listed] if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which {version} has")
    classes = tuple((folder / listed).read_text().split())
    parts = []
    for name in files[split]:
        content = np.fromfile(folder / name, np.uint8)
        if len(content) == 0 or len(content) % (skipped + 3072):
            raise ValueError(f"{folder / name} is damaged: it holds {len(content)} bytes")
        parts.append(content.reshape(-1, skipped + 3072))
    content = np.concatenate(parts)
    labels = torch.from_numpy(content[:, skipped - 1].astype(np.int64))
    if int(labels.max()) >= len(classes):
        raise ValueError(f"{folder} is damaged: label {int(labels.max())} of {len(classes)}")
    pixels = torch.from_numpy(content[:, skipped:].reshape(-1, 3, 32, 32).copy())
    return Images(pixels, labels, classes, version)


def _listed(
    folder: Path, split: str | None, names: str | Path | None, labelled: bool
) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """The files of a split, their labels, and the names of classes."""
    below = _folders(folder)
    splits = {name.lower(): folder / name for name in below if name.lower() in SPLITS}
    # a class may be called train, too; it holds no folders
    apart = bool(splits) and (len(splits) == len(below) or any(map(_folders, splits.values())))
    root = folder
    if apart and split is not None:
        called = [split, *(("val", "validation") if split == "test" else ())]
        if not set(called) & set(splits):
            raise FileNotFoundError(f"{folder} has no {' or '.join(called)}; it has {below}")
        root = next(splits[name] for name in called if name in splits)
    found = _folders(root)
    classes: tuple[str, ...] = ("image",)
    if not labelled:
        files = pictures.files_in(root)
        labels = [0] * len(files)
    elif not found:
        raise ValueError(f"{root} has no folders of classes, such as {root / 'cat'}")
    else:
        numbered = all(name.isdecimal() for name in found)
        found.sort(key=int if numbered else None)
        pictures.warn_of_others([root / name for name in found])
        of_class = [pictures.files_in(root / name) for name in found]
        classes = tuple(found) if names is None else _named(Path(names), found, numbered)
        places = range(len(found)) if names is None else map(int, found)
        labels = [place for place, own in zip(places, of_class, strict=True) for _ in own]
        files = [file for own in of_class for file in own]
    if not apart and split is not None:
        kept = [i for i, f in enumerate(files) if _is_test(f, folder) == (split == "test")]
        if lost := set(labels) - {labels[i] for i in kept}:
            warnings.warn(
                f"{folder} has too few images of {classes[min(lost)]!r} to set a fifth apart: none "
                f"is to {split}",
                stacklevel=3,
            )
        files, labels = [files[i] for i in kept], [labels[i] for i in kept]
    return files, labels, classes


def _folders(folder: Path) -> list[str]:
    """The names of the folders in one, but for hidden ones and those of archives."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] not in "._")


def _is_test(file: Path, folder: Path) -> bool:
    """Whether a file is one of the fifth that tests: by its name, whatever else is there."""
    return int(digest(file.relative_to(folder).as_posix().encode()), 16) % 5 == 0


def _named(names: Path, found: Sequence[str], numbered: bool) -> tuple[str, ...]:
    """The names of classes, from a file."""
    try:
        lines = [line.strip() for line in names.read_text("utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{names} is no file of class names in UTF-8: {error}") from error
    if twice := [line for line in lines if lines.count(line) > 1]:
        raise ValueError(f"{names} has {twice[0]!r} more than once; make its names different")
    if not numbered or int(found[-1]) >= len(lines):
        raise ValueError(
            f"{names} has {len(lines)} names, of folders 0 to {len(lines) - 1}; there is a folder "
            f"{found[-1]}"
        )
    return tuple(lines)


def _check_unnamed(names: str | Path | None, what: str) -> None:
    if names is not None:
        raise ValueError(f"{what} know the names of their classes; {names} is for numbered folders")


def _converted(images: Images, mode: str | None, size: int | None) -> Images:
    """Images in another mode, or of another size."""
    if mode is None and size is None:
        return images
    arrays = images.pixels.permute(0, 2, 3, 1).numpy()
    arrays = arrays.squeeze(-1) if arrays.shape[-1] == 1 else arrays
    found = [Image.fromarray(array) for array in arrays]
    where = [f"image {place} of {images.name}" for place in range(len(found))]
    pixels = torch.from_numpy(pictures.read_all(found, where, mode=mode, size=size))
    return dataclasses.replace(images, pixels=pixels)


def _hugging_face(name: str, split: str, labelled: bool, **options: Any) -> Images:
    """A data set with a column of images and one of class labels."""
    try:
        import datasets  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError("hf: needs the package datasets: pip install datasets") from error
    found = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    if isinstance(found, datasets.DatasetDict):
        called = [split, *(("val", "validation") if split == "test" else ())]
        if not set(called) & set(found):
            raise FileNotFoundError(f"{name} has the splits {', '.join(found)}; got {split!r}")
        found = next(found[one] for one in called if one in found)
    columns = [
        [name for name, of in found.features.items() if isinstance(of, kind)]
        for kind in (datasets.Image, datasets.ClassLabel)
    ]
    if len(columns[0]) != 1 or (labelled and len(columns[1]) != 1):
        raise ValueError(
            f"{name} needs one column of images and one of class labels; it has {found.features}"
        )
    where = [f"{name}[{row}]" for row in range(len(found))]
    pixels = torch.from_numpy(pictures.read_all(found[columns[0][0]], where, **options))
    if not labelled:
        return Images(pixels, torch.zeros(len(pixels), dtype=torch.long), ("image",), name)
    labels = torch.tensor(found[columns[1][0]])
    if int(labels.min()) < 0:
        raise ValueError(f"the {split} split of {name} has no labels (-1)")
    return Images(pixels, labels, tuple(found.features[columns[1][0]].names), name)
