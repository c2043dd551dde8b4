"""The formats of other programs."""

from .onnx_export import export_onnx
from .open_clip_export import export_open_clip
from .transformers_export import export_transformers

# By the name that users write: (classifier, folder to make, image_processor=None) -> None. A new format is one entry.
FORMATS = {"transformers": export_transformers, "open_clip": export_open_clip, "onnx": export_onnx}
