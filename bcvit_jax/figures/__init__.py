"""The paper's figures 8 to 11 of a trained run: `python -m bcvit_jax.figures` (see __main__.py)."""
