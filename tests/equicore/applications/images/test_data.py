"""Images from folders and from CIFAR's files; splits that never mix."""

import io
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from equicore import image_rotations
from equicore.applications.images import data


def fill(folder, names, count=5, value=0, size=(8, 8)):
    for place, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            array = np.full((*size, 3), value + 10 * place + i, np.uint8)
            Image.fromarray(array).save(folder / name / f"{i}.png")


def test_a_folder_with_splits(tmp_path):
    fill(tmp_path / "train", ("cat", "dog"))
    fill(tmp_path / "val", ("cat", "dog"), value=100)
    train, test = data.read(tmp_path), data.read(tmp_path, "test")
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0] * 5 + [1] * 5
    assert int(train.pixels.max()) < 100 <= int(test.pixels.min())
    assert train.pixels.shape == (10, 3, 8, 8)


def test_a_folder_without_splits_is_split(tmp_path):
    """By the files' names: whatever else is there, and with labels or without."""
    fill(tmp_path, ("cat", "dog", "10", "9"), 20)
    train, test = data.read(tmp_path), data.read(tmp_path, "test")
    assert len(train) + len(test) == 80 == len(data.read(tmp_path, None))
    assert 8 < len(test) < 25
    values = [set(images.pixels[:, 0, 0, 0].tolist()) for images in (train, test)]
    assert not values[0] & values[1] - values[0]
    fill(tmp_path, ("emu", ".hidden"), 20, value=100)
    more = data.read(tmp_path, "test")
    assert more.pixels[more.labels < 4].flatten(1).sum() == test.pixels.flatten(1).sum()
    unlabelled = data.read(tmp_path, "test", labelled=False)
    assert unlabelled.classes == ("image",)
    assert unlabelled.pixels.flatten().sort().values.equal(more.pixels.flatten().sort().values)


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, ("bus", "train", "car"), 10)
    assert data.read(tmp_path).classes == ("bus", "car", "train")
    assert len(data.read(tmp_path, None, labelled=False)) == 30


def test_splits_in_capitals(tmp_path):
    fill(tmp_path / "Train", ("cat", "dog"))
    fill(tmp_path / "Test", ("cat", "dog"), value=100)
    assert data.read(tmp_path).classes == ("cat", "dog")
    assert int(data.read(tmp_path, "test").pixels.min()) >= 100


def test_links_are_followed_and_hidden_folders_not(tmp_path):
    fill(tmp_path / "elsewhere", ("more",), 7)
    fill(tmp_path / "train", ("cat",), 5)
    fill(tmp_path / "train" / "cat", (".ipynb_checkpoints",), 5)
    (tmp_path / "train" / "cat" / "linked").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "train" / "cat" / "loop").symlink_to(tmp_path / "train" / "cat")
    (tmp_path / "train" / "cat" / "folder.png").mkdir()
    assert len(data.read(tmp_path)) == 12


def test_numbered_folders_are_in_the_order_of_numbers(tmp_path):
    fill(tmp_path / "train", ("0", "2", "10"))
    assert data.read(tmp_path).classes == ("0", "2", "10")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {i}" for i in range(11)))
    named = data.read(tmp_path, names=names)
    assert named.classes[10] == "class 10"
    assert set(named.labels.tolist()) == {0, 2, 10}
    names.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="has 2 names, of folders 0 to 1; there is a folder 10"):
        data.read(tmp_path, names=names)
    names.write_bytes("\ufeffé\nb".encode("utf-16"))
    for wrong in (names, tmp_path / "nothing"):
        with pytest.raises(ValueError, match=f"{wrong.name} is no file of class names in UTF-8"):
            data.read(tmp_path, names=str(wrong))
    names.write_text("\ufeff" + "\n".join(f"class {i}" for i in range(11)) + "\n\n", "utf-8")
    assert data.read(tmp_path, names=names).classes == named.classes


def test_a_class_that_cannot_be_split_is_warned_of(tmp_path):
    fill(tmp_path, ("cat", "dog"), 20)
    fill(tmp_path, ("emu",), 1)
    warned = []
    for split in ("train", "test"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data.read(tmp_path, split)
        warned += [str(one.message) for one in caught]
    (message,) = warned
    assert re.search("too few images of 'emu' to set a fifth apart: none is to t", message)


def test_two_classes_of_one_name(tmp_path):
    fill(tmp_path / "train", ("0", "1"))
    names = tmp_path / "names.txt"
    names.write_text("crane\ncrane")
    with pytest.raises(ValueError, match="has 'crane' more than once"):
        data.read(tmp_path, names=names)


def test_names_are_for_numbers(tmp_path):
    fill(tmp_path / "train", ("cat",))
    names = tmp_path / "names.txt"
    names.write_text("cat")
    with pytest.raises(ValueError, match="there is a folder cat"):
        data.read(tmp_path, names=names)


def test_without_labels(tmp_path):
    fill(tmp_path / "anything", ("deep",), 5)
    images = data.read(tmp_path, None, labelled=False)
    assert images.classes == ("image",)
    assert len(images) == 5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda f: None, FileNotFoundError, "there is no folder"),
        (lambda f: f.mkdir(), ValueError, "no folders of classes, such as"),
        (lambda f: (f / "cat").mkdir(parents=True), ValueError, "cat holds no images"),
        (lambda f: fill(f / "test", ("cat",)), FileNotFoundError, "has no train; it has"),
        (lambda f: ((f).mkdir(), (f / "meta").touch()), ValueError, "could execute code"),
    ],
)
def test_folders_that_do_not_fit(tmp_path, make, error, message):
    make(tmp_path / "images")
    with pytest.raises(error, match=message):
        data.read(tmp_path / "images")


@pytest.fixture
def cifar(tmp_path):
    """A small folder in the official binary form of CIFAR-100, and its content."""
    generator = np.random.default_rng(0)
    content = generator.integers(0, 3, (4, 3074)).astype(np.uint8)
    for name in ("train.bin", "test.bin"):
        content.tofile(tmp_path / name)
    (tmp_path / "fine_label_names.txt").write_text("ant\nbee\ncow\n")
    return tmp_path, content


def test_cifar(cifar):
    folder, content = cifar
    images = data.read(folder, "test")
    assert images.classes == ("ant", "bee", "cow")
    assert images.name == "cifar100"
    assert images.labels.tolist() == content[:, 1].tolist()
    assert np.array_equal(images.pixels.flatten(1).numpy(), content[:, 2:])


def test_other_sizes_and_modes(cifar):
    folder, _ = cifar
    images = data.read(folder, size=16, mode="L")
    assert images.shape == (1, 16, 16)
    assert data.read(size=12, mode="RGB").shape == (3, 12, 12)
    for path in (folder, None):
        with pytest.raises(ValueError, match="know the names of their classes; names is for"):
            data.read(path, names="names")


def test_damaged_cifar(cifar):
    folder, content = cifar
    content[:, :-1].tofile(folder / "train.bin")
    with pytest.raises(ValueError, match="train.bin is damaged: it holds 12292 bytes"):
        data.read(folder)
    (folder / "fine_label_names.txt").write_text("ant\n")
    with pytest.raises(ValueError, match="is damaged: label 2 of 1"):
        data.read(folder, "test")
    (folder / "fine_label_names.txt").unlink()
    with pytest.raises(FileNotFoundError, match="lacks fine_label_names.txt"):
        data.read(folder, "test")
    with pytest.raises(FileNotFoundError, match="splits train, test; got 'val'"):
        data.read(folder, "val")


def test_hugging_face_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        data.read("hf:cifar10")


def test_hugging_face(tmp_path):
    """What is used of the package, which is not installed everywhere."""
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    arrow = pytest.importorskip("pyarrow")
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    png = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(png, "PNG")
    rows = {"img": [{"bytes": png.getvalue(), "path": None}] * 3, "label": [0, 1, 1]}
    table = arrow.Table.from_pydict(rows, schema=features.arrow_schema)
    made = datasets.DatasetDict({"train": datasets.Dataset(table, fingerprint="any")})
    made.save_to_disk(tmp_path / "saved")
    found = data.read(f"hf:{tmp_path / 'saved'}")
    assert found.labels.tolist() == [0, 1, 1]
    assert found.classes == ("cat", "dog")
    with pytest.raises(FileNotFoundError, match="splits train; got 'test'"):
        data.read(f"hf:{tmp_path / 'saved'}", "test")


def test_wrong_options():
    with pytest.raises(ValueError, match="mode is RGB or L"):
        data.read(mode="CMYK")
    with pytest.raises(ValueError, match="size at least 1"):
        data.read(size=0)
    with pytest.raises(FileNotFoundError, match="splits train and test"):
        data.read(None, "validation")


def test_splits_are_the_same_for_the_same_seed(digits):
    train = digits[0]
    rest, held = train.split(0.2, 0)
    assert (len(rest), len(held)) == (1120, 280)
    assert held.digest == train.split(0.2, 0)[1].digest != train.split(0.2, 1)[1].digest
    together = torch.cat([rest.pixels, held.pixels]).flatten(1).double().sum()
    assert together == train.pixels.flatten(1).double().sum()


def test_moved_images_are_those_of_their_elements(digits):
    rep = image_rotations()
    images = digits[1]
    moved = images.moved(rep, seed=3)
    assert moved.digest == images.moved(rep, seed=3).digest != images.moved(rep, seed=4).digest
    stacked = rep.orbit(images.pixels)
    same = (stacked == moved.pixels).flatten(2).all(-1)
    assert same.any(0).all()
    assert (same.double().argmax(0).bincount(minlength=4) > 60).all()


def test_images_that_are_in_two_sets(digits):
    train, test = digits
    assert train.shared(test[slice(0, 3)], train[slice(0, 5)]) == 5
    assert test[slice(0, 3)].shared(train) == 0


def test_batches_hold_every_image_once(digits):
    images = digits[1]
    inputs, labels = zip(*images.batches(100, seed=1), strict=True)
    assert sum(map(len, inputs)) == len(images)
    assert torch.cat(labels).bincount().tolist() == images.labels.bincount().tolist()
    assert torch.equal(next(images.batches(10))[1], images.labels[:10])
