from .attention import (
    ATTENTION_IMPLEMENTATIONS as ATTENTION_IMPLEMENTATIONS,
)
from .attention import (
    set_attention as set_attention,
)
from .backbones import (
    BACKBONE_FAMILIES as BACKBONE_FAMILIES,
)
from .backbones import (
    LIBRARIES as LIBRARIES,
)
from .backbones import (
    BackboneFamily as BackboneFamily,
)
from .backbones import (
    TextTower as TextTower,
)
from .backbones import (
    TransformersFamily as TransformersFamily,
)
from .backbones import (
    choose_family as choose_family,
)
from .backbones import (
    load_backbone as load_backbone,
)
from .backbones import (
    load_image_processor as load_image_processor,
)
from .backbones import (
    load_text_tower as load_text_tower,
)
from .backbones import (
    register_library as register_library,
)
from .batch_norm import (
    keep_batch_norms_in_eval as keep_batch_norms_in_eval,
)
from .classifier import (
    LongTailClassifier as LongTailClassifier,
)
from .classifier_config import (
    LongTailClassifierConfig as LongTailClassifierConfig,
)
from .encoding import (
    encode_images as encode_images,
)
from .feature_cache import (
    FeatureCache as FeatureCache,
)
from .head_start import (
    HEAD_STARTS as HEAD_STARTS,
)
from .head_start import (
    choose_head_start as choose_head_start,
)
from .head_start import (
    class_means as class_means,
)
from .head_start import (
    collect_features as collect_features,
)
from .head_start import (
    init_head as init_head,
)
from .heads import (
    HEADS as HEADS,
)
from .heads import (
    register_head as register_head,
)
from .image_classifier import (
    ImageClassifier as ImageClassifier,
)
from .inserted import (
    INSERTED_MODULES as INSERTED_MODULES,
)
from .inserted import (
    register_inserted as register_inserted,
)
from .linear_probe import (
    fit_linear_probe as fit_linear_probe,
)
from .loading import (
    Classifier as Classifier,
)
from .loading import (
    is_zero_shot as is_zero_shot,
)
from .loading import (
    load_classifier as load_classifier,
)
from .text import (
    prompt_names as prompt_names,
)
from .text import (
    read_prompt_names as read_prompt_names,
)
from .text import (
    text_features as text_features,
)
from .text_head import (
    TextHead as TextHead,
)
