"""Any other method of the peft library, as a mapping: `peft_config: {peft_type: LOHA, target_modules: [fc1]}`."""

import dataclasses
import difflib
import warnings
from dataclasses import dataclass, field

from peft import PeftConfig, PeftType

from ..base.errors import one_line
from ..base.parsing import mapping_argument
from ..models import LongTailClassifier
from ..models.peft_adapter import NOT_REPEATABLE, adapter_types, check_adapter_fields
from .registry import PEFT, CommonOptions, register_tuning

EXAMPLE = {"peft_type": "LOHA", "target_modules": ["fc1"]}


@dataclass
class PeftOptions(CommonOptions):
    """Of any other adapter of peft.

    Args:
        peft_config (`dict`, or `str` of JSON, *optional*): What the method peft puts around the backbone: `peft_type`
            and the fields of that configuration of the peft library.
    """

    peft_config: dict | str | None = field(
        default=None,
        metadata={"help": "Configuration of the tuning method peft: peft_type and its fields."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_config = mapping_argument("peft_config", self.peft_config, example=EXAMPLE)


@register_tuning("peft", stage=PEFT, options=PeftOptions)
def peft(model: LongTailClassifier, options: PeftOptions) -> None:
    """The adapter that `peft_config` describes.

    Raises:
        ValueError: If it is missing, or does not describe one that fits the backbone.
    """
    config = read_peft_config(options.peft_config)
    try:
        model.wrap_backbone(config)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"peft_config with peft_type {PeftType(config.peft_type).value!r} does not fit the backbone "
            f"'{model.config.backbone}': {one_line(error)}; correct its fields."
        ) from error


def read_peft_config(described: dict | str | None) -> PeftConfig:
    """A configuration of the peft library from a mapping.

    Args:
        described (`dict`, or `str` of JSON, *optional*): "peft_type", in any case, and fields of that type.

    Raises:
        ValueError: If it is no mapping or names no type, the type or a field is unknown, or a value is refused by
            peft.
    """
    known, fields = adapter_types(), dict(mapping_argument("peft_config", described, example=EXAMPLE) or {})
    named = fields.pop("peft_type", "")
    kind = str(named).upper()
    if kind not in known:
        given = f"names the peft_type {named!r}" if kind else "names no peft_type"
        raise ValueError(
            f"The tuning method 'peft' reads peft_config, which {given}; set it to one that adapts a vision model: "
            f"{', '.join(sorted(known))}."
        )
    config = known[kind]
    names = [f.name for f in dataclasses.fields(config) if f.init]
    for name in fields:
        if name not in names:
            nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)[0]
            raise ValueError(f"peft_config has the unknown field {name!r} for {kind}; did you mean {nearest!r}?")
    check_adapter_fields({n: v for n, v in fields.items() if n != "init_lora_weights"}, where="peft_config")
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(NOT_REPEATABLE):
        raise ValueError(
            f"peft_config sets init_lora_weights to {start!r}, a start that loading could not repeat; choose 'pissa', "
            "'olora', 'gaussian' or 'orthogonal', or leave it out."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return config(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"peft_config for {kind} is refused by peft: {one_line(error)}; correct it.") from error
