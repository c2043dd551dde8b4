"""`LongTailClassifierConfig`: what a saved classifier says of itself."""

from transformers import PreTrainedConfig

MULTI_LABEL = "multi_label_classification"  # the problem_type of a config, in the terms of transformers


class LongTailClassifierConfig(PreTrainedConfig):
    """What is needed to build a `LongTailClassifier` again, around its backbone.

    Args:
        backbone (`str`): Name of the backbone, as in `load_backbone`.
        backbone_family (`str`): Its architecture, as in `choose_family`.
        backbone_features (`str`, *optional*): "cls", "mean" or "pooler", as in `choose_family`.
        feature_size (`int`): D, length of a feature vector.
        head (`str`): A name in `HEADS`: "linear", "cosine", "l2_normalized" or "layer_norm".
        head_scale (`float`, > 0): Scale of the heads that have one, all but "linear".
        head_options (`dict`, *optional*): Hyperparameters of a head that has others, by name.
        image_size (`int`, *optional*): Side of the images in pixels where it is not the backbone's own.
        backbone_dtype (`str`): Of the frozen weights: "float32", "bfloat16" or "float16".
        prompt_templates, prompt_names (`list[str]`, *optional*): Prompts with {} where the class name goes, and the
            names there, where they are not those of `id2label`; what the head was started from or is computed from.
        inserted (`dict`, *optional*): What `LongTailClassifier.insert` put into the backbone, see `inserted.py`.
    """

    model_type = "long_tail_classifier"

    def __init__(
        self,
        backbone: str = "tiny_clip",
        backbone_family: str = "clip",
        feature_size: int = 64,
        head: str = "cosine",
        head_scale: float = 25.0,
        image_size: int | None = None,
        backbone_dtype: str = "float32",
        backbone_features: str | None = None,
        prompt_templates: list[str] | None = None,
        prompt_names: list[str] | None = None,
        inserted: dict | None = None,
        head_options: dict | None = None,
        **kwargs,
    ):
        self.backbone = backbone
        self.backbone_family = backbone_family
        self.feature_size = feature_size
        self.head = head
        self.head_scale = head_scale
        self.image_size = image_size
        self.backbone_dtype = backbone_dtype
        self.backbone_features = backbone_features
        self.prompt_templates = prompt_templates
        self.prompt_names = prompt_names
        self.inserted = inserted
        self.head_options = head_options
        super().__init__(**kwargs)

    @property
    def class_names(self) -> list[str]:
        """The C class names in index order, those of `id2label`."""
        return [name for _, name in sorted((self.id2label or {}).items())]
