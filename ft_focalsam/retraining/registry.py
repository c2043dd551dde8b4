"""Ways to retrain a classifier head by name. A new one is one file in this folder, imported in `__init__.py`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from ..base.ranges import SEED, Range, check_numbers
from ..base.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from ..models import LongTailClassifier
    from .features import FrozenFeatures


@dataclass
class Retraining:
    """A way to retrain a head. Its fields are its options: numbers, with `help` in their metadata.

    Attributes:
        title (`str`): What reports call it.
        needs_validation (`bool`): Whether something is chosen by held-out images.

    Raises:
        ValueError: If an option is out of its range.
    """

    title: ClassVar[str]

    def __post_init__(self) -> None:
        check_numbers(self)

    @property
    def needs_validation(self) -> bool:
        return False

    def check(self, head: "nn.Module", name: str) -> None:
        """Raise a `ValueError` where a head, by its name in `HEADS`, is not one for this method."""
        from .heads import check_has_weights

        check_has_weights(head)

    def retrain(self, model: "LongTailClassifier", data: "FrozenFeatures", *, say: Callable[[str], object]) -> dict:
        """Change the weights of the head, and nothing else.

        Args:
            model (`LongTailClassifier`): Whose head is changed in place.
            data (`FrozenFeatures`): What its backbone gives for the images.
            say (`Callable`): Takes lines for the reader.

        Returns:
            What to note in run.json beside the options.
        """
        raise NotImplementedError


@dataclass
class BalancedTraining(Retraining):
    """Retraining by SGD with momentum 0.9, a cosine schedule and class-balanced sampling."""

    epochs: Annotated[int, Range(1)] = field(default=10, metadata={"help": "epochs, of as many draws as images"})
    train_batch_size: Annotated[int, Range(1)] = field(default=512, metadata={"help": "features a step"})
    learning_rate: Annotated[float, Range(0, open_low=True)] = field(
        default=0.2, metadata={"help": "of the first step"}
    )
    weight_decay: Annotated[float, Range(0)] = field(default=5e-4, metadata={"help": "of what is trained"})
    seed: Annotated[int, SEED] = field(default=0, metadata={"help": "of the draws and of a new head"})


RETRAINING: Registry[type[Retraining]] = Registry("way to retrain")


def register_retraining(name: str) -> Callable[[type[Retraining]], type[Retraining]]:
    """Register a dataclass as a way to retrain a head; see `Retraining`.

    Raises:
        ValueError: If the name is taken.
    """
    return RETRAINING.register(name)
