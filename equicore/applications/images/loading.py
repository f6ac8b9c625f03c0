"""Classifiers from files, folders and Hugging Face's hub; nothing that is loaded executes code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equicore.applications.images import clip
from equicore.applications.images.clip import Pair
from equicore.applications.images.data import Images
from equicore.applications.images.networks import IMAGENET, NETWORKS, Classifier, ResNet
from equicore.lab.store import load_state_tensors, read_tensors, write_state


def load(source: str | Path, images: Images | None) -> Classifier:
    """A pretrained classifier in eval mode, for the classes of some images.

    Args:
        source: A file that `equicore images train` wrote; weights of a ResNet for CIFAR in the form
            of akamaster/pytorch_resnet_cifar10 (.th, .pt or .pth); or a folder or a hub id of
            Hugging Face, of an image classifier or of a CLIP-like model, which classifies by text.
        images: Whose classes are told apart. One of them is tried. None if the classes do not
            matter, as the last layer is going to be replaced.

    Raises:
        FileNotFoundError: If there is no such file, folder or model.
        ValueError: If the file is damaged or of another kind, the model does not take such images,
            or has other classes.
        ImportError: If it needs transformers, which is not installed.
    """
    path = Path(source)
    if path.suffix in (".th", ".pt", ".pth", ".safetensors") and not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.is_file():
        found = _own(path) if path.suffix == ".safetensors" else _published(path)
    else:
        found = _hugging_face(str(source))
    if images is not None:
        model = found if isinstance(found, Classifier) else found.classifier(images.classes)
        return checked(model.eval(), images)
    if isinstance(found, Classifier):
        return found.eval()
    raise ValueError(f"{source} classifies by text, whatever the classes are: it needs no --probe")


def checked(model: Classifier, images: Images) -> Classifier:
    """The model, its logits in the order of the images' classes; raise ValueError as `load` does.

    Names of classes are compared where the model has some, in lower case and without underscores.
    """
    channels, (rows, columns) = images.pixels.shape[1], images.pixels.shape[2:]
    if channels != len(model.mean):
        raise ValueError(
            f"the images have {channels} channels and the model takes {len(model.mean)}; "
            f"--mode {'L' if len(model.mean) == 1 else 'RGB'} converts them"
        )
    try:
        with torch.no_grad():
            outputs = model(images[:1].inputs()).shape[-1]
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the model does not take images of {rows} x {columns} pixels; --size resizes them: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if outputs != len(images.classes):
        raise ValueError(
            f"the model tells {outputs} classes apart and the images have {len(images.classes)}; "
            "--probe fits its last two layers to them"
        )
    known, wanted = ([_plain(name) for name in names] for names in (model.classes, images.classes))
    if known and set(known) != set(wanted):
        other = sorted(set(known) - set(wanted))[0]
        raise ValueError(
            f"the model's classes are others than the images', such as {other!r}; --probe fits its "
            "last two layers to them, --names gives numbered folders their names"
        )
    if known and known != wanted:
        model.reorder([known.index(name) for name in wanted], images.classes)
    return model


def features_of(model: Classifier) -> tuple[str, ...]:
    """The submodules whose outputs weights see, where they are known.

    Raises:
        ValueError: If they are not.
    """
    network, name = model.network, "network"
    if isinstance(network, nn.Sequential) and len(network):
        network, name = network[0], "network.0"
    if isinstance(network, ResNet):
        return f"{name}.layer2", f"{name}.layer3"
    if name == "network.0":
        return (name,)
    some = [name for name, _ in model.named_modules() if 1 <= name.count(".") <= 3]
    raise ValueError(
        "name the submodules whose outputs the weights of lambda-equitune see, after --features: "
        f"one near the end at least; the model has {', '.join(some[:30])}"
    )


def write(file: Path, model: Classifier | Pair, name: str, settings: dict[str, Any]) -> None:
    """Write a classifier or a pair whose (image) network is one of `NETWORKS`."""
    header = {"network": name, "channels": len(model.mean), **settings}
    if isinstance(model, Classifier):
        header["classes"] = model.classes
    else:
        assert isinstance(model.text, clip.Words)
        header["words"] = list(model.text.places)
    write_state(file, header, model=model)


def _own(path: Path) -> Classifier | Pair:
    """What `write` wrote."""
    tensors, header = read_tensors(path)
    if header.get("network") not in NETWORKS or not {"words", "classes"} & set(header):
        raise ValueError(f"{path} holds no network of `equicore images train`")
    make, channels = NETWORKS[header["network"]], header["channels"]
    colours = [0.0] * channels, [1.0] * channels
    model: Classifier | Pair
    if "words" in header:
        model = clip.small_pair(make(clip.WIDTH, channels), header["words"], *colours)
    else:
        model = Classifier(make(len(header["classes"]), channels), header["classes"], *colours)
    load_state_tensors(tensors, model=model)
    return model


def _published(path: Path) -> Classifier:
    """A ResNet for CIFAR; its depth is that of its weights."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        weights = content.get("state_dict", content)
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
        blocks = len({name.split(".")[1] for name in weights if name.startswith("layer1.")})
        outputs = len(weights["linear.bias"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{path} holds no weights of a ResNet for CIFAR, named as in akamaster/"
            f"pytorch_resnet_cifar10: {str(error).splitlines()[0]}"
        ) from error
    network = ResNet(6 * blocks + 2, outputs)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} is no ResNet for CIFAR: {str(error).splitlines()[1]}") from error
    return Classifier(network)


def _hugging_face(source: str) -> Classifier | Pair:
    """An image classifier or a CLIP-like model, from a folder or the hub."""
    try:
        import transformers
        from transformers.image_processing_base import ImageProcessingMixin
    except ImportError as error:
        raise ImportError(
            f"{source} is no file, and a model of Hugging Face needs transformers: pip install "
            '"equirl[images]"'
        ) from error
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        looks = ImageProcessingMixin.get_image_processor_dict(source)[0]
        if hasattr(config, "text_config"):
            model = transformers.AutoModel.from_pretrained(source)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        else:
            model = transformers.AutoModelForImageClassification.from_pretrained(source)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise FileNotFoundError(
            f"{source} is no file and no whole model folder here, and not to be had from Hugging "
            f"Face's hub: {str(error).strip().splitlines()[0]}"
        ) from error
    colours = looks.get("image_mean", IMAGENET[0]), looks.get("image_std", IMAGENET[1])
    if hasattr(config, "text_config"):
        return clip.from_hugging_face(model.eval(), tokenizer, *colours)
    names = [config.id2label[place] for place in range(config.num_labels)]
    unnamed = all(name.startswith("LABEL_") for name in names)
    return Classifier(model, () if unnamed else names, *colours)


def _plain(name: str) -> str:
    return name.lower().replace("_", " ")
