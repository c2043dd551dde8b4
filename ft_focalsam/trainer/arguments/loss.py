"""Arguments of the loss."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ...losses import LOSSES, PerSampleLoss, loss_hyperparameters, make_loss
from .checks import check_allowed


@dataclass
class LossArguments(TrainingArguments):
    """Which loss is trained on.

    Args:
        loss (`str`, defaults to `"cross_entropy"`):
            Training loss: cross_entropy, class_balanced, grw, focal, ldam, balanced_softmax, logit_adjusted, vs, lade
            or influence_balanced. The docstrings of `ft_focalsam/losses.py` have the formula of each.
        logit_adjustment_tau (`float`, defaults to `1.0`):
            Strength tau of logit adjustment, also in vs.
        effective_number_beta (`float`, 0 to below 1, defaults to `0.9999`):
            Parameter beta of the effective number of samples, in the loss class_balanced, in deferred re-weighting and
            in the sampler effective_number.
        grw_exponent (`float`, >= 0, defaults to `1.2`):
            Exponent of the inverse class frequency in the weights of grw.
        focal_loss_gamma (`float`, >= 0, defaults to `2.0`):
            Focusing parameter gamma of the focal loss; focal_gamma is that of Focal-SAM.
        ldam_max_margin (`float`, >= 0, defaults to `0.5`):
            Margin of the rarest class in ldam, between cosines.
        ldam_scale (`float`, > 0, *optional*, defaults to `None`):
            Scale s of the logits in ldam; by default that of the model's head, 1 where the head has none.
        vs_gamma (`float`, >= 0, defaults to `0.15`):
            Exponent gamma of the class frequency by which vs scales logits.
        lade_alpha (`float`, >= 0, defaults to `0.1`):
            Weight alpha of the regulariser of lade.
        lade_lambda (`float`, >= 0, defaults to `0.1`):
            Weight lambda of the squared term inside the regulariser of lade.
        ib_alpha (`float`, > 0, defaults to `1000.0`):
            Factor alpha of influence_balanced.
        ib_start (`float`, 0 to 1, defaults to `0.5`):
            Fraction of training after which influence_balanced takes the place of cross-entropy.
        drw_start (`float`, 0 to 1, *optional*, defaults to `None`):
            Fraction of training after which samples are weighted by the inverse effective number of their class
            (deferred re-weighting), with any loss; by default never.

    Raises:
        ValueError: If a choice is unknown or a value is out of range.
    """

    loss: str = field(
        default="cross_entropy",
        metadata={
            "help": "Training loss: cross_entropy, class_balanced, grw, focal, ldam, balanced_softmax, "
            "logit_adjusted, vs, lade or influence_balanced."
        },
    )
    logit_adjustment_tau: float = field(
        default=1.0, metadata={"help": "Strength tau of logit adjustment, also in vs."}
    )
    effective_number_beta: float = field(
        default=0.9999,
        metadata={
            "help": "Parameter beta of the effective number of samples, in the loss class_balanced, in deferred "
            "re-weighting and in the sampler effective_number."
        },
    )
    grw_exponent: float = field(
        default=1.2, metadata={"help": "Exponent of the inverse class frequency in the weights of grw."}
    )
    focal_loss_gamma: float = field(
        default=2.0, metadata={"help": "Focusing parameter gamma of the focal loss; focal_gamma is that of Focal-SAM."}
    )
    ldam_max_margin: float = field(
        default=0.5, metadata={"help": "Margin of the rarest class in ldam, between cosines."}
    )
    ldam_scale: float | None = field(
        default=None,
        metadata={
            "help": "Scale s of the logits in ldam; by default that of the model's head, 1 where the head has none."
        },
    )
    vs_gamma: float = field(
        default=0.15, metadata={"help": "Exponent gamma of the class frequency by which vs scales logits."}
    )
    lade_alpha: float = field(default=0.1, metadata={"help": "Weight alpha of the regulariser of lade."})
    lade_lambda: float = field(
        default=0.1, metadata={"help": "Weight lambda of the squared term inside the regulariser of lade."}
    )
    ib_alpha: float = field(default=1000.0, metadata={"help": "Factor alpha of influence_balanced."})
    ib_start: float = field(
        default=0.5,
        metadata={"help": "Fraction of training after which influence_balanced takes the place of cross-entropy."},
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

    def make_loss(self, class_counts, *, head_scale: float = 1.0) -> PerSampleLoss:
        """The loss that these arguments describe.

        Args:
            class_counts (sequence of `int`, shape (C,)): Training samples per class.
            head_scale (`float`, > 0): What `ldam_scale` is where it is not set.
        """
        values = {name: getattr(self, name) for name in loss_hyperparameters(self.loss) if hasattr(self, name)}
        values["effective_number_beta"] = self.effective_number_beta
        if self.loss == "ldam" and self.ldam_scale is None:
            values["ldam_scale"] = head_scale
        return make_loss(
            self.loss,
            class_counts,
            values,
            label_smoothing=self.label_smoothing_factor,
            drw_start=self.drw_start,
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
