"""A network's weights: to and from flat dicts of arrays, and from files of other libraries.

`load_pretrained(model, path)` puts Google's, timm's, torchvision's, Hugging Face's or this
project's pretrained weights into a network.
"""

from bcvit_jax.weights.files import read_arrays, safetensors_bytes
from bcvit_jax.weights.flat import Flat, Pretrained, from_flat, name_of, shapes, to_flat
from bcvit_jax.weights.pretrained import load_pretrained, pretrained

__all__ = [
    "Flat",
    "Pretrained",
    "from_flat",
    "load_pretrained",
    "name_of",
    "pretrained",
    "read_arrays",
    "safetensors_bytes",
    "shapes",
    "to_flat",
]
