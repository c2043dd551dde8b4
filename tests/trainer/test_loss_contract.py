"""What a Trainer's user may do with the loss, the outputs and the labels: exact, or refused in one sentence."""

import copy
import random

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from sharpness.models import COUNTS, NUM_CLASSES, losses_of, make_model, naive_gradient, relative_error
from test_trainer import WEIGHTS, Images, Recorded, arguments, trainer_for
from torch import nn
from torch.utils.data import Dataset

from ft_focalsam import FocalSAMTrainer, class_weights
from ft_focalsam.sharpness import LossContractError

METHODS = {
    "sam": ({"sharpness": "sam"}, class_weights("sam", COUNTS)),
    "imbsam": ({"sharpness": "imbsam", "imbsam_eta": 5}, class_weights("imbsam", [10, 6, 4, 3, 1], {"eta": 5})),
    "focal_sam": ({}, WEIGHTS),
}


def penalty(model):
    """A term without samples, whose gradient is w."""
    return sum((p**2).sum() for p in model.parameters() if p.requires_grad) / 2


class Penalised(FocalSAMTrainer):
    starts_at = 0  # optimizer step

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        if self.state.global_step < self.starts_at:
            return loss
        return loss + penalty(model) / self.args.gradient_accumulation_steps


def recorded_gradients(trainer):
    recorded = Recorded(trainer.model)
    trainer.add_callback(recorded)
    trainer.train()
    return recorded.gradients


@pytest.mark.parametrize("starts_at", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_penalty_added_by_a_subclass_is_trained_on_and_not_perturbed(method, accumulation, starts_at, tmp_path):
    settings, c = METHODS[method]
    model = make_model("vit", "lora")
    start = copy.deepcopy(model)
    data = Images(torch.float64)
    args = arguments(
        tmp_path, **settings, max_steps=4, per_device_train_batch_size=24 // accumulation,
        gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    trainer = Penalised(model, args, train_dataset=data)
    trainer.starts_at = starts_at
    for step, actual in enumerate(recorded_gradients(trainer)):
        expected = naive_gradient(start, data.images, torch.tensor(data.targets), c, 0.1)
        trained = {name: p for name, p in start.named_parameters() if name in expected}
        if step >= starts_at:
            expected = {name: g + trained[name].detach() for name, g in expected.items()}
        assert relative_error(actual, expected) <= 1e-10
        with torch.no_grad():
            for name, p in trained.items():
                p -= 0.05 * actual[name]
    assert trainer.sharpness_step.backward_passes == 1


@pytest.mark.parametrize("method", [*METHODS, "cc_sam"])
def test_a_loss_of_a_subclass_that_is_not_made_of_the_samples_is_refused(method, tmp_path):
    class Own(FocalSAMTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            outputs = model(pixel_values=inputs["pixel_values"])
            loss = F.cross_entropy(outputs.logits, inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    model = make_model("vit", "lora", dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    settings = {"sharpness": "cc_sam"} if method == "cc_sam" else METHODS[method][0]
    with pytest.raises(LossContractError, match=r"not made of .*super\(\).compute_loss.* set sharpness to 'none'"):
        Own(model, arguments(tmp_path, **settings), train_dataset=Images()).train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    plain, twin = (make_model("vit", "lora", dtype=torch.float32) for _ in range(2))
    trainer = Own(plain, arguments(tmp_path, sharpness="none"), train_dataset=Images(), eval_dataset=Images())
    trainer.train()
    assert "eval_accuracy" in trainer.evaluate()

    class Usual(transformers.Trainer):
        compute_loss = Own.compute_loss

    Usual(twin, arguments(tmp_path, sharpness="none"), train_dataset=Images()).train()
    for p, q in zip(plain.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_term_made_of_the_models_outputs_is_refused(tmp_path):
    class Entropy(FocalSAMTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            return loss - 0.1 * outputs["logits"].softmax(dim=1).square().sum()

    trainer = Entropy(make_model("vit", "lora"), arguments(tmp_path), train_dataset=Images(torch.float64))
    with pytest.raises(LossContractError, match=r"computed from the outputs of the model.*compute_loss_func"):
        trainer.train()


def mean_loss(outputs, labels):
    return F.cross_entropy(outputs.logits, labels)


def counted_loss(outputs, labels, num_items_in_batch=None):
    count = len(labels) if num_items_in_batch is None else num_items_in_batch
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / count


@pytest.mark.parametrize("function", [mean_loss, counted_loss])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_scalar_loss_function_trains_plainly_as_in_transformers(function, accumulation, tmp_path):
    """24 images in batches of 10, accumulated by 3: 10 + 10 + 4."""
    settings = {"sharpness": "none", "per_device_train_batch_size": 10, "gradient_accumulation_steps": accumulation}
    ours, theirs = make_model("vit", "lora"), make_model("vit", "lora")
    args = arguments(tmp_path, **settings)
    FocalSAMTrainer(ours, args, train_dataset=Images(torch.float64), compute_loss_func=function).train()
    transformers.Trainer(
        theirs, args, train_dataset=Images(torch.float64), compute_loss_func=counted_loss
    ).train()  # fmt: skip
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_a_loss_function_may_take_the_count_and_return_losses(tmp_path):
    counts = []

    def loss(outputs, labels, num_items_in_batch):
        counts.append(int(num_items_in_batch))
        return F.cross_entropy(outputs.logits, labels, reduction="none")

    model = make_model("vit", "lora")
    start, data = copy.deepcopy(model), Images(torch.float64)
    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=8, gradient_accumulation_steps=3)
    gradients = recorded_gradients(FocalSAMTrainer(model, args, train_dataset=data, compute_loss_func=loss))
    expected = naive_gradient(start, data.images, torch.tensor(data.targets), WEIGHTS, 0.1)
    assert relative_error(gradients[0], expected) <= 1e-10
    assert set(counts) == {24}


@pytest.mark.parametrize("changes", [{"loss": "focal"}, {"label_smoothing_factor": 0.1}, {"drw_start": 0.5}])
def test_a_loss_in_the_arguments_beside_a_function_is_refused(changes, tmp_path):
    name = next(iter(changes))
    with pytest.raises(ValueError, match=rf"{name} is .* beside a compute_loss_func"):
        FocalSAMTrainer(
            make_model("vit", "lora"), arguments(tmp_path, **changes), train_dataset=Images(),
            compute_loss_func=lambda outputs, labels: F.cross_entropy(outputs.logits, labels, reduction="none"),
        )  # fmt: skip


# ---- outputs ----


FORMS = {
    "logits and more": lambda logits: (logits, -logits),
    "a tuple of logits": lambda logits: (logits,),
    "logits": lambda logits: logits,
    "dictionary": lambda logits: {"logits": logits},
}


class Returning(nn.Module):
    """Logits in one of the forms in which models return them."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * 64, NUM_CLASSES)
        self.form = form

    def forward(self, pixel_values):
        return FORMS[self.form](self.layer(pixel_values.flatten(1)))


@pytest.mark.parametrize("sharpness", ["none", "focal_sam", "cc_sam"])
@pytest.mark.parametrize("form", FORMS)
def test_models_train_and_are_evaluated_on_their_logits_in_any_form(form, sharpness, tmp_path):
    results = {}
    for each in (form, "dictionary"):
        trainer = trainer_for(Returning(each), tmp_path, sharpness=sharpness, max_steps=12)
        trainer.train()
        results[each] = trainer.evaluate()["eval_loss"], trainer.predict(Images()).predictions
        without_labels = [{"pixel_values": image} for image in Images().images[:9]]
        trainer.args.per_device_eval_batch_size = 8  # the last batch has one image
        assert trainer.predict(without_labels).predictions.shape == (9, NUM_CLASSES)
    assert results[form][0] == pytest.approx(results["dictionary"][0], rel=1e-6)
    np.testing.assert_allclose(results[form][1], results["dictionary"][1], rtol=1e-5)
    assert (results[form][1].argmax(axis=1) == Images().targets).mean() > 0.5


def test_a_model_without_logits_is_refused(tmp_path):
    class Net(Returning):
        def forward(self, pixel_values):
            return {"scores": super().forward(pixel_values)}

    with pytest.raises(ValueError, match=r"keys \['scores'\] and no logits"):
        trainer_for(Net("logits"), tmp_path).train()


@pytest.mark.parametrize("form", ["logits and more", "dictionary"])
@pytest.mark.parametrize("changes", [{"batch_eval_metrics": True}, {"eval_do_concat_batches": False}])
def test_metrics_do_not_depend_on_how_the_trainer_hands_them_batches(changes, form, tmp_path):
    found = []
    for each in ({}, changes):
        trainer = trainer_for(Returning(form), tmp_path, per_device_eval_batch_size=7, **each)
        for _ in range(2):  # a second evaluation begins anew
            metrics = trainer.evaluate()
        found.append({name: metrics[name] for name in metrics if not name.endswith(("_second", "time"))})
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert "eval_calibration_error" in found[0]


# ---- random numbers ----


@pytest.mark.parametrize("draw", [lambda shape: np.random.rand(*shape), lambda shape: np.full(shape, random.random())])
def test_both_passes_see_the_same_numbers_of_numpy_and_python(draw, tmp_path):
    seen = []

    class Noisy(Returning):
        def forward(self, pixel_values):
            noise = torch.from_numpy(draw((len(pixel_values), 1, 1, 1))).to(pixel_values)
            seen.append(noise)
            return super().forward(pixel_values * (1 + noise))

    for sharpness in ("focal_sam", "sam"):
        trainer = trainer_for(Noisy("logits"), tmp_path, sharpness=sharpness, max_steps=4)
        trainer.train()
        first, second = seen[-2:]
        assert torch.equal(first, second)
        assert not torch.equal(seen[-3], first)  # of the step before


# ---- labels ----


class Labelled(Images):
    def __init__(self, cast, name="labels"):
        super().__init__()
        self.cast, self.name = cast, name

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], self.name: self.cast(self.targets[index])}


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
@pytest.mark.parametrize("sharpness", ["none", "focal_sam", "cc_sam"])
def test_labels_of_any_integer_type_train_alike(dtype, sharpness, tmp_path):
    def trained(dataset):
        trainer = trainer_for(Returning("logits"), tmp_path, dataset=dataset, sharpness=sharpness)
        trainer.train()
        trainer.evaluate()
        return trainer.model.layer.weight

    assert torch.equal(trained(Labelled(lambda k: torch.tensor(k, dtype=dtype))), trained(Images()))


def test_two_classes_may_be_bools(tmp_path):
    class TwoClasses(Dataset):
        targets = [True] * 4 + [False] * 2

        def __len__(self):
            return 6

        def __getitem__(self, index):
            return {"pixel_values": torch.randn(3, 8, 8), "labels": self.targets[index]}

    trainer = trainer_for(Returning("logits"), tmp_path, dataset=TwoClasses())
    assert trainer.class_counts.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Labelled(float), "a transform changes labels|labels are"),
        ([{"pixel_values": torch.zeros(3, 8, 8), "labels": 0.5}] * 4, "float64 .*Regression is not supported"),
        ([{"pixel_values": torch.zeros(3, 8, 8), "labels": [1, 0, 2]}] * 4, "lists that are no rows of 0 and 1"),
        ([{"pixel_values": torch.zeros(3, 8, 8), "labels": [1, 1]}] * 4, "these images have several; set it to bce"),
        (datasets.Dataset.from_dict({"labels": [0.0, 1.5]}), "column 'labels', are float32"),
        (datasets.Dataset.from_dict({"labels": [[0], [0, 1]]}), "these images have several; set it to bce"),
        (datasets.Dataset.from_dict({"labels": [["a"], ["b"]]}), "lists that are no rows of 0 and 1"),
        (datasets.Dataset.from_dict({"labels": ["a", "b"]}), "make them integers"),
        ([{"pixel_values": torch.zeros(3, 8, 8), "labels": -100}] * 4, "All 4 training samples have the label -100"),
    ],
)
def test_labels_that_are_no_classes_are_refused(dataset, message, tmp_path):
    if isinstance(dataset, Labelled):  # batches of floats, whatever `targets` says
        trainer = trainer_for(Returning("logits"), tmp_path, dataset=dataset)
        with pytest.raises(ValueError, match="labels of a batch are torch"):
            trainer.train()
        return
    with pytest.raises(ValueError, match=message):
        trainer_for(Returning("logits"), tmp_path, dataset=dataset)


def test_several_classes_per_image_are_refused_in_the_first_batch(tmp_path):
    dataset = Labelled(lambda k: F.one_hot(torch.tensor([k, (k + 1) % 5]), 5).sum(dim=0).float())
    args = arguments(tmp_path)
    trainer = FocalSAMTrainer(Returning("logits"), args, train_dataset=dataset, class_counts=[10, 6, 4, 3, 1])
    with pytest.raises(ValueError, match=r"a row of a batch sums to 2; .*for several classes an image, set"):
        trainer.train()


def test_images_that_no_transform_makes_tensors_of_are_refused(tmp_path):
    images = [Image.new("RGB", (8, 8))] * 4
    data = datasets.Dataset.from_dict({"image": images, "labels": [0, 1, 2, 3]}, datasets.Features(
        {"image": datasets.Image(), "labels": datasets.Value("int64")}
    ))  # fmt: skip
    with pytest.raises(ValueError, match=r"column 'image' .* no transform makes tensors of; .*with_transform"):
        trainer_for(Returning("logits"), tmp_path, dataset=data)


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_other_problems_than_that_of_the_labels_are_refused(kind, tmp_path):
    model = make_model("vit", "full", dtype=torch.float32)
    model.config.problem_type = kind  # the labels are one class an image
    with pytest.raises(ValueError, match=f"problem_type '{kind}'"):
        trainer_for(model, tmp_path)


def test_samples_with_the_label_that_is_ignored_are_left_out_and_counted(tmp_path, caplog):
    class Partial(Images):
        def __init__(self, dtype):
            super().__init__(dtype)
            self.targets = [-100 if n in (0, 11, 21) else k for n, k in enumerate(self.targets)]

    data = Partial(torch.float64)
    kept = [n for n, k in enumerate(data.targets) if k != -100]
    labels = torch.tensor(data.targets)[kept]
    model = make_model("vit", "lora")
    start = copy.deepcopy(model)
    trainer = trainer_for(model, tmp_path, dataset=data, max_steps=1, per_device_train_batch_size=24)
    assert trainer.class_counts.tolist() == [9, 5, 4, 2, 1]
    assert "3 of 24 training samples have the label -100" in caplog.text
    c = class_weights("focal_sam", trainer.class_counts, {"gamma": 1.5, "lam": 0.7})
    expected = naive_gradient(start, data.images[kept], labels, c, 0.1)
    assert relative_error(recorded_gradients(trainer)[0], expected) <= 1e-10


@pytest.mark.parametrize("sharpness", ["none", "focal_sam"])
def test_label_names_are_honoured(sharpness, tmp_path):
    dataset = Labelled(int, name="species")
    trainer = trainer_for(Returning("logits"), tmp_path, dataset=dataset, label_names=["species"], sharpness=sharpness)
    trainer.train()
    usual = trainer_for(Returning("logits"), tmp_path, sharpness=sharpness)
    usual.train()
    assert torch.equal(trainer.model.layer.weight, usual.model.layer.weight)
    assert trainer.evaluate()["eval_accuracy"] == usual.evaluate()["eval_accuracy"]
    with pytest.raises(ValueError, match=r"label_names is \['a', 'b'\]; name the one input"):
        arguments(tmp_path, label_names=["a", "b"])


def test_class_counts_are_those_of_the_items(tmp_path):
    data = datasets.Dataset.from_dict({"labels": Images().targets})
    reverse = data.with_transform(lambda batch: {"labels": [4 - k for k in batch["labels"]]})
    with pytest.raises(ValueError, match=r"has the label 0 in its column or targets and 4 in the item.*class_counts"):
        trainer_for(Returning("logits"), tmp_path, dataset=reverse)

    class Torchvision(Images):
        """As torchvision's: `targets` are those before `target_transform`."""

        @staticmethod
        def target_transform(target):
            return 4 - target

        def __getitem__(self, index):
            return {"pixel_values": self.images[index], "labels": self.target_transform(self.targets[index])}

    assert trainer_for(Returning("logits"), tmp_path, dataset=Torchvision()).class_counts.tolist() == [1, 3, 4, 6, 10]


# ---- arguments of the Trainer ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "adalomo"}, "optim is 'adalomo', which steps in the backward pass"),
        ({"optim": "galore_adamw_layerwise", "optim_target_modules": ["query"]}, "which steps in the backward pass"),
        ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint is True"),
    ],
)
def test_arguments_that_go_against_the_step_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)


def test_the_losses_of_the_tests_are_those_of_the_trainer():
    """`losses_of` and the Trainer's cross-entropy agree, on which the tests above rest."""
    model, data = make_model("vit", "lora"), Images(torch.float64)
    labels = torch.tensor(data.targets)
    expected = F.cross_entropy(model(pixel_values=data.images).logits, labels, reduction="none")
    torch.testing.assert_close(losses_of(model, data.images, labels), expected)
