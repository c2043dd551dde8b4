"""`dataset_labels` on every kind of training set a Trainer takes."""

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from ft_focalsam.data.labels import IGNORED, dataset_labels
from ft_focalsam.sharpness import weights

LABELS = [3, 0, 0, 2, 1, 0, 3]


def hub(column: str, **others) -> datasets.Dataset:
    features = datasets.Features({column: datasets.ClassLabel(num_classes=4)})
    dataset = datasets.Dataset.from_dict({column: LABELS}, features=features)
    for name, values in others.items():
        dataset = dataset.add_column(name, values)
    return dataset


class Items(Dataset):
    """Mappings, as `torch.utils.data` knows them; counts what is read."""

    def __init__(self, key: str, convert=int):
        self.key, self.convert, self.reads = key, convert, 0

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> dict:
        self.reads += 1
        return {"pixel_values": torch.zeros(3, 2, 2), self.key: self.convert(LABELS[index])}


class Targets(Dataset):
    """As torchvision's CIFAR-10 and MNIST: images must not be decoded to learn the classes."""

    def __init__(self, targets):
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        raise AssertionError("an image was read")


class Stream(IterableDataset):
    def __iter__(self):
        return iter([{"labels": 0}])


def refuse(batch):
    raise AssertionError("the transform ran")


def assert_labels(dataset, expected: list[int] = LABELS) -> None:
    actual = dataset_labels(dataset)
    assert actual.dtype == np.int64
    assert actual.tolist() == expected


@pytest.mark.parametrize("column", ["labels", "label"])
def test_column_of_a_hub_data_set(column):
    assert_labels(hub(column))


@pytest.mark.parametrize("column", ["labels", "label"])
def test_transform_does_not_run(column):
    assert_labels(hub(column, image=list(range(7))).with_transform(refuse))


def test_labels_go_before_label():
    assert_labels(hub("labels", label=[9] * 7))


def test_selection_sort_and_torch_format():
    dataset = hub("label").with_format("torch").select([6, 0, 4])
    assert_labels(dataset, [3, 3, 1])
    assert_labels(datasets.concatenate_datasets([hub("label"), hub("label")]), LABELS + LABELS)


@pytest.mark.parametrize("convert", [list, tuple, np.array, torch.tensor], ids=["list", "tuple", "array", "tensor"])
def test_targets_of_a_torchvision_data_set(convert):
    assert_labels(Targets(convert(LABELS)))


@pytest.mark.parametrize(
    "dataset", [hub("label").with_transform(refuse), Targets(LABELS), Items("labels")], ids=["hub", "targets", "items"]
)
def test_nested_subset(dataset):
    outer = Subset(Subset(dataset, [6, 4, 2, 0]), [3, 1, 1])
    assert_labels(outer, [3, 1, 1])


def test_empty_subset():
    assert_labels(Subset(Targets(LABELS), []), [])


@pytest.mark.parametrize("convert", [int, np.int32, torch.tensor], ids=["int", "numpy", "tensor"])
@pytest.mark.parametrize("key", ["labels", "label"])
def test_items_are_read_once_each_where_nothing_else_helps(key, convert):
    dataset = Items(key, convert)
    assert_labels(dataset)
    assert dataset.reads == len(LABELS)


@pytest.mark.parametrize("stream", [Stream(), hub("label").to_iterable_dataset()], ids=["torch", "datasets"])
def test_stream_is_refused(stream):
    with pytest.raises(ValueError, match="is a stream, whose classes cannot be counted; give class_counts"):
        dataset_labels(stream)


class Endless(Dataset):
    def __getitem__(self, index):
        return {"labels": index % 3}


def test_a_data_set_without_length_is_refused():
    with pytest.raises(ValueError, match=r"is a Endless without length, whose classes cannot be counted; give it"):
        dataset_labels(Endless())


def test_columns_without_label():
    with pytest.raises(ValueError, match=r"columns \['species', 'image'\] and no 'labels'; rename the one with the"):
        dataset_labels(hub("species", image=list(range(7))))


def test_items_without_label():
    with pytest.raises(ValueError, match=r"keys \['pixel_values', 'species'\] and no 'labels'; add the class"):
        dataset_labels(Items("species"))


def test_items_that_are_no_mappings():
    dataset = TensorDataset(torch.zeros(7, 3), torch.tensor(LABELS))
    with pytest.raises(ValueError, match=r"is a tuple.*mapping with 'labels'"):
        dataset_labels(dataset)


def test_the_label_that_is_left_out_is_everyones():
    assert IGNORED == weights.IGNORED == torch.nn.CrossEntropyLoss().ignore_index
