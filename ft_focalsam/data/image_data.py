"""Labelled images, ready for a transform and a Trainer: [`ImageData`]."""

from dataclasses import dataclass, replace

import datasets
import numpy as np

from .columns import check_labels, label_array
from .long_tail import long_tail_indices, stratified_split, take_per_class
from .multi_label import holds_lists


@dataclass
class ImageData:
    """Labelled images, ready for a transform and a Trainer.

    Args:
        train (`datasets.Dataset`): Columns `"image"` (an `Image` feature, decoded on access) and `"labels"` (int64,
            0..C-1, or lists of these), and no other.
        test (`datasets.Dataset`): The same columns.
        class_names (`list[str]`): The C class names in index order, as the data set spells them.
        name (`str`): What the user called the data set.
        validation (`datasets.Dataset`, *optional*): The same columns; images to choose by while training, which are
            neither trained on nor tested on.

    Raises:
        ValueError: If the columns differ from these two, or a label is outside 0..C-1.
    """

    train: datasets.Dataset
    test: datasets.Dataset
    class_names: list[str]
    name: str
    validation: datasets.Dataset | None = None

    def __post_init__(self) -> None:
        for split, dataset in self.parts.items():
            if sorted(dataset.column_names) != ["image", "labels"]:
                raise ValueError(f"Split '{split}' has the columns {dataset.column_names}, not 'image' and 'labels'.")
            check_labels(dataset, self.num_classes, split=split)

    @property
    def parts(self) -> dict[str, datasets.Dataset]:
        """The splits that there are, by the names of the attributes."""
        parts = {"train": self.train, "test": self.test, "validation": self.validation}
        return {split: dataset for split, dataset in parts.items() if dataset is not None}

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)

    @property
    def num_train(self) -> int:
        """Training images."""
        return len(self.train)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return holds_lists(self.train.features["labels"])

    def rename(self, class_names: list[str]) -> "ImageData":
        """The same data with other names of the classes, in index order.

        Raises:
            ValueError: If their number is another.
        """
        if len(class_names) != self.num_classes:
            raise ValueError(
                f"--class_names has {len(class_names)} names and the data set {self.num_classes} classes; name all."
            )
        feature = datasets.ClassLabel(names=class_names)
        feature = datasets.List(feature) if self.is_multi_label else feature
        parts = {split: part.cast_column("labels", feature) for split, part in self.parts.items()}
        return replace(self, **parts, class_names=class_names)

    def cut(
        self,
        *,
        imbalance_factor: float | None = None,
        profile: str = "exponential",
        max_train_per_class: int | None = None,
        max_test_per_class: int | None = None,
        seed: int = 0,
    ) -> "ImageData":
        """The same data with fewer images.

        Args:
            imbalance_factor (`float`, >= 1, *optional*): Ratio of the most frequent to the rarest class of the
                long-tail profile that the training set is cut to; by default it keeps its own imbalance.
            profile (`str`, defaults to `"exponential"`): `"exponential"`, `"step"` or `"pareto"`.
            max_train_per_class (`int`, *optional*): Training images of the most frequent class.
            max_test_per_class (`int`, *optional*): Test images a class.
            seed (`int`, defaults to 0): Which images are taken.

        Raises:
            ValueError: If a value is out of range, a class has too few images for the profile, or images have several
                classes.
        """
        self._refuse_cut(
            imbalance_factor=imbalance_factor,
            max_train_per_class=max_train_per_class,
            max_test_per_class=max_test_per_class,
        )
        train, test = self.train, self.test
        labels, num_classes = label_array(train), self.num_classes
        if imbalance_factor is not None:
            rows = long_tail_indices(
                labels,
                num_classes,
                imbalance_factor=imbalance_factor,
                seed=seed,
                profile=profile,
                max_count=max_train_per_class,
            )
            train = train.select(rows)
        elif max_train_per_class is not None:
            train = train.select(take_per_class(labels, num_classes, per_class=max_train_per_class, seed=seed))
        if max_test_per_class is not None:
            labels = label_array(test)
            test = test.select(take_per_class(labels, num_classes, per_class=max_test_per_class, seed=seed))
        return replace(self, train=train, test=test)

    def limit_imbalance(self, most: float, *, seed: int = 0) -> "ImageData":
        """The same data with at most `most` times the training images of the rarest class in each class.

        Args:
            most (`float`, >= 1): 1 balances the classes.
            seed (`int`, defaults to 0): Which images are taken.

        Raises:
            ValueError: If a class has no training image, or images have several classes.
        """
        self._refuse_cut(max_imbalance=most)
        labels = label_array(self.train)
        counts = np.bincount(labels, minlength=self.num_classes)
        if counts.min() == 0:
            raise ValueError(
                f"The class '{self.class_names[int(counts.argmin())]}' has no training image for max_imbalance to "
                "count by; give it one, or leave max_imbalance out."
            )
        rows = take_per_class(labels, self.num_classes, per_class=int(most * counts.min()), seed=seed)
        return replace(self, train=self.train.select(rows))

    def _refuse_cut(self, **options: float | None) -> None:
        given = [f"{name} is {value:g}" for name, value in options.items() if value is not None]
        if given and self.is_multi_label:
            raise ValueError(
                f"{given[0]}, which takes images away class by class, and those of '{self.name}' have several classes "
                f"each; leave {given[0].partition(' ')[0]} out."
            )

    def hold_out(self, fraction: float, *, seed: int = 0) -> "ImageData":
        """The same data with a part of the training images as validation images, for choices that the test set must
        not make.

        Args:
            fraction (`float`): Share of each class, inside (0, 1), rounded; one image of a class stays in training.
            seed (`int`, defaults to 0): Which images are taken.

        Raises:
            ValueError: If the fraction is outside (0, 1), or no class can give an image.
        """
        kept, held = stratified_split(label_array(self.train), self.num_classes, test_fraction=fraction, seed=seed)
        return replace(self, train=self.train.select(kept), validation=self.train.select(held))
