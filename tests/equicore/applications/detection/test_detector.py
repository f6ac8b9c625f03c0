"""How a group acts on boxes and on head maps, and what becomes a set of boxes."""

import pytest
import torch
from transformers import DetrConfig, DetrForObjectDetection, YolosConfig, YolosForObjectDetection

from equicore import assert_equivariant, check_representation, image_dihedral, image_shifts
from equicore.applications.detection import detector as d
from equicore.boxes import detections_rep, listed

D4 = image_dihedral()
SIZE = (96, 96)


def random_boxes(count, many, dtype=torch.float32, seed=0):
    """Boxes that are solid, with labels of three classes, the last of each image absent."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, many, 2, generator=generator, dtype=dtype) * 60
    sides = 5 + torch.rand(count, many, 2, generator=generator, dtype=dtype) * 30
    labels = torch.randint(3, (count, many), generator=generator)
    labels[:, -1] = -1
    return torch.cat([low, low + sides], -1), labels


def random_head(dtype=torch.float32, batch=2):
    generator = torch.Generator().manual_seed(1)
    cells = torch.rand(batch, 8, 6, 6, generator=generator, dtype=dtype)
    cells[:, 1:3] -= 0.5
    return d.weighed(cells)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_group_laws(dtype, batch):
    boxes, labels = random_boxes(batch, 5, dtype)
    scores = torch.rand(batch, 5, dtype=dtype)
    found = {"boxes": boxes, "scores": scores, "labels": labels}
    check_representation(detections_rep(D4, SIZE), found)
    for grid in (D4, image_shifts(6, 6, 2)):
        check_representation(d.head_rep(grid, 3), random_head(dtype, batch))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_decoding_commutes_with_turns_and_mirrors(dtype, tolerance, apart):
    head, rep, of_maps = random_head(dtype), detections_rep(D4, SIZE), d.head_rep(D4, 3)
    for g in range(8):
        turned = d.of_head_map(of_maps.act(g, head), SIZE)
        assert apart(turned, rep.act(g, d.of_head_map(head, SIZE)), 96) < tolerance


def test_what_is_learned_turns_with_the_boxes():
    boxes, labels = random_boxes(3, 6)
    head = d.to_head_map(boxes, labels, 3, 96, 12)
    assert head.shape == (3, 8, 12, 12)
    for g in range(8):
        moved = detections_rep(D4, SIZE).parts[0].act(g, boxes)
        expected = d.head_rep(D4, 3).act(g, head)
        torch.testing.assert_close(d.to_head_map(moved, labels, 3, 96, 12), expected)


def test_what_is_learned_is_what_is_decoded():
    boxes, labels = random_boxes(1, 4)
    found = d.of_head_map(d.to_head_map(boxes, labels, 3, 96, 24), SIZE)
    shown = found["scores"][0] == 1
    assert 0 < shown.sum() <= 12  # four cells for each of three boxes, if they are apart
    assert set(found["scores"][0].tolist()) == {0.0, 1.0}
    pairs = zip(found["boxes"][0][shown], found["labels"][0][shown], strict=True)
    for box, label in pairs:
        near = (boxes[0] - box).abs().amax(-1)
        assert near.min() < 1e-4 and labels[0, near.argmin()] == label


def test_the_mean_of_maps_is_weighed_by_how_sure_they_are():
    sure, unsure = torch.zeros(1, 6, 1, 1), torch.zeros(1, 6, 1, 1)
    sure[0, :, 0, 0] = torch.tensor([0.9, 0.3, 0.1, 0.5, 0.5, 1.0])
    unsure[0, 0] = 1e-4
    mean = d.unweighed((d.weighed(sure) + d.weighed(unsure)) / 2)
    torch.testing.assert_close(mean[0, 1:3, 0, 0], torch.tensor([0.3, 0.1]), atol=1e-3, rtol=0)


def test_torchvisions_outputs_are_padded():
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
    one = {"boxes": torch.ones(1, 4), "scores": torch.ones(1), "labels": torch.ones(1).long()}

    class Torchvision(torch.nn.Module):
        def forward(self, images):
            return [empty, one][-len(images) :] if len(images) > 1 else [empty]

    model = d.Detector(Torchvision(), d.of_torchvision, ["background", "cat"])
    found = model(torch.zeros(2, 3, 8, 8))
    assert found["labels"].tolist() == [[-1], [1]] and found["scores"].tolist() == [[0], [1]]
    assert [len(image["boxes"]) for image in listed(found)] == [0, 1]
    assert model(torch.zeros(1, 3, 8, 8))["boxes"].shape == (1, 0, 4)


def yolos():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"intermediate_size": 16, "image_size": [32, 32], "patch_size": 16}
    return YolosForObjectDetection(
        YolosConfig(**small, **sizes, num_detection_tokens=5, num_labels=3)
    )


def detr():
    backbone = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8],
                "depths": [1, 1], "out_features": ["stage2"]}  # fmt: skip
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    return DetrForObjectDetection(
        DetrConfig(backbone_config=backbone, use_timm_backbone=False, backbone=None,
                   use_pretrained_backbone=False, num_queries=5, num_labels=3, **sizes, **heads)
    )  # fmt: skip


@pytest.mark.parametrize("make", [yolos, detr])
def test_models_of_transformers(make):
    torch.manual_seed(0)
    model = d.Detector(make().eval(), d.of_queries, ["a", "b", "c"]).eval()
    with torch.no_grad():
        found = model(torch.rand(2, 3, 32, 64))
    assert found["boxes"].shape == (2, 5, 4) and found["scores"].shape == (2, 5)
    assert (found["boxes"][..., 2:] >= found["boxes"][..., :2]).all()
    assert (found["boxes"] <= torch.tensor([64, 32, 64, 32])).all()
    assert 0 <= found["labels"].min() and found["labels"].max() < 3


def test_equitune_of_head_maps_is_equivariant(small):
    from equicore import equitune

    rep = d.head_rep(D4, 3)
    model = equitune(small.network, D4, rep)
    assert_equivariant(model, D4, rep, torch.rand(2, 3, 64, 64))
    exact = equitune(small.network.double(), D4, rep)
    assert_equivariant(exact, D4, rep, torch.rand(1, 3, 64, 64).double(), tolerance=1e-12)
    small.network.float()


def test_what_does_not_fit_is_refused(small):
    with pytest.raises(ValueError, match=r"images have the shape \(B, 3, rows, columns\)"):
        small(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match="labels of shape"):
        d.Detector(small.network, d.of_head_map, ["house"])(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="quarter turns"):
        detections_rep(D4, (96, 64))
    with pytest.raises(ValueError, match="square"):
        d.head_rep(D4, 3).orbit(random_head()[..., :4])
