from .formats import FORMATS as FORMATS
from .merge import (
    merge as merge,
)
from .onnx_export import (
    export_onnx as export_onnx,
)
from .open_clip_export import (
    export_open_clip as export_open_clip,
)
from .transformers_export import (
    TARGETS as TARGETS,
)
from .transformers_export import (
    export_transformers as export_transformers,
)
