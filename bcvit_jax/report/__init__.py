"""The report of a run; `python -m bcvit_jax.report` writes it again (see __main__.py)."""
