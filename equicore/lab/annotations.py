"""Boxes that people have drawn in pictures: annotations of COCO and of Pascal VOC."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

from equicore.lab.store import read_lines


class Box(NamedTuple):
    """A box, what it shows, and whether it counts neither as found nor as missed."""

    corners: list[float]  # x, y, x, y in pixels, the origin in the upper left corner
    name: str
    crowd: bool


class Picture(NamedTuple):
    """The name of a picture's file, its width and height in pixels, and its boxes."""

    file: str
    size: tuple[int, int]
    boxes: list[Box]


class Annotations(NamedTuple):
    """Pictures, the classes in the order of COCO's ids or of the alphabet, and a name of all."""

    pictures: list[Picture]
    classes: tuple[str, ...]
    name: str


def read(path: str | Path, split: str | None = None) -> Annotations:
    """Read a JSON file of COCO, or a folder of XML files of Pascal VOC.

    Args:
        path: The file or the folder.
        split: Of Pascal VOC, the list of names ``ImageSets/Main/SPLIT.txt`` beside the folder; all
            annotations when omitted.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If an annotation is damaged, or something stands twice; the message names it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if split is not None and not path.is_dir():
        raise ValueError(f"a split names a list of Pascal VOC; {path} is a file of COCO")
    try:
        content = _voc(path, split) if path.is_dir() else json.loads(path.read_text("utf-8"))
        kinds = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        pictures = {
            one["id"]: Picture(one["file_name"], (int(one["width"]), int(one["height"])), [])
            for one in content["images"]
        }
        for one in content["annotations"]:
            if one["image_id"] not in pictures:
                raise ValueError(f"an annotation is of the image {one['image_id']}, not there")
            x, y, wide, tall = map(float, one["bbox"])
            corners, crowd = [x, y, x + wide, y + tall], bool(one.get("iscrowd", 0))
            box = Box(corners, kinds[one["category_id"]], crowd)
            pictures[one["image_id"]].boxes.append(box)
    except KeyError as error:
        raise ValueError(
            f"{path} has no {error}; it needs images, categories, and annotations of these"
        ) from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not usable: {error}") from error
    for what, values in (
        ("one image's id", [one["id"] for one in content["images"]]),
        ("one image file", [picture.file for picture in pictures.values()]),
        ("one category's id", [one["id"] for one in content["categories"]]),
        ("one category's name", [one["name"] for one in content["categories"]]),
    ):
        if len({*values}) < len(values):
            raise ValueError(f"{path} has {what} twice; each is to stand once")
    if not pictures:
        raise ValueError(f"{path} has no images")
    ends = [end for picture in pictures.values() for box in picture.boxes for end in box.corners]
    if ends and max(ends) <= 1:
        raise ValueError(
            f"all boxes of {path} end within the first pixel: they are to be in pixels, not in "
            "parts of the image's sides"
        )
    whole = path.parent.name if path.is_dir() else path.stem
    classes = tuple(kinds[number] for number in sorted(kinds))
    return Annotations([*pictures.values()], classes, f"{whole}-{split}" if split else whole)


def _voc(folder: Path, split: str | None) -> dict[str, Any]:
    """Annotations of Pascal VOC as those of COCO."""
    images, boxes = {}, []
    for file in sorted(folder.glob("*.xml")):
        text = file.read_text(encoding="utf-8")
        try:
            if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can be made to grow
                raise ValueError("it declares a document type")
            root = ElementTree.fromstring(text)
            size = {name: int(root.findtext(f"size/{name}", "")) for name in ("width", "height")}
            name = root.findtext("filename", "")
            images[file.stem] = {"id": file.stem, "file_name": name, **size}
            for shown in root.findall("object"):
                ends = ("xmin", "ymin", "xmax", "ymax")
                x0, y0, x1, y1 = (float(shown.findtext(f"bndbox/{end}", "")) for end in ends)
                # pixels count from 1, and the last is inside
                box: dict[str, Any] = {"bbox": [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]}
                box["iscrowd"] = shown.findtext("difficult", "0").strip() == "1"
                boxes.append({**box, "image_id": file.stem, "kind": shown.findtext("name", "")})
        except (ValueError, ElementTree.ParseError) as error:
            raise ValueError(f"{file.name} is no annotation of Pascal VOC: {error}") from error
    kinds = sorted({one["kind"] for one in boxes})
    if split is not None:
        listed = folder.parent / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            there = sorted(path.stem for path in listed.parent.glob("*.txt"))
            raise FileNotFoundError(f"there is no {listed}; there are {', '.join(there) or 'none'}")
        rows = [line.split() for line in read_lines(listed) if line.strip()]
        stems = [stem for stem, *shown in rows if shown != ["-1"]]  # which does not show the class
        if missing := [stem for stem in stems if stem not in images]:
            raise ValueError(f"{listed} names {missing[0]}, of which there is no XML file")
        images = {stem: images[stem] for stem in stems}
    own = [{**one, "category_id": kinds.index(one["kind"])} for one in boxes
           if one["image_id"] in images]  # fmt: skip
    categories = [{"id": number, "name": kind} for number, kind in enumerate(kinds)]
    return {"images": list(images.values()), "categories": categories, "annotations": own}
