"""From images to the data set that `bcvit_jax` trains on; the two share only files on disk."""
