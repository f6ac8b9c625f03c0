"""Classifiers from files, folders and Hugging Face's hub; nothing that is loaded executes code."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equicore.applications.images import clip
from equicore.applications.images.clip import Pair
from equicore.applications.images.data import Images
from equicore.applications.images.networks import NETWORKS, Classifier, NoHead, ResNet
from equicore.lab.store import load_state_tensors, read_tensors, write_state
from equicore.trees import leaves

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""What published weights with ten outputs tell apart, in their order."""


def load(source: str | Path, images: Images) -> Classifier:
    """A pretrained classifier in eval mode, for the classes of some images.

    Args:
        source: A file that `equicore images train` wrote; weights of a ResNet for CIFAR in the form
            of akamaster/pytorch_resnet_cifar10 (.th, .pt or .pth); or a folder or a hub id of
            Hugging Face, of an image classifier or of a CLIP, which classifies by text.
        images: Whose classes are told apart. One of them is tried. If its side is not what the
            model's preprocessor resizes images to, that is warned of.

    Raises:
        FileNotFoundError: If there is no such file, folder or model.
        ValueError: If the file is damaged or of another kind, the model does not take such images,
            or has other classes.
        ImportError: If it needs transformers, which is not installed.
    """
    found = opened(source)
    _check_side(found, images)
    model = found if isinstance(found, Classifier) else found.classifier(images.classes)
    return checked(model, images)


def without_classes(source: str | Path, images: Images) -> Classifier:
    """What `load` gives, where the images' classes do not matter; of a pair its image features.

    Errors are those of `load`.
    """
    found = opened(source)
    _check_side(found, images)
    if isinstance(found, Classifier):
        check_takes(found, images)
        return found
    colours = found.mean.flatten().tolist(), found.std.flatten().tolist()
    network = nn.Sequential(found.image)
    model = Classifier(network, (), *colours).eval()
    network.append(NoHead(check_takes(model, images).shape[-1]))
    return model


def opened(source: str | Path) -> Classifier | Pair:
    """A classifier or a pair of encoders, in eval mode; errors are those of `load`."""
    path = Path(source)
    if path.suffix in (".th", ".pt", ".pth", ".safetensors") and not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        found = _hugging_face(str(source))
    else:
        found = _own(path) if path.suffix == ".safetensors" else _published(path)
    # most convolutions are faster with their channels last
    return found.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def checked(model: Classifier, images: Images) -> Classifier:
    """The model, its logits in the order of the images' classes; raise ValueError as `load` does.

    Names of classes are compared where the model has some, in lower case and without underscores.
    """
    outputs = check_takes(model, images).shape[-1]
    if outputs != len(images.classes):
        raise ValueError(
            f"the model tells {outputs} classes apart and the images have {len(images.classes)}; "
            "--probe fits its last two layers to them"
        )
    if not model.classes:
        warnings.warn(
            f"the model names no classes: output 0 is taken for {images.classes[0]!r}, and so on "
            f"to {images.classes[-1]!r}",
            stacklevel=3,
        )
    known, wanted = ([_plain(name) for name in names] for names in (model.classes, images.classes))
    if known and set(known) != set(wanted):
        other = sorted(set(known) - set(wanted))[0]
        raise ValueError(
            f"the model's classes are others than the images', such as {other!r}; --probe fits its "
            "last two layers to them, --names gives numbered folders their names"
        )
    if known and len(set(known)) < len(known):
        raise ValueError(
            "the model has classes of the same name, so that they cannot be told apart"
        )
    if known and known != wanted:
        model.reorder([known.index(name) for name in wanted], images.classes)
    return model


@torch.no_grad()
def check_takes(model: nn.Module, images: Images) -> torch.Tensor:
    """What a model gives for the first image; raise ValueError if it does not take it."""
    channels, rows, columns = images.shape
    if isinstance(model, Classifier | Pair) and len(model.mean) != channels:
        raise ValueError(
            f"the images have {channels} channels and the model takes {len(model.mean)}; "
            f"--mode {'L' if len(model.mean) == 1 else 'RGB'} converts them"
        )
    device = next((parameter.device for parameter in model.parameters()), None)
    try:
        return model(images[slice(0, 1)].inputs().to(device))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the model does not take images of {rows} x {columns} pixels (--size resizes them, if "
            f"that is why): {str(error).splitlines()[0]}"
        ) from error


def features_of(model: Classifier, images: Images) -> tuple[str, ...]:
    """The submodules whose outputs weights see, where none are named.

    Of a ResNet for CIFAR the last two stages, of a pair the features of the image; of others the
    last maps, or words and patches, that one image gives.

    Raises:
        ValueError: If there are none.
    """
    network, name = model.network, "network"
    if isinstance(network, nn.Sequential) and not isinstance(network[-1], nn.Linear):
        network, name = network[0], "network.0"  # of a pair
    if isinstance(network, ResNet):
        return f"{name}.layer2", f"{name}.layer3"
    if name == "network.0":
        return (name,)
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        try:
            first = next(iter(leaves(output)), None)
        except (TypeError, ValueError):  # what is no tree of tensors cannot be seen
            return
        if first is not None and first.ndim in (3, 4) and first[0].numel() > first.shape[1]:
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda _m, _i, y, name=name: look(name, y))
        for name, module in model.named_modules()
    ]
    try:
        check_takes(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(
            "name a submodule whose outputs the weights of lambda-equitune see, after --features; "
            f"the model has {', '.join([name for name, _ in model.named_modules() if name][:30])}"
        )
    return (found[-1],)


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
            f"pytorch_resnet_cifar10: {str(error).partition('. ')[0].splitlines()[0]}"
        ) from error
    network = ResNet(6 * blocks + 2, outputs)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} is no ResNet for CIFAR: {str(error).splitlines()[1]}") from error
    return Classifier(network, CIFAR10 if outputs == 10 else ())


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
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        looks = ImageProcessingMixin.get_image_processor_dict(source)[0]
        auto: Any = transformers.AutoModelForImageClassification
        if config.model_type == "clip":
            auto = transformers.AutoModel
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, loaded = auto.from_pretrained(
            source, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError, json.JSONDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        if (Path(source) / "config.json").is_file():
            raise ValueError(
                f"{source} is no whole folder of an image classifier or a CLIP, with its weights, "
                f"preprocessor_config.json and, of a CLIP, tokenizer: {reason}"
            ) from error
        raise FileNotFoundError(
            f"{source} is no file and no model's folder here, and not to be had from Hugging "
            f"Face's hub: {reason}"
        ) from error
    if missing := loaded["missing_keys"]:
        raise ValueError(
            f"{source} was not trained as an image classifier or a CLIP: it lacks the weights "
            f"{', '.join(sorted(missing)[:3])}"
        )
    model = model.float().eval()
    vision = getattr(config, "vision_config", config)
    colours = _colours(source, looks, getattr(vision, "num_channels", 3))
    side = _side(looks)
    if config.model_type == "clip":
        pair = clip.from_hugging_face(model, tokenizer, *colours)
        pair.side = side
        return pair
    places = range(config.num_labels)
    if set(config.id2label) != set(places):
        raise ValueError(f"the id2label of {source} does not name its outputs 0 to {places[-1]}")
    names = [config.id2label[place] for place in places]
    unnamed = all(name.startswith("LABEL_") for name in names)
    classifier = Classifier(model, () if unnamed else names, *colours)
    classifier.side = side
    return classifier


def _side(looks: dict[str, Any]) -> int | None:
    """The pixels of the shorter side to which a model's preprocessor brings images, if it says."""
    name = "crop_size" if looks.get("do_center_crop") and looks.get("crop_size") else "size"
    size = looks.get(name) if looks.get("do_resize", True) or name == "crop_size" else None
    sides = size.values() if isinstance(size, dict) else [size]
    return min((side for side in sides if isinstance(side, int)), default=None)


def _check_side(model: Classifier | Pair, images: Images) -> None:
    if model.side is not None and min(images.shape[1:]) != model.side:
        warnings.warn(
            f"the model has learned images whose shorter side has {model.side} pixels, these have "
            f"{min(images.shape[1:])}: --size {model.side} makes them so",
            stacklevel=3,
        )


def _colours(
    source: str, looks: dict[str, Any], channels: int
) -> tuple[Sequence[float], Sequence[float]]:
    """By what images with values from 0 to 1 are normalised, as a model's preprocessor says."""
    rescaled = looks.get("do_rescale", True) and abs(looks.get("rescale_factor", 1 / 255) - 1 / 255)
    odd = [name for name in ("do_flip_channel_order", "rescale_offset") if looks.get(name)]
    if odd or rescaled is False or rescaled > 1e-6:
        raise ValueError(
            f"{source} prepares images by {', '.join(odd) or 'another rescaling than by 1/255'}, "
            "which is not done here; make a Classifier of a module that does it"
        )
    if not looks.get("do_normalize", True):
        return (0.0,) * channels, (1.0,) * channels
    numbers = []
    for name in ("image_mean", "image_std"):
        if looks.get(name) is None:
            raise ValueError(
                f"the preprocessor_config.json of {source} has no {name}; save the model's own "
                "image processor there, which says by what images are normalised"
            )
        number = looks[name]
        numbers.append([number] * channels if isinstance(number, int | float) else number)
    return numbers[0], numbers[1]


def _plain(name: str) -> str:
    return name.lower().replace("_", " ")
