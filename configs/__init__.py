"""Experiments, one file each; `python -m bcvit_jax.main --config=configs/NAME.py`."""
