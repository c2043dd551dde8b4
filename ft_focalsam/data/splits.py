"""Which splits of a data set are trained, tested and validated on."""

from collections.abc import Iterable

import datasets

TEST_SPLITS = ("test", "validation", "val")
# What splits are called, in small letters, by the role that the name says.
ROLES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val"),
}


class MissingSplitError(ValueError):
    """A data set lacks a split that was asked for, or none of its splits is clearly the one to test on.

    Args:
        message (`str`): With the remedy.
        available (iterable of `str`): The splits that it has.
    """

    def __init__(self, message: str, available: Iterable[str]):
        super().__init__(message)
        self.available = list(available)


def role_of(name: str) -> str | None:
    """The role that the name of a split, a folder or a file says: "train", "test" or "validation", else None."""
    return next((role for role, names in ROLES.items() if name.lower() in names), None)


def select_splits(
    splits: datasets.DatasetDict,
    train_split: str,
    test_split: str | None,
    test_fraction: float | None,
    validation_split: str | None,
) -> datasets.DatasetDict:
    """The splits that a run uses, under the names of its parts.

    Args:
        splits (`datasets.DatasetDict`): All splits of the data set.
        train_split (`str`): The one to train on.
        test_split (`str`, *optional*): The one to test on; by default the first of `TEST_SPLITS` that is there.
        test_fraction (`float`, *optional*): The test set is this share of the training split, which is cut later.
        validation_split (`str`, *optional*): The one to choose by.

    Returns:
        `datasets.DatasetDict`: `"train"`; `"test"`, unless there is a `test_fraction`; `"validation"`, where one was
        named.

    Raises:
        MissingSplitError: If a split is not there.
        ValueError: If one split is to have two roles.
    """
    available = ", ".join(f"'{split}'" for split in splits)

    def select(split: str, purpose: str, option: str) -> datasets.Dataset:
        if split not in splits:
            raise MissingSplitError(
                f"There is no split '{split}' to {purpose}; set {option} to one of {available}.", splits
            )
        return splits[split]

    chosen = datasets.DatasetDict({"train": select(train_split, "train on", "--train_split")})
    if test_fraction is not None:
        if test_split is not None:
            raise ValueError(f"--test_split {test_split} and --test_fraction {test_fraction} exclude each other.")
    else:
        test_split = test_split or _find_test_split(splits, (train_split, validation_split))
        chosen["test"] = select(test_split, "test on", "--test_split")
    if validation_split is not None:
        chosen["validation"] = select(validation_split, "validate on", "--validation_split")
    if test_split == train_split:
        raise ValueError(f"--test_split {test_split} is the training split; name another one of {available}.")
    if validation_split is not None and validation_split in (train_split, test_split):
        other = "training" if validation_split == train_split else "test"
        raise ValueError(f"--validation_split {validation_split} is the {other} split; name another one.")
    return chosen


def _find_test_split(splits: datasets.DatasetDict, taken: tuple[str | None, ...]) -> str:
    available = ", ".join(f"'{split}'" for split in splits)
    found = next((split for split in TEST_SPLITS if split in splits and split not in taken), None)
    if found is None and len(splits) == 1:
        raise MissingSplitError(
            f"The data set has the split {available} and no other; set --test_fraction (e.g. 0.2) to cut a test set "
            "from it.",
            splits,
        )
    if found is None:
        raise MissingSplitError(
            f"None of the splits {available} is called {' or '.join(TEST_SPLITS)}; name it with --test_split.", splits
        )
    return found
