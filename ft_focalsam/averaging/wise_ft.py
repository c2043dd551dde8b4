"""WiSE-FT (Wortsman et al., 2021, arXiv 2109.01903): between the weights before training and the tuned ones.

theta(alpha) = (1 - alpha) theta_0 + alpha theta_1. What was inserted to be nothing at the start is interpolated by
what it adds: LoRA by s alpha B A, adapters by alpha times their output, SSF and IA3 by their scales between 1 and
gamma, sparse tuning by alpha S. Other adapters of peft are merged into the backbone first.
"""

from collections.abc import Callable

import torch
from peft import PeftModel

from ..export import merge
from ..models import LongTailClassifier, init_head
from ..models.backbones import is_pretrained
from ..tuning.adapter import Bottleneck, ParallelAdapter
from .ingredients import Ingredient, inserted_kinds, needs_merging, peft_kind

START_IS_NOTHING = ("adaptformer", "adapter", "sparse", "ssf")  # kinds of inserted modules


def read_with_start(
    name: str, *, start: str | None = None, say: Callable[[str], object] = lambda text: None
) -> tuple[LongTailClassifier, list[Ingredient]]:
    """A tuned classifier, and its weights before training and after, which [`average`] interpolates by the weights
    (1 - alpha, alpha).

    Args:
        name (`str`): Folder of a run or of a checkpoint, or a Hub repository.
        start (`str`, *optional*): The same of a classifier whose head is that of the start, as a run with `--tuning
            zero_shot` saves it; by default the head is started from the texts that the tuned one was started from.
        say (`Callable`): Is told where weights are merged.

    Raises:
        FileNotFoundError, ValueError: As `LongTailClassifier.from_pretrained`; if the start is not known, or something
            was inserted that was not nothing at the start.
    """
    tuned = LongTailClassifier.from_pretrained(name)
    check_start_is_known(tuned, name)
    if needs_merging(tuned):
        say(f"{peft_kind(tuned)} is merged into the backbone, whose weights are interpolated.")
        tuned = merge(tuned)
        before = LongTailClassifier.from_backbone(
            tuned.config.backbone,
            tuned.config.class_names,
            head=tuned.config.head,
            head_scale=tuned.config.head_scale,
            head_options=tuned.config.head_options,
            image_size=tuned.config.image_size,
            features=tuned.config.backbone_features,
        ).requires_grad_(True)
    else:
        before = LongTailClassifier.before_training(name)
        _take_what_is_no_update(before, tuned)
    _start_head(before, tuned, name, start)
    ingredients = [Ingredient.of(f"the start of '{name}'", before), Ingredient.of(str(name), tuned)]
    ingredients[1].check_same_architecture(ingredients[0])
    return tuned, ingredients


def check_start_is_known(tuned: LongTailClassifier, name: str) -> None:
    """Raise a `ValueError` where the weights of a tuned classifier before training are not known.

    Args:
        tuned (`LongTailClassifier`): It may be one that has not trained yet.
        name (`str`): What to call it.
    """
    config = tuned.config
    if not is_pretrained(config.backbone_family):
        raise ValueError(
            f"The backbone of '{name}' began with random weights ({config.backbone}), which nobody saved."
        )
    odd = [kind for kind in inserted_kinds(tuned) if kind not in START_IS_NOTHING]
    if odd:
        raise ValueError(
            f"'{name}' has modules of the kind {' and '.join(map(repr, odd))}, which were not nothing at the start: "
            "there are no weights before training to average with; choose another tuning, or average runs with "
            "ft-focalsam soup."
        )


@torch.no_grad()
def _take_what_is_no_update(before: LongTailClassifier, tuned: LongTailClassifier) -> None:
    """Let all of an adapter but its last layer, which is 0 at the start, be the tuned one: its output is linear in
    alpha then. LoRA needs no such thing, as `add_updates` leaves out a B that is 0."""
    after = dict(tuned.named_modules())
    modules = dict(before.named_modules())
    parts = []
    for name, module in modules.items():
        if isinstance(module, Bottleneck):
            parts += [f"{name}.norm", f"{name}.down"]
        elif isinstance(module, ParallelAdapter):
            parts.append(f"{name}.scale")
    for name in parts:
        modules[name].load_state_dict(after[name].state_dict())


def _start_head(before: LongTailClassifier, tuned: LongTailClassifier, name: str, start: str | None) -> None:
    config = tuned.config
    if start is not None:
        other = LongTailClassifier.from_pretrained(start)
        if isinstance(other.backbone, PeftModel) or other.config.inserted:
            raise ValueError(f"'{start}' was tuned itself; give the run of the start, of --tuning zero_shot.")
        same = ("backbone", "head", "head_scale", "head_options", "feature_size", "id2label")
        odd = [key for key in same if getattr(other.config, key) != getattr(config, key)]
        if odd:
            raise ValueError(f"'{start}' is no start of '{name}': its {odd[0]} is another; give the run of the start.")
        before.head.load_state_dict(other.head.state_dict())
    elif config.prompt_templates is None:
        raise ValueError(
            f"The head of '{name}' was not started from texts, and no file has its start; run the recipe of it with "
            "--tuning zero_shot and another --output_dir, and give that folder as --start."
        )
    else:
        init_head(before, "text", templates=config.prompt_templates, class_names=config.prompt_names)
