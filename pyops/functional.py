"""The operators, named, ordered and defaulted as in `torch.nn.functional`."""

from pyops.ops.attention import scaled_dot_product_attention
from pyops.ops.linear_relu import linear, linear_relu

__all__ = ["linear", "linear_relu", "scaled_dot_product_attention"]
