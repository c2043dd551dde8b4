"""`LongTailClassifier`: a pretrained backbone, what is tuned of it, and a head, as one transformers model."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS_NAME
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from ..base.files import atomic_dir
from .backbones import (
    BackboneFamily,
    check_image_size,
    choose_family,
    find_family,
    is_pretrained,
    load_backbone,
)
from .checkpoints import check_has_weights, find_folder, load_tensors, save_tensors
from .classifier_config import MULTI_LABEL, LongTailClassifierConfig
from .heads import HEADS, full_precision_logits, make_head
from .inserted import add_inserted, choose_inserted, read_inserted
from .peft_adapter import read_adapter_config, save_peft_adapter, wrap_with_peft
from .precision import raise_to_float32
from .saved_config import damage_as_value_error, read_object, read_saved_config
from .text_head import TextHead

TEXT_MODEL = "head.tower.model"  # the text tower of a `TextHead`, where there is one
TEXT_ADAPTER_FOLDER = "text_adapter"


class LongTailClassifier(PreTrainedModel):
    """Backbone features and a classification head.

    Build one with `from_backbone`, choose what of it trains with `ft_focalsam.tuning.apply_tuning`, load a saved one
    with `from_pretrained`. The head and what is inserted are float32 whatever the dtype of the backbone.

    Args:
        config (`LongTailClassifierConfig`): See there.
        backbone (`nn.Module`): The vision model, or a `PeftModel` around it.
    """

    config_class = LongTailClassifierConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    batch_norm_eval = False  # set by `keep_batch_norms_in_eval`

    def __init__(self, config: LongTailClassifierConfig, backbone: nn.Module):
        super().__init__(config)
        self.backbone = backbone
        self.neck: nn.Module = nn.Identity()  # between the two, for what is inserted there
        self.head = make_head(
            config.head,
            config.feature_size,
            config.num_labels,
            scale=config.head_scale,
            options=config.head_options,
        )

    @classmethod
    def from_backbone(
        cls,
        backbone: str,
        class_names: Sequence[str],
        *,
        head: str = "cosine",
        head_scale: float = 25.0,
        head_options: dict | None = None,
        image_size: int | None = None,
        dtype: str = "float32",
        features: str | None = None,
        multi_label: bool = False,
    ) -> "LongTailClassifier":
        """A new classifier: the pretrained backbone, frozen, with a random head to train.

        Args:
            backbone (`str`): Hub name or path of a model of transformers, "tiny_clip", or the name of a model of
                another library behind its prefix: "timm:..." or "open_clip:..."; "scratch:..." for random weights.
            class_names (sequence of `str`): One name a class, in the order of the labels.
            head (`str`): "linear", "cosine", "l2_normalized" or "layer_norm".
            head_scale (`float`, > 0): Scale of the heads that have one, all but "linear".
            head_options (`dict`, *optional*): Hyperparameters of a head that has others, by name.
            image_size (`int`, *optional*): Side of the images in pixels; by default the backbone's own.
            dtype (`str`): Of the backbone's weights: "float32", "bfloat16" or "float16".
            features (`str`, *optional*): "cls", "mean" or "pooler": which output of the backbone is the feature vector
                of an image, if not the usual one; needed for architectures that are not in `BACKBONE_FAMILIES`.
            multi_label (`bool`): Whether an image may have several classes, each with a probability by the sigmoid of
                its logit; `problem_type` of the config says so.

        Raises:
            ValueError: If a choice is unknown or out of range, the architecture is not supported, or its patches do
                not fill images of `image_size`.
            OSError: If the backbone can neither be found locally nor fetched.
        """
        HEADS.choose(head)
        if not head_scale > 0:
            raise ValueError(f"head_scale is {head_scale}; set it above 0.")
        _check_class_names(class_names)
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size is {image_size}; set it to 1 pixel or more, or leave it out.")
        dtype = str(dtype).removeprefix("torch.")
        architecture, family = find_family(backbone, features)
        model = load_backbone(backbone, dtype=dtype, features=features, image_size=image_size)
        if image_size is not None:
            check_image_size(family, model, image_size)
        config = LongTailClassifierConfig(
            backbone=backbone,
            backbone_family=architecture,
            backbone_features=features,
            feature_size=family.feature_size(model),
            head=head,
            head_scale=head_scale,
            head_options=head_options or None,
            image_size=image_size,
            backbone_dtype=dtype,
            id2label=dict(enumerate(class_names)),
            label2id={name: index for index, name in enumerate(class_names)},
            problem_type=MULTI_LABEL if multi_label else None,
        )
        return cls(config, model)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes."""
        return self.config.problem_type == MULTI_LABEL

    @property
    def family(self) -> BackboneFamily:
        """What the backbone is one of."""
        config = self.config
        return choose_family(config.backbone_family, config.backbone_features, backbone=config.backbone)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Feature vectors of images, as the backbone gives them: normalised (B, 3, H, W) to (B, D)."""
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"The images are {pixel_values.dtype}, and the model takes normalised floats; let the transform or "
                "`ByteCollator.finish` normalise them."
            )
        pixel_values = pixel_values.to(getattr(torch, self.config.backbone_dtype))
        return self.family.features(self.backbone, pixel_values, resized=self.config.image_size is not None)

    def features(self, pixel_values: Tensor | None = None, *, image_features: Tensor | None = None) -> Tensor:
        """Feature vectors of images, as the head gets them, shape (B, D).

        Args:
            pixel_values (`Tensor` of shape (B, 3, H, W), *optional*): The images.
            image_features (`Tensor` of shape (B, D), *optional*): What `image_features` gave for them, instead.
        """
        return self.neck(self.image_features(pixel_values) if image_features is None else image_features)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        image_features: Tensor | None = None,
    ) -> ImageClassifierOutput:
        """Logits of shape (B, C) of images, or of their features as in `features`; with `labels` of shape (B,) also
        their mean cross-entropy, for several classes an image, shape (B, C), their mean binary cross-entropy."""
        features = self.features(pixel_values, image_features=image_features)
        is_text = isinstance(self.head, TextHead)
        logits = self.head(features) if is_text else full_precision_logits(self.head, features)
        loss = None
        if labels is not None and self.is_multi_label:
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        elif labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def train(self, mode: bool = True) -> "LongTailClassifier":
        """As of every module, but for batch normalisation that is kept in evaluation mode."""
        super().train(mode)
        if self.batch_norm_eval:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        """Activation checkpointing of the backbone, by the switch of its library."""
        if not self.family.set_gradient_checkpointing(self.backbone, enable):
            super()._set_gradient_checkpointing(enable, *args, **kwargs)

    def get_input_embeddings(self) -> None:
        """None: images are no tokens that are looked up."""

    # ---- what is added to the backbone ----

    def check_is_new(self) -> None:
        """Raise a `ValueError` where the backbone has a PEFT adapter or inserted modules."""
        names = self._inserted_names()
        if isinstance(self.backbone, PeftModel):
            names.insert(0, self.backbone.active_peft_config.peft_type.value.lower())
        if names:
            names = " and ".join(names)
            raise ValueError(f"The classifier is tuned already, by {names}; start from a new one: from_backbone.")

    def _inserted_names(self) -> list[str]:
        return [name for name, _ in read_inserted(self.config.inserted, source=self.config.backbone)]

    def insert(self, name: str, **settings) -> None:
        """Put new modules, trainable and in float32, into the model, and note in `config` how to do so again.

        Args:
            name (`str`): A name in `INSERTED_MODULES`.
            **settings: What the function of that name takes; kinds of values that JSON has.

        Raises:
            ValueError: If the name is unknown, or the backbone has modules of that name or cannot take them.
        """
        insert = choose_inserted(name)
        refused = self.family.unsupported(self.backbone)
        if name in refused:
            raise ValueError(f"The backbone takes no {name}: it {refused[name]}; choose another tuning method.")
        if name in self._inserted_names():
            raise ValueError(f"The backbone has modules of the kind {name!r} already; insert each kind once.")
        device = next(self.backbone.parameters()).device
        insert(self, **settings)
        self.to(device)
        self.config.inserted = add_inserted(self.config.inserted, name, settings)

    def wrap_backbone(self, config: PeftConfig) -> None:
        """Put a PEFT adapter, in float32, around the backbone; what trains of the backbone goes on training."""
        self.backbone = wrap_with_peft(self.backbone, config, base=self.config.backbone)

    # ---- saving and loading: what was trained, and the head, without the backbone ----

    def trained_state_dict(self) -> dict[str, Tensor]:
        """The head, every parameter that was trained, and the running statistics of batch normalisation, which move in
        training, by their names; of a `TextHead`, what is tuned of it; of a backbone with random weights, all."""
        if not is_pretrained(self.config.backbone_family):
            return self.state_dict()
        names = {name for name, p in self.named_parameters() if p.requires_grad or _is_of_head(name)}
        for place, module in self.named_modules():
            if isinstance(module, _BatchNorm):
                names |= {f"{place}.{name}" for name, _ in module.named_buffers(recurse=False)}
        return {name: value for name, value in self.state_dict().items() if name in names}

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        """The frozen weights: what the Trainer need not miss in a checkpoint of this model."""
        return set(self.state_dict()) - set(self.trained_state_dict())

    @_keys_to_ignore_on_save.setter
    def _keys_to_ignore_on_save(self, value) -> None:
        """Follows from what is trained; PreTrainedModel's own assignment changes nothing."""

    def save_pretrained(self, save_directory, is_main_process: bool = True, state_dict=None, **kwargs) -> None:
        """Save what `from_pretrained` needs to give the same logits again.

        `config.json` and `model.safetensors` hold the head and everything that was trained, inserted modules included;
        where PEFT tuned the backbone, its adapter is also written in PEFT's own format, for
        `PeftModel.from_pretrained` on the backbone; that of the text tower goes to the folder `text_adapter`.

        Args:
            save_directory (`str` or path): The folder; it is made where it does not exist. Files get their names when
                all are written.
            is_main_process (`bool`): Only the main process writes.
            state_dict (mapping, *optional*): Weights by name, if not the model's own.
        """
        if not is_main_process:
            return
        trained = self.trained_state_dict()
        if state_dict is not None:
            trained = {name: state_dict[name] for name in trained}
        self.config.architectures = [type(self).__name__.removeprefix("FSDP")]  # fully_shard makes a subclass
        # All of it, for peft to pick its own: that may be more than what trains.
        values = self.state_dict() if state_dict is None else state_dict
        with atomic_dir(save_directory) as folder:
            self.config.save_pretrained(folder)
            save_tensors(trained, folder / SAFE_WEIGHTS_NAME)
            self._save_adapters(values, folder)

    def _save_adapters(self, values: Mapping[str, Tensor], folder: Path) -> None:
        modules = dict(self.named_modules())
        for place, adapter_folder in (("backbone", folder), (TEXT_MODEL, folder / TEXT_ADAPTER_FOLDER)):
            adapted = modules.get(place)
            if isinstance(adapted, PeftModel):
                own = {n.removeprefix(f"{place}."): v for n, v in values.items() if n.startswith(f"{place}.")}
                save_peft_adapter(adapted, own, adapter_folder)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, *, backbone: str | None = None, revision: str | None = None
    ) -> "LongTailClassifier":
        """Load a saved classifier, in evaluation mode.

        Args:
            folder (`str` or path): What `save_pretrained` wrote, or the name of a Hub repository that holds it.
            backbone (`str`, *optional*): Where the backbone is now, if not under the name it had when saved.
            revision (`str`, *optional*): Branch, tag or commit of the Hub repository.

        Raises:
            FileNotFoundError: If the folder has no such checkpoint, or the backbone is gone.
            ValueError: If a file is damaged or not of this model, or it has inserted modules that this version of the
                package does not know.
        """
        path = find_folder(folder, revision=revision)
        check_has_weights(path, source=folder, revision=revision)
        saved = read_saved_config(path, source=str(folder))
        with damage_as_value_error(str(folder)):
            return cls._load(path, saved, backbone, source=str(folder)).eval()

    @classmethod
    def before_training(cls, folder: str | os.PathLike, *, revision: str | None = None) -> "LongTailClassifier":
        """A saved classifier as it was before anything trained, in evaluation mode: the pretrained backbone with what
        was put into it at its start. The head is random, and so is what starts at random.

        Args and errors as for `from_pretrained`.
        """
        path = find_folder(folder, revision=revision)
        check_has_weights(path, source=folder, revision=revision)
        saved = read_saved_config(path, source=str(folder))
        with damage_as_value_error(str(folder)):
            model = cls._build(path, saved, None, source=str(folder))
            trained = load_tensors(path / SAFE_WEIGHTS_NAME, model.state_dict())
            raise_to_float32(model, [name for name, _ in model.named_parameters() if name in trained])
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in trained)
        return model.eval()

    @classmethod
    def _load(cls, path: Path, saved: dict[str, Any], backbone: str | None, *, source: str) -> "LongTailClassifier":
        model = cls._build(path, saved, backbone, source=source)
        model.load_trained(load_tensors(path / SAFE_WEIGHTS_NAME, model.state_dict()), source=source)
        # For what peft saves and does not train.
        if (path / ADAPTER_CONFIG_NAME).is_file() and (path / ADAPTER_WEIGHTS_NAME).is_file():
            own = get_peft_model_state_dict(model.backbone, save_embedding_layers=False)
            set_peft_model_state_dict(model.backbone, load_tensors(path / ADAPTER_WEIGHTS_NAME, own))
        return model

    @classmethod
    def _build(cls, path: Path, saved: dict[str, Any], backbone: str | None, *, source: str) -> "LongTailClassifier":
        """The modules of a saved classifier, without what was trained."""
        config = LongTailClassifierConfig(**saved)
        config.backbone = backbone or config.backbone
        inserted, config.inserted = read_inserted(config.inserted, source=source), None
        try:
            loaded = load_backbone(
                config.backbone,
                dtype=config.backbone_dtype,
                features=config.backbone_features,
                image_size=config.image_size,
            )
            model = cls(config, loaded)
        except OSError as error:
            raise FileNotFoundError(f"{error} '{source}' needs it; set backbone= to where it is now.") from error
        if (path / ADAPTER_CONFIG_NAME).is_file():
            content = read_object(path / ADAPTER_CONFIG_NAME)
            model.wrap_backbone(read_adapter_config(content, where=f"{ADAPTER_CONFIG_NAME} of '{source}'"))
        for name, settings in inserted:
            model.insert(name, **settings)
        return model

    def load_trained(self, tensors: dict[str, Tensor], *, source: str) -> None:
        """Take over saved weights and tune them from here on; the others stay as they are, frozen.

        Weights that were saved in float32 are held in float32, also where the backbone is in half precision.

        Raises:
            ValueError: If the head or the adapter is missing or a name or a shape is not this model's.
        """
        own = self.state_dict()
        wrong = [name for name, value in tensors.items() if name not in own or own[name].shape != value.shape]
        wrong += [name for name in self.trained_state_dict() if name not in tensors]
        if wrong:
            raise ValueError(
                f"The weights in '{source}' do not fit the model at {wrong[0]!r} (and {len(wrong) - 1} others); was "
                "another backbone or another head saved there?"
            )
        names = dict(self.named_parameters())
        raise_to_float32(self, [n for n, value in tensors.items() if value.dtype == torch.float32 and n in names])
        self.load_state_dict(tensors, strict=False)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in tensors)


def _check_class_names(names: Sequence[str]) -> None:
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    if not is_list or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names is {names!r}; give a list of one name per class, in the order of the labels.")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"class_names has '{name}' {count} times; give each class its own name.")


def _is_of_head(name: str) -> bool:
    """Whether a parameter belongs to the head, and not to a text tower that the head has inside."""
    return name.startswith("head.") and not name.startswith("head.tower.")
