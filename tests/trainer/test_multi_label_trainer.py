"""`FocalSAMTrainer` on images of several classes: labels, loss, gradient, metrics, and what is refused."""

import copy
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from sharpness.choices import NaiveUpdate, gradient
from sharpness.models import make_model, relative_error
from sklearn.metrics import average_precision_score
from test_trainer import Recorded, arguments
from torch.utils.data import Dataset

from ft_focalsam import FocalSAMTrainer, class_weights
from ft_focalsam.losses import make_loss

SETS = [[0], [0, 1], [], [0, 2], [1, 3], [0, 1, 2, 3, 4], [0, 4], [2], [0, 1], [0, 3], [0, 2], [1]]
COUNTS = [8, 5, 4, 3, 2]
WEIGHTS = class_weights("focal_sam", COUNTS, {"gamma": 1.5, "lam": 0.7})
MULTI_HOT = np.array([[float(k in own) for k in range(5)] for own in SETS])


class Images(Dataset):
    """Images with rows of 0 and 1."""

    def __init__(self, dtype=torch.float64, rows=MULTI_HOT):
        self.images = torch.randn(len(rows), 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
        self.rows = torch.as_tensor(rows, dtype=torch.float32)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.rows[index]}


def trainer_for(folder, *, model=None, dataset=None, counts=None, **changes):
    settings = {"loss": "distribution_balanced", "max_steps": 1, "per_device_train_batch_size": len(SETS), **changes}
    dataset = Images() if dataset is None else dataset
    model = make_model("vit", "full") if model is None else model
    return FocalSAMTrainer(
        model, arguments(folder, **settings), train_dataset=dataset, eval_dataset=dataset, class_counts=counts
    )


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("loss", ["bce", "asymmetric", "distribution_balanced"])
def test_the_optimizer_gets_the_naive_gradient(loss, accumulation, tmp_path):
    model = make_model("vit", "lora")
    twin = copy.deepcopy(model)
    trainer = trainer_for(
        tmp_path, model=model, loss=loss, gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=len(SETS) // accumulation,
    )  # fmt: skip
    assert trainer.class_counts.tolist() == COUNTS and trainer.num_samples == len(SETS) and trainer.is_multi_label
    recorded = Recorded(model)
    trainer.add_callback(recorded)
    trainer.train()
    per_sample = make_loss(loss, COUNTS, num_samples=len(SETS))
    losses = lambda model, x, y: per_sample(model(pixel_values=x).logits, y)  # noqa: E731
    data = Images()
    expected = NaiveUpdate(twin, "trained", WEIGHTS, 0.1, gradient, losses).two_point(data.images, data.rows)
    assert relative_error(recorded.gradients[0], expected) <= 1e-10


def test_metrics_are_those_of_scikit_learn(tmp_path):
    trainer = trainer_for(tmp_path, many_shot_threshold=4, few_shot_threshold=3)
    found = trainer.evaluate()
    with torch.no_grad():
        logits = trainer.model(pixel_values=Images().images).logits.numpy()
    values = [average_precision_score(MULTI_HOT[:, k], logits[:, k]) for k in range(5)]
    assert found["eval_mAP"] == pytest.approx(np.mean(values), rel=1e-12)
    assert found["eval_many"] == pytest.approx(np.mean(values[:2]), rel=1e-12)
    assert found["eval_medium"] == pytest.approx(np.mean(values[2:4]), rel=1e-12)
    assert found["eval_few"] == pytest.approx(values[4], rel=1e-12)
    assert not {"eval_accuracy", "eval_calibration_error"} & set(found)


def test_batched_metrics_equal_those_of_all_at_once(tmp_path):
    model = make_model("vit", "full")
    found = [
        trainer_for(tmp_path, model=model, per_device_eval_batch_size=5, **options).evaluate()["eval_mAP"]
        for options in ({}, {"batch_eval_metrics": True}, {"eval_do_concat_batches": False})
    ]
    assert found[0] == found[1] == found[2]


def test_the_config_learns_what_the_labels_are(tmp_path):
    model = make_model("vit", "full")
    assert model.config.problem_type is None
    trainer_for(tmp_path, model=model)
    assert model.config.problem_type == "multi_label_classification"
    trainer = trainer_for(tmp_path, model=model, counts=COUNTS)  # which do not say it themselves
    assert trainer.is_multi_label and trainer.num_samples == len(SETS)


@pytest.mark.parametrize("column", ["lists", "rows"])
def test_lists_of_a_hub_column_are_classes_or_rows(column, tmp_path):
    rows = MULTI_HOT.astype(int).tolist()
    dataset = datasets.Dataset.from_dict({"labels": SETS if column == "lists" else rows})
    images = Images().images

    with pytest.raises(ValueError, match="a transform changes labels"):
        trainer_for(tmp_path, dataset=dataset.with_transform(lambda batch: {"labels": [torch.zeros(5)]}))
    trainer = trainer_for(tmp_path, dataset=dataset.with_transform(partial(_rows_of, rows, images)))
    assert trainer.class_counts.tolist() == COUNTS


def _rows_of(rows, images, batch):
    """Items that are found by their label, of which several are alike."""
    found = []
    for label in batch["labels"]:
        row = label if len(label) == 5 and set(label) <= {0, 1} else [int(k in label) for k in range(5)]
        found.append(torch.tensor(row).float())
    return {"pixel_values": list(images[: len(found)]), "labels": found}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": "cross_entropy"},
            "'cross_entropy', for one class an image, and these images have several; set it to bce,",
        ),
        ({"sharpness": "cc_sam"}, "sharpness is 'cc_sam'.*set it to focal_sam or another"),
        ({"mixup_alpha": 0.2}, "mixup_alpha is 0.2.*set it to 0"),
        ({"cutmix_alpha": 1.0}, "cutmix_alpha is 1.0.*set it to 0"),
        ({"train_sampler": "class_balanced"}, "train_sampler is 'class_balanced'.*set it to instance"),
    ],
)
def test_what_is_for_one_class_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_for(tmp_path, **changes)


def test_a_loss_for_several_classes_is_refused_for_one(tmp_path):
    from test_trainer import Images as OneClass

    with pytest.raises(ValueError, match="loss is 'bce', for several classes an image, and these images have one"):
        trainer_for(tmp_path, dataset=OneClass(), loss="bce")


def test_labels_and_config_that_differ_are_refused(tmp_path):
    model = make_model("vit", "full")
    model.config.problem_type = "single_label_classification"
    with pytest.raises(ValueError, match=r"'single_label_classification', and the labels.*are several a sample"):
        trainer_for(tmp_path, model=model)
    model.config.problem_type = "regression"
    with pytest.raises(ValueError, match="problem_type 'regression', and FocalSAMTrainer trains classifiers"):
        trainer_for(tmp_path, model=model)


def test_a_class_that_no_image_has_is_refused(tmp_path):
    rows = MULTI_HOT.copy()
    rows[:, 3] = 0
    with pytest.raises(ValueError, match="Class 3 has no training sample"):
        trainer_for(tmp_path, dataset=Images(rows=rows))


def test_labels_beyond_0_and_1_are_refused_in_the_first_step(tmp_path):
    trainer = trainer_for(tmp_path, counts=COUNTS, model=_declared(), dataset=Images(rows=2 * MULTI_HOT))
    with pytest.raises(ValueError, match=r"give rows of shape .* with a 1 for each of its classes"):
        trainer.train()


def _declared():
    model = make_model("vit", "full")
    model.config.problem_type = "multi_label_classification"
    return model


def test_a_function_of_the_users_gets_the_rows(tmp_path):
    seen = []

    def loss(outputs, labels):
        seen.append(labels)
        return torch.nn.functional.binary_cross_entropy_with_logits(
            outputs.logits, labels.to(outputs.logits), reduction="none"
        ).mean(dim=1)

    args = arguments(tmp_path, max_steps=1)
    FocalSAMTrainer(make_model("vit", "full"), args, train_dataset=Images(), compute_loss_func=loss).train()
    assert seen[0].shape == (8, 5)
