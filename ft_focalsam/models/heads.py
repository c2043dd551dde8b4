"""Classification heads: features in, logits out. A new head is one registered class in this file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..base.registry import Registry
from ..sharpness.hyperparameters import check_hyperparameters, hyperparameters_of
from ..sharpness.per_sample import per_sample_rule

# A head is a class built as (feature_size, num_classes, scale), and by keyword with its hyperparameters, each with a
# default and a note: `power: Annotated[float, Hyperparameter("...", argument="head_power")] = 1.0`. What it needs for
# its starts (`head_start.py`):
#   start_from(vectors, length=1)  sets it up to answer by the similarity of a feature to one vector a class; `length`
#                                  is that of a feature where the vectors are of features of length 1
#   prepare(features)              what its weights multiply
#   has_bias                       whether its logits have a bias
#   start_from_fit(weight, bias)   sets it up to answer as weight @ prepare(f) + bias; bias is None without has_bias
# Its forward pass runs in float32 at least (`full_precision_logits`).
HEADS: Registry[type[nn.Module]] = Registry("head")
register_head = HEADS.register


def make_head(
    name: str, feature_size: int, num_classes: int, *, scale: float, options: Mapping[str, float] | None = None
) -> nn.Module:
    """A head by name.

    Args:
        name (`str`): One of `HEADS`.
        feature_size, num_classes (`int`): D and C.
        scale (`float`, > 0): Of its logits.
        options (mapping, *optional*): Its hyperparameters, by the names of its parameters.

    Raises:
        ValueError: If the head is unknown, it does not have an option, or one is out of range.
    """
    kind, options = HEADS.choose(name), options or {}
    known = hyperparameters_of(kind)
    for option in options:
        if option not in known:
            raise ValueError(f"The head {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}.")
    check_hyperparameters(kind, options)
    return kind(feature_size, num_classes, scale, **options)


def full_precision_logits(head: nn.Module, features: Tensor) -> Tensor:
    """Logits of a head in float32 at least, whatever autocast is on and whatever its weights are stored in.

    In bfloat16 the logits of a cosine head of scale 25 are multiples of 0.125: classes tie, and `argmax` takes the one
    of the lower index.

    Args:
        head (`nn.Module`): One of `HEADS`.
        features (`Tensor` of shape (B, D)): In any floating-point type.

    Returns:
        `Tensor` of shape (B, C).
    """
    features = at_least_float32(features)
    weights = {name: at_least_float32(p) for name, p in head.named_parameters()}
    dtype = torch.promote_types(features.dtype, next(iter(weights.values())).dtype)
    with without_autocast(features.device):
        if all(weights[name] is p for name, p in head.named_parameters()):
            return head(features.to(dtype))
        return functional_call(head, weights, features.to(dtype))


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it is in half precision, else itself."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """With autocast off inside the block; nothing where it is off already, so that exports see no change."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


@register_head("linear")
class LinearHead(nn.Linear):
    """z = W f + b. `scale` is not used."""

    has_bias = True

    def __init__(self, feature_size: int, num_classes: int, scale: float):
        super().__init__(feature_size, num_classes)

    @torch.no_grad()
    def start_from(self, vectors: Tensor, *, length: float = 1.0) -> None:
        """Nearest-prototype classifier: |f/l - v_i|^2 is least where f . v_i - l |v_i|^2 / 2 is greatest.

        Args:
            vectors (`Tensor` of shape (C, D)): v, one prototype a class.
            length (`float`, > 0): l, the length of a feature that is to be compared as one of length 1.
        """
        self.weight.copy_(vectors)
        self.bias.copy_(-length * vectors.square().sum(dim=1) / 2)

    def prepare(self, features: Tensor) -> Tensor:
        """The features as they are, shape (B, D)."""
        return features

    @torch.no_grad()
    def start_from_fit(self, weight: Tensor, bias: Tensor) -> None:
        """Take over W, shape (C, D), and b, shape (C,)."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)


@register_head("cosine")
class CosineHead(nn.Module):
    """z_i = scale * cos(f, w_i).

    Args:
        feature_size (`int`): D.
        num_classes (`int`): C.
        scale (`float`, > 0): Inverse temperature; 25 in LIFT (arXiv 2309.10019).
    """

    has_bias = False

    def __init__(self, feature_size: int, num_classes: int, scale: float):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, feature_size))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1)) * self.scale

    @torch.no_grad()
    def start_from(self, vectors: Tensor, *, length: float = 1.0) -> None:
        """Take the directions of `vectors`, shape (C, D), as class weights."""
        self.weight.copy_(F.normalize(vectors, dim=-1))

    def prepare(self, features: Tensor) -> Tensor:
        """The directions of the features, shape (B, D)."""
        return F.normalize(features, dim=-1)

    def start_from_fit(self, weight: Tensor, bias: None) -> None:
        """Take the directions of W, shape (C, D); their lengths have no place in the head."""
        self.start_from(weight)


@per_sample_rule(CosineHead)
def cosine_per_sample(head, parts, weights: Tensor, output: Tensor, features: Tensor) -> Tensor:
    """Logits of sample n for the class weights w_i + u_n e_i, whose lengths come from |w|^2, w . e and |e|^2.

    Args:
        parts (mapping): "weight" -> e, shape (C, D).
        weights (`Tensor` of shape (B,)): u.
        output (`Tensor` of shape (B, C)): Logits for w; not used, because they are not linear in w.
        features (`Tensor` of shape (B, D)): f.
    """
    w, e, u = head.weight, parts["weight"].to(head.weight.dtype), weights.to(features.dtype)[:, None]
    directions = F.normalize(features, dim=-1)
    products = F.linear(directions, w) + u * F.linear(directions, e)
    squares = w.square().sum(dim=-1) + 2 * u * (w * e).sum(dim=-1) + u.square() * e.square().sum(dim=-1)
    return products / squares.sqrt() * head.scale


@register_head("l2_normalized")
class L2NormalizedHead(nn.Module):
    """z = scale * W f / |f| + b: features on the sphere (Ranjan et al., arXiv 1703.09507), weights of any length.

    Args:
        feature_size (`int`): D.
        num_classes (`int`): C.
        scale (`float`, > 0): Radius of the sphere.
    """

    has_bias = True

    def __init__(self, feature_size: int, num_classes: int, scale: float):
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(feature_size, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.prepare(features))

    @torch.no_grad()
    def start_from(self, vectors: Tensor, *, length: float = 1.0) -> None:
        """Answer as a cosine head with `vectors`, shape (C, D), as class weights."""
        self.linear.weight.copy_(F.normalize(vectors, dim=-1))
        self.linear.bias.zero_()

    def prepare(self, features: Tensor) -> Tensor:
        """The features with the length `scale`, shape (B, D)."""
        return self.scale * F.normalize(features, dim=-1)

    @torch.no_grad()
    def start_from_fit(self, weight: Tensor, bias: Tensor) -> None:
        """Take over W, shape (C, D), and b, shape (C,)."""
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)


@register_head("layer_norm")
class LayerNormHead(nn.Module):
    """z = W layer_norm(f) + b, with a trained LayerNorm (Ba et al., arXiv 1607.06450).

    Args:
        feature_size (`int`): D.
        num_classes (`int`): C.
        scale (`float`, > 0): Of the logits when the head starts from vectors; trained from there on.
    """

    has_bias = True

    def __init__(self, feature_size: int, num_classes: int, scale: float):
        super().__init__()
        self.scale = scale
        self.norm = nn.LayerNorm(feature_size)
        self.linear = nn.Linear(feature_size, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features))

    @torch.no_grad()
    def start_from(self, vectors: Tensor, *, length: float = 1.0) -> None:
        """Answer by scale * cos(f - mean(f), v_i), where mean(f) is the mean over the D entries of f: the features are
        of length sqrt(D) behind the norm.

        Args:
            vectors (`Tensor` of shape (C, D)): v.
        """
        centred = vectors - vectors.mean(dim=-1, keepdim=True)
        self.linear.weight.copy_(F.normalize(centred, dim=-1) * self.scale / vectors.shape[-1] ** 0.5)
        self.linear.bias.zero_()

    def prepare(self, features: Tensor) -> Tensor:
        """What comes out of the norm, shape (B, D)."""
        return self.norm(features)

    @torch.no_grad()
    def start_from_fit(self, weight: Tensor, bias: Tensor) -> None:
        """Take over W, shape (C, D), and b, shape (C,)."""
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)
