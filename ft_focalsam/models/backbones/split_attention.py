"""Attention with separate projections in the place of modules that keep them in one weight.

`nn.MultiheadAttention` and open_clip's `Attention` use their weights functionally, where neither LoRA nor the
single-backward step of the package can reach them. Here q_proj, k_proj, v_proj and out_proj are linear layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SplitAttention(nn.Module):
    """Stands in for `nn.MultiheadAttention` without returned weights: softmax(q k^T / sqrt(d)) v, projected.

    Args:
        attention (`nn.MultiheadAttention`): Whose weights are taken over.

    Raises:
        ValueError: If it has parts that are not taken over (bias_k, bias_v, add_zero_attn).
    """

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        if attention.bias_k is not None or attention.bias_v is not None or attention.add_zero_attn:
            raise ValueError("The backbone has an nn.MultiheadAttention with bias_k or add_zero_attn; choose another.")
        self.num_heads = attention.num_heads
        self.dropout = attention.dropout
        self.batch_first = attention.batch_first
        if attention.in_proj_weight is not None:
            weights = attention.in_proj_weight.detach().chunk(3)
        else:
            weights = [getattr(attention, f"{name}_proj_weight").detach() for name in "qkv"]
        biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.detach().chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        out = attention.out_proj
        self.out_proj = _linear(out.weight.detach(), None if out.bias is None else out.bias.detach())

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """As `nn.MultiheadAttention`, with (B, T, D) inputs where `batch_first`, else (T, B, D); no weights.

        Raises:
            NotImplementedError: If asked for the weights, or given a padding mask.
        """
        if need_weights or key_padding_mask is not None:
            raise NotImplementedError("SplitAttention gives no attention weights and takes no padding mask.")
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if attn_mask is not None and attn_mask.ndim == 3:  # (B * heads, T, S)
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        if attn_mask is not None and attn_mask.dtype == torch.bool:  # True: not attended to
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(attn_mask, float("-inf"))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        mask = None if attn_mask is None else attn_mask.to(q.dtype)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        output = self.out_proj(output.transpose(1, 2).flatten(2))
        return (output if self.batch_first else output.transpose(0, 1)), None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer around a copy of these weights."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.clone())
    linear.bias = None if bias is None else nn.Parameter(bias.clone())
    return linear


def split_attention(model: nn.Module) -> nn.Module:
    """Put a `SplitAttention` in the place of every `nn.MultiheadAttention` of a model, in place.

    Raises:
        ValueError: If one has parts that are not taken over.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.MultiheadAttention):
                setattr(parent, name, SplitAttention(child))
    return model


def join_projections(state: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """The state dict of a model whose attention was split, under the names that it had before.

    Args:
        state (mapping): Tensors by name.
        names (`set[str]`): What the plain model calls its tensors.
    """
    joined: dict[str, Tensor] = {}
    for name in names:
        parent, _, part = name.rpartition(".")
        if name in state:
            joined[name] = state[name]
        elif part in ("in_proj_weight", "in_proj_bias"):
            kind = part.removeprefix("in_proj_")
            joined[name] = torch.cat([state[f"{parent}.{p}_proj.{kind}"] for p in "qkv"])
        else:  # q_proj_weight and so on, where the three have inputs of different sizes
            joined[name] = state[f"{parent}.{part.removesuffix('_weight')}.weight"]
    return joined
