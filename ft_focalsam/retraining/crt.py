"""cRT: classifier re-training (Kang et al., arXiv 1910.09217, section 4.2)."""

from dataclasses import dataclass

from .registry import BalancedTraining, register_retraining


@register_retraining("crt")
@dataclass
class ClassifierRetraining(BalancedTraining):
    """A new head with random weights, trained with cross-entropy and class-balanced sampling. For every head but those
    that are computed from texts."""

    title = "cRT"

    def retrain(self, model, data, *, say) -> dict:
        from torch.nn.functional import cross_entropy

        from .heads import new_head
        from .training import train_balanced

        head = new_head(model, seed=self.seed)
        features, labels = data.of("train")
        loss = train_balanced(
            list(head.parameters()), lambda x, y, epoch: cross_entropy(head(x), y), features, labels, self
        )
        model.head.load_state_dict(head.state_dict())
        return {"final_loss": loss}
