"""Test-time views against crops by hand, and predictions over them against a loop."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from transformers import CLIPImageProcessor, ViTImageProcessor

from ft_focalsam.data import TransformedImages, eval_transform
from ft_focalsam.evaluation import VIEWS, Predictions, image_ids, predict, register_views, view_transform

CLIP = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
STRETCHED = ViTImageProcessor(size={"height": 56, "width": 56})


def photograph(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)).resize((width, height))


def by_hand(image, resize, boxes):
    """Resize, cut (left, top) corners of 56 x 56, normalise as CLIP does."""
    pixels = v2.functional.pil_to_tensor(image)
    pixels = v2.functional.resize(pixels, resize, interpolation=InterpolationMode.BICUBIC, antialias=True)
    crops = [pixels[:, top : top + 56, left : left + 56] for left, top in boxes]
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP.image_mean, CLIP.image_std))
    return torch.stack([(crop.float() / 255 - mean) / std for crop in crops])


# 112 x 84 pixels; the shortest edge becomes 56 and 8 (8/7 of it) or 6 (24 of 224) more, which makes the image
# 85 x 64 or 82 x 62.
CORNERS = {
    "zoomed_center": (64, [(14, 4)]),
    "five_crop": (64, [(0, 0), (29, 0), (0, 8), (29, 8), (14, 4)]),
    "expanded_crops": (62, [(0, 0), (26, 0), (0, 6), (26, 6), (13, 3)]),
}


@pytest.mark.parametrize("views", CORNERS)
def test_crops_equal_those_by_hand(views):
    image = photograph(112, 84)
    torch.testing.assert_close(view_transform(CLIP, views)(image), by_hand(image, *CORNERS[views]), atol=1e-5, rtol=0)


def test_ten_crops_are_five_of_the_image_and_five_of_its_mirror_image():
    image = photograph(112, 84)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = [by_hand(each, *CORNERS["five_crop"]) for each in (image, mirrored)]
    torch.testing.assert_close(view_transform(CLIP, "ten_crop")(image), torch.cat(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("processor", [CLIP, STRETCHED], ids=["shortest_edge", "stretched"])
def test_center_is_the_evaluation_view_and_flip_adds_its_mirror_image(processor):
    image = photograph(112, 84)
    plain = eval_transform(processor)(image)
    torch.testing.assert_close(view_transform(processor, "center")(image), plain[None], atol=0, rtol=0)
    torch.testing.assert_close(
        view_transform(processor, "flip")(image), torch.stack([plain, plain.flip(2)]), atol=0, rtol=0
    )


def test_expanded_crops_never_lay_the_grid_of_patches_on_itself():
    """6 pixels of 56 are a multiple of patches of 3 and of 6: half a patch is added."""
    for patch_size, corner in ((16, 6), (6, 9), (3, 7)):
        views = view_transform(STRETCHED, "expanded_crops", patch_size=patch_size)(photograph(112, 84))
        pixels = v2.functional.resize(
            v2.functional.pil_to_tensor(photograph(112, 84)), (56 + corner, 56 + corner),
            interpolation=InterpolationMode.BILINEAR, antialias=True,
        )  # fmt: skip
        expected = (pixels[:, corner:, corner:].float() / 255 - 0.5) / 0.5
        torch.testing.assert_close(views[3], expected, atol=1e-5, rtol=0)
        assert corner % patch_size


class Net(torch.nn.Module):
    """Logits that depend on where in the image something is."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.AvgPool2d(14), torch.nn.Flatten(), torch.nn.Linear(48, 7))

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.layer(pixel_values))


@pytest.fixture(scope="module")
def photographs():
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.ClassLabel(num_classes=7)})
    columns = {"image": [photograph(112, 84, seed) for seed in range(11)], "labels": [i % 7 for i in range(11)]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_predictions_average_over_views_as_a_loop_does(photographs, average):
    torch.manual_seed(0)
    model, transform = Net(), view_transform(CLIP, "five_crop")
    got = predict(model, TransformedImages(photographs, transform), batch_size=4, average=average)
    for row, logits in enumerate(got):
        of_views = [model(view[None]).logits[0].detach().double() for view in transform(photographs[row]["image"])]
        if average == "probabilities":
            expected = torch.stack([each.softmax(dim=0) for each in of_views]).mean(dim=0).log()
        else:
            expected = sum(of_views) / 5
        np.testing.assert_allclose(logits, expected, atol=2e-6)
    plain = predict(model, TransformedImages(photographs, eval_transform(CLIP)), batch_size=4, average=average)
    assert np.abs(plain - got).max() > 1e-3


def test_views_of_ones_own_are_one_function(photographs):
    @register_views("upside_down")
    def upside_down(preprocessing, patch_size):
        return [*preprocessing.resize_and_crop(), lambda image: (image, image.flip(1))]

    try:
        views = view_transform(CLIP, "upside_down")(photographs[0]["image"])
        torch.testing.assert_close(views[1], views[0].flip(1))
    finally:
        del VIEWS["upside_down"]
    with pytest.raises(ValueError, match="Unknown kind of views 'upside_down'; choose one of center, flip"):
        view_transform(CLIP, "upside_down")
    with pytest.raises(ValueError, match="Unknown average 'mode'; choose one of logits, probabilities"):
        predict(Net(), TransformedImages(photographs, view_transform(CLIP)), average="mode")


def test_predictions_read_back_what_was_saved(tmp_path, photographs):
    logits = np.random.default_rng(0).normal(size=(11, 7)) * 20
    names = ["Größe <b>", "a b", *map(str, range(5))]
    options = {"ids": image_ids(photographs), "class_names": names, "dataset": "ä/b", "model": "m"}
    written = Predictions.of_logits(logits, photographs["labels"], **options)
    written.save(tmp_path / "new" / "p.safetensors")
    read = Predictions.load(tmp_path / "new" / "p.safetensors")
    np.testing.assert_array_equal(read.log_probabilities, written.log_probabilities)
    np.testing.assert_array_equal(read.labels, np.arange(11) % 7)
    assert (read.ids, read.class_names, read.dataset, read.model) == ([str(i) for i in range(11)], names, "ä/b", "m")
    np.testing.assert_allclose(np.exp(read.log_probabilities).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(read.outcomes().predicted, logits.argmax(axis=1))
    with pytest.raises(ValueError, match="class names in 'there' are not those"):
        Predictions.of_logits(
            logits, photographs["labels"], **{**options, "class_names": names[::-1]}
        ).check_same_images(written, source="there")


def test_files_that_are_no_predictions_are_refused(tmp_path):
    (tmp_path / "p.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="no safetensors file"):
        Predictions.load(tmp_path / "p.safetensors")
    with pytest.raises(FileNotFoundError, match="no predictions at"):
        Predictions.load(tmp_path / "q.safetensors")
    with pytest.raises(ValueError, match=r"shape \(2, 3\) do not fit 2 labels, 1 ids and 3 class names"):
        Predictions.of_logits(np.zeros((2, 3)), [0, 1], ids=["a"], class_names=["a", "b", "c"])


def test_ids_are_the_ends_of_paths(tmp_path):
    for name in ("n1", "größer"):
        (tmp_path / "set" / "5" / name).mkdir(parents=True)
        photograph(16, 16).save(tmp_path / "set" / "5" / name / "a b.png")
    folder = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), split="train")
    assert sorted(image_ids(folder)) == ["5/größer/a b.png", "5/n1/a b.png"]
    assert image_ids(folder.select([1])) == [image_ids(folder)[1]]
