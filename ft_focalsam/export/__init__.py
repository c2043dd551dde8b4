"""Export of a tuned classifier to other programs: one file a format, each checked against the classifier.

`merge` folds what was tuned into plain weights; `FORMATS` has the function of each format by its name.
"""

from .merge import merge
from .onnx_export import export_onnx
from .open_clip_export import export_open_clip
from .transformers_export import TARGETS, export_transformers

# By the name that users write: (classifier, folder to make, image_processor=None) -> None. A new format is one entry.
FORMATS = {"transformers": export_transformers, "open_clip": export_open_clip, "onnx": export_onnx}

__all__ = ["FORMATS", "TARGETS", "export_onnx", "export_open_clip", "export_transformers", "merge"]
