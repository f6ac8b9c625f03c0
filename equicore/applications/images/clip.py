"""CLIP and its like: images and texts in one space, and classification by text alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from equicore.applications.images.networks import IMAGENET, Classifier

TEMPLATES = tuple(Path(__file__).with_name("templates.txt").read_text().splitlines())
"""The 80 captions of Radford et al. (2021), each with {} in place of a class's name."""
LONGEST = 24  # words in a caption
WIDTH = 128  # of the features of pairs that are trained here


class Pair(nn.Module):
    """An encoder of images and one of texts, trained so that what belongs together is similar.

    Args:
        image: Maps normalised images (B, channels, rows, columns) to features (B, D).
        text: Maps a list of N texts to features (N, D).
        scale: The logarithm of what similarities are multiplied by.
        mean: Of each channel of the images, subtracted first.
        std: Of each channel, divided by.
    """

    mean: Tensor
    std: Tensor
    side: int | None = None
    """Pixels of the shorter side of what it has learned, where its preprocessor says so."""

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        scale: float | Tensor = 2.0,
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.scale = nn.Parameter(torch.as_tensor(scale).detach().clone())
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of images with values from 0 to 1, of length 1."""
        return functional.normalize(self.image((images - self.mean) / self.std), dim=-1)

    @torch.no_grad()
    def texts(self, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
        """Features (classes, D) of length 1: the mean over the captions of each class."""
        features = []
        for name in classes:
            captions = functional.normalize(self.text(captioned(name, templates)), dim=-1)
            features.append(functional.normalize(captions.mean(0), dim=-1))
        return torch.stack(features)

    def classifier(
        self, classes: Sequence[str], templates: Sequence[str] = TEMPLATES
    ) -> Classifier:
        """Classifies by text alone; the features of the texts are computed now, and kept.

        Its submodule ``network.0`` gives the image's features, as `image` does.
        """
        training = self.training
        self.eval()
        head = Similarity(self.texts(classes, templates), float(self.scale.detach().exp()))
        self.train(training)
        network = nn.Sequential(self.image, head)
        colours = self.mean.flatten().tolist(), self.std.flatten().tolist()
        return Classifier(network, classes, *colours).eval()


class Similarity(nn.Module):
    """Logits (B, classes): how similar features of images (B, D) are to those of texts."""

    texts: Tensor
    scale: Tensor

    def __init__(self, texts: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("texts", texts)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        """The cosines, times the scale."""
        return self.scale * functional.normalize(features, dim=-1) @ self.texts.T


def captioned(name: str, templates: Sequence[str]) -> list[str]:
    """Captions with a class's name, of which underscores are spaces."""
    return [template.format(name.replace("_", " ")) for template in templates]


class Words(nn.Module):
    """A small transformer over the words of a text.

    Args:
        words: All that it knows.
        outputs: How many features.
        width: Of its layers.
        layers: How many.
    """

    def __init__(
        self, words: Sequence[str], outputs: int, width: int = 128, layers: int = 2
    ) -> None:
        super().__init__()
        self.places = {word: place for place, word in enumerate(words, start=1)}
        self.embedding = nn.Embedding(len(words) + 1, width, padding_idx=0)
        self.position = nn.Parameter(0.02 * torch.randn(LONGEST, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.linear = nn.Linear(width, outputs)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Features (N, outputs): the mean over the words of each text.

        Raises:
            ValueError: If a word is not known.
        """
        if unknown := {word for text in texts for word in split(text)} - set(self.places):
            raise ValueError(
                f"this small text encoder knows the words of its training alone; it does not know "
                f"{', '.join(sorted(unknown)[:10])}"
            )
        known = [[self.places[word] for word in split(text)] for text in texts]
        rows = [torch.tensor(places[:LONGEST]) for places in known]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.position.device)
        real = (ids > 0).unsqueeze(-1)
        embedded = self.embedding(ids) + self.position[: ids.shape[1]]
        encoded = self.encoder(embedded, src_key_padding_mask=~real.squeeze(-1))
        return self.linear((encoded * real).sum(1) / real.sum(1))


def split(text: str) -> list[str]:
    """Its words, in lower case; those that a hyphen joins are one."""
    return text.lower().replace(".", " ").split()


def small_pair(image: nn.Module, words: Sequence[str], *colours: Sequence[float]) -> Pair:
    """A pair to be trained here: a network with `WIDTH` outputs, and a transformer over words."""
    return Pair(image, Words(words, WIDTH), 2.0, *colours)


def vocabulary(classes: Sequence[str]) -> list[str]:
    """All words of their captions."""
    captions = [caption for name in classes for caption in captioned(name, TEMPLATES)]
    return sorted({word for caption in captions for word in split(caption)})


def contrastive(pair: Pair, classes: Sequence[str]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of images' features (B, D) and labels (B,): each with a caption drawn at random.

    As captions of one class describe each other's images, too, all of them are right answers: the
    target is uniform over them (Khosla et al., 2020).
    """

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        drawn = torch.randint(len(TEMPLATES), (len(labels),)).tolist()
        captions = [
            captioned(classes[label], [TEMPLATES[place]])[0]
            for label, place in zip(labels.tolist(), drawn, strict=True)
        ]
        texts = functional.normalize(pair.text(captions), dim=-1)
        logits = pair.scale.exp().clamp(max=100) * features @ texts.T
        same = (labels[:, None] == labels).to(logits.dtype)
        target = same / same.sum(1)
        of_images = functional.cross_entropy(logits, target)
        return (of_images + functional.cross_entropy(logits.T, target)) / 2

    return loss


class _Features(nn.Module):
    """The image features of a model of Hugging Face."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        output = self.model.get_image_features(pixel_values=images)
        return output if isinstance(output, Tensor) else output.pooler_output


class _Text(nn.Module):
    """The text features of a model of Hugging Face."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    def forward(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        output = self.model.get_text_features(**tokens.to(self.model.device))
        return output if isinstance(output, Tensor) else output.pooler_output


def from_hugging_face(model: Any, tokenizer: Any, mean: Any, std: Any) -> Pair:
    """The pair of a `CLIPModel`, or another with ``get_image_features`` and text features."""
    return Pair(_Features(model), _Text(model, tokenizer), model.logit_scale, mean, std)
