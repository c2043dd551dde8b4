"""To an ONNX graph, with any head and any tuning: images of shape (B, 3, H, W) in, logits of shape (B, C) out."""

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, BaseImageProcessor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..base.files import check_is_free, new_folder
from ..models import LongTailClassifier
from .check import check_same, logits_of, random_images
from .merge import in_float32, merge
from .preprocessing import preprocessing_of, to_json

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
BATCHES = (1, 3)  # of the comparison; the graph is traced with another one
ONE_FILE_BYTES = 2**31 - 2**24  # what a file of protobuf may have, and room for the graph
OPSET = 18

# transformers leaves a mask out that masks nothing, but not while it is traced, and the mask it makes then is of the
# tokens without prompts. A vision tower attends to all of its tokens.
UNMASKED = "sdpa_unmasked"
AttentionInterface.register(UNMASKED, sdpa_attention_forward)
AttentionMaskInterface.register(UNMASKED, lambda *args, **kwargs: None)


def export_onnx(
    model: LongTailClassifier, folder: str | os.PathLike, *, image_processor: BaseImageProcessor | None = None
) -> None:
    """Write model.onnx, with the labels, the kind of problem and the preprocessing in model.json.

    What can be folded into plain weights is. The size of a batch is free, that of the images is the one of training.

    Args:
        model (`LongTailClassifier`): A tuned classifier.
        folder (`str` or path): The folder to make.
        image_processor (`BaseImageProcessor`, *optional*): As in `export_transformers`.

    Raises:
        ValueError: If a package is missing, or the graph does not give the logits of the classifier.
        OSError: If the folder exists and is not empty, or the backbone has no image processor.
    """
    check_is_free(folder)
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"Exporting to onnx needs the package {missing[0]}; install it by pip install 'ft-focalsam[onnx]'."
        )
    preprocessing = preprocessing_of(model, image_processor)
    try:
        plain = merge(model, keep=True)
    except ValueError:  # an adapter that peft cannot merge, or a layer without bias that takes no shift
        plain = in_float32(model)
    _leave_masks_out(plain.requires_grad_(False).backbone)
    size = preprocessing.output_size
    note = {
        "input": {"name": "pixel_values", "shape": ["batch", 3, *size], "dtype": "float32"},
        "output": {"name": "logits", "shape": ["batch", plain.config.num_labels], "dtype": "float32"},
        "problem_type": plain.config.problem_type or "single_label_classification",
        "labels": [plain.config.id2label[index] for index in range(plain.config.num_labels)],
        "preprocessing": to_json(preprocessing),
    }
    with new_folder(folder) as path:
        write_graph(plain, path / "model.onnx", random_images(plain, size=size))
        (path / "model.json").write_text(json.dumps(note, indent=2, ensure_ascii=False), encoding="utf-8")
        for count in BATCHES:
            images = random_images(plain, count=count, size=size)
            check_same(
                logits_of(plain, images),
                run_graph(path / "model.onnx", images),
                what=f"the ONNX graph, for {count} images,",
                remedy="this backbone cannot be exported to onnx",
            )


def _leave_masks_out(backbone: nn.Module) -> None:
    for config in {id(m.config): m.config for m in backbone.modules() if hasattr(m, "config")}.values():
        if getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = UNMASKED


class _Logits(nn.Module):
    """A classifier with a tensor as its output."""

    def __init__(self, model: LongTailClassifier):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).logits


def write_graph(model: LongTailClassifier, path: Path, images: Tensor) -> None:
    """Trace a classifier and write its graph.

    Args:
        images (`Tensor` of shape (B, 3, H, W)): What it is traced with; B is free in the graph.

    Raises:
        ValueError: If it cannot be traced.
    """
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    try:
        with _quiet():
            torch.onnx.export(
                _Logits(model).eval(),
                (images,),
                path,
                input_names=["pixel_values"],
                output_names=["logits"],
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                dynamo=True,
                external_data=size > ONE_FILE_BYTES,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(
            f"torch cannot export the backbone '{model.config.backbone}' to onnx: "
            f"{' '.join(str(error.__cause__ or error).split())[:300]}."
        ) from error


def run_graph(path: Path, images: Tensor) -> Tensor:
    """Logits of shape (B, C) by onnxruntime, on the CPU.

    Raises:
        ValueError: If the size of the batch is fixed in the graph.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    if isinstance(batch, int):
        raise ValueError(
            f"The ONNX graph takes batches of {batch} images only, as a module of the classifier fixes their number "
            "when it is traced (by len(x) in the place of x.shape[0]); correct that module."
        )
    return torch.from_numpy(session.run(["logits"], {"pixel_values": images.numpy()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter and the optimiser of graphs say of their steps."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
