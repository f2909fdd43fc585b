"""Fine-grained blood-cell recognition with an improved Vision Transformer, in JAX.

Sun, Zhu, Yang, Zeng: Blood cell image recognition based on an improved Vision Transformer,
J. Biomed. Eng. 39(6), 1097-1107, 2022, doi 10.7507/1001-5515.202203008.
"""

__version__ = "0.1.0"
