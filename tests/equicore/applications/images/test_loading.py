"""Classifiers from files, folders and the hub, and what does not fit the images."""

import json
import socket
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from equicore.applications.images import clip, loading, networks, training
from equicore.applications.images.data import Images

SHARED = Path(__file__).resolve().parents[5] / "shared"


@pytest.fixture
def colours():
    """Images of three classes, 32 x 32."""
    pixels = torch.randint(256, (9, 3, 32, 32), dtype=torch.uint8)
    return Images(pixels, torch.arange(9) % 3, ("ant", "bee", "cow"))


def save_processor(folder):
    content = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


@pytest.fixture
def resnet(tmp_path):
    """A folder of Hugging Face with a small ResNet; its classes are in another order."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        id2label={0: "cow", 1: "ant", 2: "bee"}, label2id={"cow": 0, "ant": 1, "bee": 2},
    )  # fmt: skip
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "resnet")
    save_processor(tmp_path / "resnet")
    return tmp_path / "resnet", model


def test_a_classifier_of_hugging_face(resnet, colours):
    folder, original = resnet
    model = loading.load(folder, colours)
    images = colours.inputs()
    normal = (images - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.2
    with torch.no_grad():
        expected = original(normal).logits[:, [1, 2, 0]]  # in the order of the images' classes
        torch.testing.assert_close(model(images), expected)
    assert loading.features_of(model, colours) == ("network.resnet",)


def test_images_of_another_size_than_those_learned_are_warned_of(resnet, colours):
    folder, _ = resnet
    processor = folder / "preprocessor_config.json"
    looks = json.loads(processor.read_text())
    for size, side in (
        ({"size": {"shortest_edge": 64}}, 64),
        ({"size": 256, "crop_size": {"height": 48, "width": 50}, "do_center_crop": True}, 48),
    ):
        processor.write_text(json.dumps(looks | size))
        with pytest.warns(UserWarning, match=f"has {side} pixels, these have 32: --size {side}"):
            loading.load(folder, colours)
    for size in ({"size": {"shortest_edge": 32}}, {"size": 64, "do_resize": False}):
        processor.write_text(json.dumps(looks | size))
        loading.load(folder, colours)  # a warning would fail


def test_features_are_among_what_is_a_tree_of_tensors(colours):
    class Sized(torch.nn.Module):
        def forward(self, x):
            return x, {"rows"}

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Conv2d(3, 2, 3)
            self.sized = Sized()

        def forward(self, images):
            return self.sized(self.first(images))[0].flatten(2).mean(2)

    assert loading.features_of(networks.Classifier(Whole()), colours) == ("network.first",)


@pytest.fixture
def small_clip(tmp_path):
    """A folder of Hugging Face with a small CLIPModel and a tokenizer of words."""
    words = clip.vocabulary(["ant", "bee", "cow"])
    known = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words, "."])}
    raw = Tokenizer(models.WordLevel(known, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "projection_dim": 12}  # fmt: skip
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = transformers.CLIPConfig(
        text_config={**size, **special, "vocab_size": len(known), "max_position_embeddings": 40},
        vision_config={**size, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    save_processor(tmp_path / "clip")
    return tmp_path / "clip", model, tokenizer


def test_a_clip_of_hugging_face_classifies_by_text(small_clip, colours):
    folder, original, tokenizer = small_clip
    model = loading.load(folder, colours)
    images = colours.inputs()
    normal = (images - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.2
    with torch.no_grad():
        texts = []
        for name in colours.classes:
            captions = [template.format(name) for template in clip.TEMPLATES]
            tokens = tokenizer(captions, padding=True, return_tensors="pt")
            features = original.get_text_features(**tokens).pooler_output
            mean = (features / features.norm(dim=-1, keepdim=True)).mean(0)
            texts.append(mean / mean.norm())
        seen = original.get_image_features(pixel_values=normal).pooler_output
        seen = seen / seen.norm(dim=-1, keepdim=True)
        expected = original.logit_scale.exp() * seen @ torch.stack(texts).T
        torch.testing.assert_close(model(images), expected)
    assert loading.features_of(model, colours) == ("network.0",)
    assert len(clip.TEMPLATES) == len(set(clip.TEMPLATES)) == 80
    with torch.no_grad():
        torch.testing.assert_close(
            loading.without_classes(folder, colours)(images), model.network[0](normal)
        )


@pytest.mark.slow
def test_a_hub_id_without_a_network(monkeypatch, colours):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    message = "is no file and no model's folder here, and not to be had from Hugging Face's hub"
    with pytest.raises(FileNotFoundError, match=message):
        loading.load("nobody/nothing", colours)


def test_what_is_no_model(tmp_path, colours):
    with pytest.raises(FileNotFoundError, match="there is no file .*nothing.th"):
        loading.load(tmp_path / "nothing.th", colours)
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "other.th")
    with pytest.raises(ValueError, match="other.th holds no weights of a ResNet for CIFAR"):
        loading.load(tmp_path / "other.th", colours)
    torch.save({"state_dict": torch.nn.Linear}, tmp_path / "code.th")
    with pytest.raises(ValueError, match="code.th holds no weights"):
        loading.load(tmp_path / "code.th", colours)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="no model's folder here"):
        loading.load(tmp_path / "folder", colours)


def test_published_weights(tmp_path, colours):
    network = networks.ResNet(20, 3).eval()
    weights = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": weights, "best_prec1": 91.7}, tmp_path / "resnet20.th")
    with pytest.warns(UserWarning, match="names no classes"):
        model = loading.load(tmp_path / "resnet20.th", colours)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in networks.IMAGENET)
    with torch.no_grad():
        expected = network((colours.inputs() - mean) / std)
        torch.testing.assert_close(model(colours.inputs()), expected)
    assert loading.features_of(model, colours) == ("network.layer2", "network.layer3")


@pytest.mark.parametrize(("depth", "name", "count"), [(20, "12fca82f", 91.7), (56, "4bfd9763", 0)])
def test_the_published_networks_themselves(depth, name, count):
    file = SHARED / "models" / f"resnet{depth}-{name}.th"
    if not file.is_file():
        pytest.skip("shared/models is not here")
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    model = loading.load(file, Images(pixels, torch.zeros(1).long(), loading.CIFAR10))
    blocks = sum(isinstance(module, networks.Block) for module in model.modules())
    assert 2 * blocks + 2 == depth


def test_images_that_do_not_fit(file, digits, colours):
    train = digits[0]
    with pytest.raises(ValueError, match="images have 3 channels and the model takes 1; --mode L"):
        loading.load(file, colours)
    fewer = Images(train.pixels, train.labels, tuple("01234567"))
    with pytest.raises(ValueError, match="tells 10 classes apart and the images have 8; --probe"):
        loading.load(file, fewer)
    renamed = Images(train.pixels, train.labels, tuple("abcdefghij"))
    with pytest.raises(ValueError, match="classes are others than the images', such as '0'"):
        loading.load(file, renamed)
    shuffled = Images(train.pixels[:5], train.labels[:5], tuple("1032546789"))
    with torch.no_grad():
        swapped, plain = loading.load(file, shuffled), loading.load(file, train)
        expected = plain(shuffled.inputs())[:, [1, 0, 3, 2, 5, 4, 6, 7, 8, 9]]
        torch.testing.assert_close(swapped(shuffled.inputs()), expected)


def test_images_of_a_size_that_a_model_refuses(small_clip, colours):
    small = Images(colours.pixels[..., :16, :16], colours.labels, colours.classes)
    with pytest.raises(
        ValueError, match=r"does not take images of 16 x 16 pixels \(--size resizes"
    ):
        loading.load(small_clip[0], small)


def test_a_pair_that_is_trained_here(tmp_path, colours):
    recipe = training.Recipe(2, 1e-2, batch_size=8, padding=1, adam=True)
    words = clip.vocabulary(colours.classes)
    pair = clip.small_pair(networks.small(clip.WIDTH, 3), words, *networks.IMAGENET)
    before = pair.texts(colours.classes)
    loss = clip.contrastive(pair, colours.classes)
    training.train(pair, colours, loss, recipe, 0, tmp_path / "resume.safetensors", {})
    loading.write(tmp_path / "pair.safetensors", pair, "small", {})
    model = loading.load(tmp_path / "pair.safetensors", colours)
    with torch.no_grad():
        texts = pair.texts(colours.classes)
        assert not torch.allclose(before, texts)
        expected = pair.scale.exp() * pair(colours.inputs()) @ texts.T
        torch.testing.assert_close(model(colours.inputs()), expected)


class Names(torch.nn.Module):
    def forward(self, texts):
        return torch.eye(2)[[int("bee" in text) for text in texts]]


def test_all_captions_of_a_class_are_right_answers():
    """The loss is smallest where images are as similar to all captions of their class."""
    words = clip.vocabulary(["ant", "bee"])
    pair = clip.small_pair(torch.nn.Flatten(), words)
    loss = clip.contrastive(pair, ("ant", "bee"))
    labels = torch.tensor([0, 0, 1, 1])
    pair.text = Names()
    right = loss(torch.eye(2)[labels], labels)
    assert right < loss(torch.eye(2)[1 - labels], labels)
    pair.scale.data.fill_(10.0)
    torch.testing.assert_close(
        loss(torch.eye(2)[labels], labels), torch.tensor(2.0).log(), rtol=1e-3, atol=1e-3
    )


def test_a_probe_replaces_the_last_layer(file, digits, tmp_path):
    train, test = digits
    parity = [Images(i.pixels, i.labels % 2, ("even", "odd")) for i in (train, test)]
    model = training.probed(loading.without_classes(file, digits[0]), parity[0], tmp_path)
    assert training.accuracy(model, parity[1]) > 0.8
    again = training.probed(loading.without_classes(file, digits[0]), parity[0], tmp_path)
    assert torch.equal(again(test.inputs()), model(test.inputs()))
    original = loading.load(file, test)
    assert torch.equal(original.network[0][0].weight, model.network[0][0].weight)
    original.reorder(list(range(9, -1, -1)), [*"9876543210"])
    assert training.probed(original, parity[0], tmp_path).places is None
    flat = networks.Classifier(torch.nn.Flatten(), (), [0.5], [0.5])
    with pytest.raises(ValueError, match=r"no linear layer .*\(it has none\)"):
        training.probed(flat, parity[0], tmp_path)


class Named(torch.nn.Module):
    """Gives a dict."""

    def forward(self, images):
        return {"logits": images.flatten(1)}


class TwoHeads(torch.nn.Module):
    """As a DeiT with a teacher: logits are a mean."""

    def __init__(self):
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(64, 2) for _ in range(2))

    def forward(self, images):
        return sum(head(images.flatten(1)) for head in self.heads) / 2


class HeadFirst(torch.nn.Module):
    """Its head stands before its body."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(10, 10)
        self.body = torch.nn.Linear(64, 10)

    def forward(self, images):
        return self.head(self.body(images.flatten(1)).relu())


def test_a_probe_is_put_where_the_logits_come_from(digits, tmp_path):
    train, _ = digits
    found = training.probed(networks.Classifier(HeadFirst(), (), [0.5], [0.5]), train, tmp_path)
    assert isinstance(found.network.head, torch.nn.Sequential)
    with pytest.raises(ValueError, match=r"no linear layer .*\(network.heads.0, network.heads.1\)"):
        training.probed(networks.Classifier(TwoHeads(), (), [0.5], [0.5]), train, tmp_path)


def test_accuracy_is_of_logits_of_the_classes(digits):
    _, test = digits

    class Gives(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = logits

        def forward(self, images):
            return self.logits.expand(len(images), *self.logits.shape[1:])

    right = torch.eye(10)[test.labels[:1]]
    assert training.accuracy(Gives(right), test[slice(0, 1)]) == 1
    for logits in (torch.zeros(1, 10, 1, 1), torch.zeros(1, 3), torch.full((1, 10), torch.nan)):
        with pytest.raises(ValueError, match=r"logits are finite and of shape \(256, 10\)"):
            training.accuracy(Gives(logits), test)
    with pytest.raises(ValueError, match="no images"):
        training.accuracy(Gives(torch.eye(10)[:1]), test[slice(0, 0)])
    for network, found in ((Named(), "dict"), (torch.nn.Identity(), r"\(2, 1, 8, 8\)")):
        with pytest.raises(ValueError, match=rf"gives logits \(B, classes\); got {found}"):
            networks.Classifier(network, (), [0.5], [0.5])(test.inputs()[:2])


def test_normalisation_of_hugging_face(resnet, colours):
    folder, original = resnet
    processor = folder / "preprocessor_config.json"
    processor.write_text(json.dumps({"do_normalize": False, "image_mean": None}))
    with torch.no_grad():
        expected = original(colours.inputs()).logits[:, [1, 2, 0]]
        torch.testing.assert_close(loading.load(folder, colours)(colours.inputs()), expected)
    for content, message in (
        ({"do_flip_channel_order": True}, "by do_flip_channel_order, which is not done here"),
        ({"do_rescale": False}, "another rescaling than by 1/255"),
        ({"rescale_factor": 1 / 127.5}, "another rescaling than by 1/255"),
        ({"image_std": [1, 1, 1]}, "has no image_mean"),
    ):
        processor.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            loading.load(folder, colours)
    processor.write_text(json.dumps({"image_mean": 0.5, "image_std": 0.5}))
    assert loading.load(folder, colours).mean.flatten().tolist() == [0.5] * 3
    processor.unlink()
    with pytest.raises(ValueError, match="is no whole folder of an image classifier or a CLIP"):
        loading.load(folder, colours)


def test_a_checkpoint_without_a_classifier_is_refused(resnet, colours):
    folder, original = resnet
    original.resnet.save_pretrained(folder)
    with pytest.raises(ValueError, match="not trained as an image classifier .* lacks the weights"):
        loading.load(folder, colours)


def test_orders_compose(file, digits):
    model, test = loading.load(file, digits[1]), digits[1]
    before = training.accuracy(model, test)
    for _ in range(2):
        turned = test.classes[::-1]
        test = Images(test.pixels, 9 - test.labels, turned)
        model = loading.checked(model, test)
        assert training.accuracy(model, test) == before


def test_accuracy_is_that_of_eval_mode_and_changes_nothing(digits):
    model = networks.Classifier(networks.ResNet(20, 10, 1), (), [0.5], [0.5])
    images = digits[1][slice(0, 40)]
    expected = training.accuracy(model.eval(), images)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert training.accuracy(model.train(), images) == expected
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_probe_of_a_clip(small_clip, colours, tmp_path):
    found = loading.without_classes(small_clip[0], colours)
    model = training.probed(found, colours, tmp_path)
    assert model(colours.inputs()).shape == (9, 3)


def test_half_precision_is_computed_in_float32(resnet, colours):
    folder, original = resnet
    original.half().save_pretrained(folder)
    assert loading.load(folder, colours)(colours.inputs()).dtype == torch.float32


def test_a_model_without_names_is_warned_of(resnet, colours):
    folder, _ = resnet
    config = json.loads((folder / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (folder / "config.json").write_text(json.dumps({**config, "num_labels": 3}))
    with pytest.warns(UserWarning, match="names no classes: output 0 is taken for 'ant'"):
        loading.load(folder, colours)


def test_words_that_a_small_clip_does_not_know():
    pair = clip.small_pair(torch.nn.Flatten(), clip.vocabulary(["ant"]))
    with pytest.raises(ValueError, match="does not know zebra"):
        pair.texts(["ant", "zebra"])
