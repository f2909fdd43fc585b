"""Where a result comes from is written down, and what is different when a run goes on."""

import re

import jax
import numpy as np

from bcvit_jax import __version__, provenance


def test_what_is_recorded():
    origin = provenance.provenance(seed=3, fingerprint="abc")
    assert (origin["bcvit"], origin["seed"]) == (__version__, 3)
    assert origin["dataset_fingerprint"] == "abc"
    assert origin["packages"]["jax"] == jax.__version__
    assert origin["packages"]["numpy"] == np.__version__
    assert len(origin["devices"]) == jax.device_count()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", origin["started"])


def test_the_commit_is_one_or_none():
    commit = provenance.commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", commit)


def test_a_continuation_adds_only_what_is_different():
    first = {"started": "1", "commit": "a", "packages": {"jax": "1"}}
    second = provenance.continued(first, first | {"started": "2"})
    third = provenance.continued(second, first | {"started": "3", "commit": "b"})
    assert third == first | {
        "continued": [{"started": "2"}, {"started": "3", "commit": "b"}],
    }
