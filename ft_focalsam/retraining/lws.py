"""LWS: learnable weight scaling (Kang et al., arXiv 1910.09217, section 4.4)."""

from dataclasses import dataclass, field
from typing import Annotated

from ..base.ranges import Range
from .registry import BalancedTraining, register_retraining


@register_retraining("lws")
@dataclass
class LearnableWeightScaling(BalancedTraining):
    """Logits s_i z_i with one trained scale a class, from s = 1, by cross-entropy and class-balanced sampling; s is
    then multiplied into w_i and b_i, as the authors' code has it. For heads with class vectors of any length."""

    title = "LWS"
    epochs: Annotated[int, Range(1)] = field(default=5, metadata={"help": "epochs, of as many draws as images"})

    def check(self, head, name) -> None:
        from .heads import class_layer

        class_layer(head, name, method="lws")

    def retrain(self, model, data, *, say) -> dict:
        import torch
        from torch.nn.functional import cross_entropy

        from .heads import class_layer
        from .training import train_balanced

        layer = class_layer(model.head, model.config.head, method="lws")
        scales = torch.nn.Parameter(torch.ones_like(layer.weight[:, 0]))

        def loss_of(x, y, epoch):
            with torch.no_grad():
                logits = model.head(x)
            return cross_entropy(scales * logits, y)

        features, labels = data.of("train")
        loss = train_balanced([scales], loss_of, features, labels, self)
        with torch.no_grad():
            layer.weight.mul_(scales[:, None])
            layer.bias.mul_(scales)
        return {"final_loss": loss, "scales": [round(scale, 6) for scale in scales.tolist()]}
