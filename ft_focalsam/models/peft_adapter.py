"""peft around a module, without its noise; its adapters in files."""

import warnings
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from .checkpoints import save_tensors
from .precision import HALF


def wrap_with_peft(module: nn.Module, config: PeftConfig, *, base: str) -> PeftModel:
    """A PEFT adapter, in float32, around a module; what trains of the module goes on training.

    Args:
        module (`nn.Module`): Changed in place, too.
        config (`PeftConfig`): Of the adapter.
        base (`str`): Name of the pretrained model that the module is of, to be noted in the configuration.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    config.base_model_name_or_path = None  # peft would warn of a name that is not the path it was loaded from
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft's own use
        wrapped = get_peft_model(module, config)
    config.base_model_name_or_path = base
    for parameter in wrapped.parameters():
        if parameter.requires_grad and parameter.dtype in HALF:
            parameter.data = parameter.data.float()
    for parameter in trained:
        parameter.requires_grad_(True)
    return wrapped


def save_peft_adapter(model: PeftModel, state: dict[str, Tensor], folder: Path) -> None:
    """Write the adapter in PEFT's own format, for `PeftModel.from_pretrained`; `state` has the weights of `model`."""
    # Without False, peft asks the Hub whether a vocabulary was resized.
    adapter = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    model.active_peft_config.save_pretrained(folder)
    save_tensors(adapter, folder / SAFETENSORS_WEIGHTS_NAME)
