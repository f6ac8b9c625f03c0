"""Pictures of any format as arrays, and errors that name the file."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from equicore.lab import pictures


def save(path, array, mode=None):
    Image.fromarray(np.asarray(array, np.uint8), mode).save(path)
    return path


def pictures_bytes():
    png = io.BytesIO()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(png, "PNG")
    return png.getvalue()


@pytest.fixture
def colour(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (6, 4, 3))
    return save(tmp_path / "colour.png", values), values


def test_colour_and_grey(tmp_path, colour):
    file, values = colour
    assert np.array_equal(pictures.read_all([file, file])[1], values.transpose(2, 0, 1))
    grey = save(tmp_path / "grey.png", values[..., 0])
    assert np.array_equal(pictures.read_all([grey])[0, 0], values[..., 0])
    assert pictures.read_all([grey, file], mode="RGB").shape == (2, 3, 6, 4)
    assert pictures.read_all([grey, file], mode="L").shape == (2, 1, 6, 4)


def test_a_square_from_the_middle(colour):
    assert pictures.read_all([colour[0]], size=8).shape == (1, 3, 8, 8)
    square = pictures.read_all([colour[0]], size=4)
    assert np.array_equal(square[0], colour[1].transpose(2, 0, 1)[:, 1:5])


def test_transparency(tmp_path, colour):
    opaque = np.concatenate([colour[1], np.full((6, 4, 1), 255)], axis=-1)
    file = save(tmp_path / "opaque.png", opaque)
    assert np.array_equal(pictures.read_all([file])[0], colour[1].transpose(2, 0, 1))
    opaque[2, 3, 3] = 0
    file = save(tmp_path / "holes.png", opaque)
    with pytest.raises(ValueError, match="holes.png is transparent in places"):
        pictures.read_all([file])


def test_as_the_camera_was_held(tmp_path, colour):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned to the right
    picture = Image.fromarray(np.asarray(colour[1], np.uint8))
    picture.save(tmp_path / "held.png", exif=exif)
    found = pictures.read_all([tmp_path / "held.png"])[0]
    assert np.array_equal(found, np.rot90(colour[1], -1).transpose(2, 0, 1))


def test_what_is_not_alike_is_refused(tmp_path, colour):
    grey = save(tmp_path / "grey.png", colour[1][..., 0])
    with pytest.raises(ValueError, match=r"grey.png has 6 x 4 pixels of grey, and .*colour.png 6 x "
                       r"4 pixels of colour; --mode RGB makes them alike"):  # fmt: skip
        pictures.read_all([colour[0], grey])
    wide = save(tmp_path / "wide.png", np.zeros((4, 9, 3)))
    with pytest.raises(ValueError, match="wide.png has 4 x 9 pixels .*--size"):
        pictures.read_all([colour[0], wide])


def test_what_cannot_be_read_is_named(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.png cannot be read as an image"):
        pictures.read_all([broken])
    huge = bytearray(pictures_bytes())
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    broken.write_bytes(huge)
    with pytest.raises(ValueError, match="broken.png cannot be read as an image: .*exceeds limit"):
        pictures.read_all([broken])
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((3, 3), 40_000, np.uint16)).save(deep)
    with pytest.raises(ValueError, match="deep.png has pixels of more than 8 bits"):
        pictures.read_all([deep])
    (tmp_path / "notes.txt").write_text("no picture")
    assert len(pictures.files_in(tmp_path)) == 2
    with pytest.warns(UserWarning, match="1 files, such as .*notes.txt, are left out: images"):
        pictures.warn_of_others([tmp_path])
    with pytest.raises(ValueError, match="holds no images"):
        pictures.files_in(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no pictures"):
        pictures.read_all([])
