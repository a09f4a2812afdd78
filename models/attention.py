"""Multi-head attention over whole token tensors."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(QK' / sqrt(d) + mask) V, head by head.

    Args:
        query: [B, N, heads * d], projected.
        key, value: [B, M, heads * d], projected.
        heads: number of heads.
        mask: added to the scores, broadcast to [B, heads, N, M].

    Returns:
        [B, N, heads * d].
    """
    query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value))  # [B,h,N,d]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
