"""tau-normalisation of a classifier (Kang et al., arXiv 1910.09217, eq. 4)."""

from dataclasses import dataclass, field
from typing import Annotated

from ..base.ranges import Range
from .registry import Retraining, register_retraining

TAUS = tuple(step / 10 for step in range(21))  # as the authors' code tries them


@register_retraining("tau_norm")
@dataclass
class TauNormalisation(Retraining):
    """w_i / |w_i|^tau without a bias, by the tau with the highest mean accuracy of a class on the held-out images, the
    smallest of several. For heads with class vectors of any length."""

    title = "tau-normalised"
    tau: Annotated[float | None, Range(0)] = field(
        default=None,
        metadata={"help": "power of the lengths, by default the best of 0, 0.1 ... 2 on held-out images"},
    )

    @property
    def needs_validation(self) -> bool:
        return self.tau is None

    def check(self, head, name) -> None:
        from .heads import class_layer

        class_layer(head, name, method="tau_norm")

    def retrain(self, model, data, *, say) -> dict:
        import torch

        from .features import mean_class_accuracy
        from .heads import class_layer

        layer = class_layer(model.head, model.config.head, method="tau_norm")
        weight = layer.weight.detach().clone()
        lengths = weight.norm(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        with torch.no_grad():
            layer.bias.zero_()
            if self.tau is not None:
                layer.weight.copy_(weight / lengths**self.tau)
                return {}
            features, labels = data.of("validation")
            accuracies = {}
            for tau in TAUS:
                layer.weight.copy_(weight / lengths**tau)
                accuracies[tau] = mean_class_accuracy(model.head(features), labels)
                say(f"tau {tau:g}: {accuracies[tau]:.2%} mean accuracy of a class on the held-out images")
            best = max(TAUS, key=lambda tau: (accuracies[tau], -tau))
            layer.weight.copy_(weight / lengths**best)
        say(f"tau {best:g} is taken.")
        return {"tau": best, "accuracies": {f"{tau:g}": accuracy for tau, accuracy in accuracies.items()}}
