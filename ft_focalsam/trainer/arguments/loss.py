"""Arguments of the loss."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from ...base.registry import listed
from ...losses import LOSSES, PerSampleLoss, loss_hyperparameters, make_loss, same_kind
from ...sharpness.hyperparameters import with_hyperparameters
from .checks import check_allowed


@dataclass
class _LossArguments(TrainingArguments):
    """Which loss is trained on.

    Args:
        loss (`str`, defaults to `"cross_entropy"`):
            Training loss, a name in `LOSSES`. The docstrings of `ft_focalsam/losses` have the
            formula of each; bce, asymmetric and distribution_balanced are for several classes an image.
        drw_start (`float`, 0 to 1, *optional*, defaults to `None`):
            Fraction of training after which samples are weighted by the inverse effective number of their class
            (deferred re-weighting), with any loss; by default never.

    Raises:
        ValueError: If a choice is unknown or a value is out of range.
    """

    loss: str = field(
        default="cross_entropy",
        metadata={
            "help": f"Training loss: {listed(LOSSES)}; {listed(same_kind(multi_label=True), last='and')} are for "
            "several classes an image, the others for one."
        },
    )
    drw_start: float | None = field(
        default=None,
        metadata={
            "help": "Fraction of training after which samples are weighted by the inverse effective number of their "
            "class (deferred re-weighting), with any loss; by default never."
        },
    )

    def __post_init__(self):
        check_allowed(self, loss=LOSSES)
        self.make_loss([1, 1])
        super().__post_init__()

    def make_loss(self, class_counts, *, head_scale: float = 1.0, num_samples: int | None = None) -> PerSampleLoss:
        """The loss that these arguments describe.

        Args:
            class_counts (sequence of `int`, shape (C,)): Training samples per class.
            head_scale (`float`, > 0): Scale of the logits of the model's head.
            num_samples (`int`, *optional*): Training samples, where these have several classes each.
        """
        known = {name for loss in LOSSES for name in loss_hyperparameters(loss) if hasattr(self, name)}
        return make_loss(
            self.loss,
            class_counts,
            {name: getattr(self, name) for name in known},
            label_smoothing=self.label_smoothing_factor,
            drw_start=self.drw_start,
            head_scale=head_scale,
            num_samples=num_samples,
        )

    def check_loss_is_default(self) -> None:
        """Raise a `ValueError` where these arguments describe a loss, which a function of the user's would ignore."""
        for name in ("loss", "label_smoothing_factor", "drw_start"):
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r} beside a compute_loss_func, which would ignore it; leave "
                    f"{name} at {default!r}, or leave the function out."
                )


# Any: what the losses declare is not seen by type checkers.
LossArguments: Any = with_hyperparameters(_LossArguments, LOSSES.values(), name="LossArguments")
