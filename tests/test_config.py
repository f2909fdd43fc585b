"""A config as a plain dict becomes a RunConfig, or one sentence."""

import importlib
import json
import math
from typing import Any

import pytest

from bcvit_jax.config import RunConfig, differences, from_dict, to_dict
from bcvit_jax.errors import UserError
from configs import base


def values(**changes: Any) -> dict[str, Any]:
    """configs/base.py with some fields changed; `optimizer__decay` is a field of a group."""
    config = base.get_config().to_dict()
    for name, value in changes.items():
        group, _, field = name.rpartition("__")
        (config[group] if group else config)[field] = value
    return config


def test_what_a_config_leaves_open_is_left_to_the_network_name():
    config = from_dict(values())
    assert "width" not in config.model
    assert all(value is not None for value in config.model.values())
    assert config.folds == (0, 1, 2, 3, 4)


def test_comes_back_from_json():
    config = from_dict(values(model__stem=(32, 64), folds=[1]))
    saved = json.loads(json.dumps(to_dict(config)))
    assert from_dict(saved) == config
    assert differences(saved, config) == []


def test_whole_numbers_serve_as_numbers():
    config = from_dict(values(optimizer__learning_rate=1))
    assert isinstance(config.optimizer.learning_rate, float)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": "ten"}, "config.epochs is 'ten'; it must be a number"),
        ({"epochs": True}, "config.epochs is True; it must be a number"),
        ({"epochs": None}, "config.epochs is None; it must be a number"),
        ({"epochs": 0}, "config.epochs is 0.0; it must be above 0"),
        ({"epochs": math.inf}, "config.epochs is inf; it must be above 0"),
        ({"batch_size": 2.0}, "config.batch_size is 2.0; it must be a whole number"),
        ({"title": 3}, "config.title is 3; it must be text"),
        ({"distributed": 1}, "config.distributed is 1; it must be True or False"),
        ({"folds": ()}, "config.folds is (); it must name at least one fold"),
        ({"folds": ("a",)}, "config.folds is ('a',); it must hold only whole numbers"),
        ({"batch_size": -8}, "config.batch_size is -8; it must be at least 1"),
        ({"seed": -1}, "config.seed is -1; it must lie in [0, 2**31)"),
        ({"log_steps": 0}, "config.log_steps is 0"),
        ({"checkpoint_epochs": 0.0}, "config.checkpoint_epochs is 0.0; it must be above 0"),
        ({"data": 3}, "config.data is 3; it must be a group of fields"),
        ({"data__hue": 0.7}, "config.data.hue is 0.7; it must lie in [0, 0.5]"),
        ({"data__augment": {"jpeg": 99}}, "config.data.augment.jpeg is 99; it must lie in [0, 95]"),
        ({"data__augment": {"zoom": (1.4, 0.7)}}, "augment.zoom is (1.4, 0.7); it must be two num"),
        ({"data__augment": {"noise": "much"}}, "config.data.augment.noise is 'much'; it must be a"),
        ({"data__augment": {"zom": 1}}, "no field config.data.augment.zom; did you mean zoom?"),
        ({"optimiser": 1}, "no field config.optimiser; did you mean optimizer?"),
        ({"data__pth": "x"}, "no field config.data.pth; did you mean path?"),
        ({"optimizer__name": "adam"}, "config.optimizer.name is 'adam'; it must be sgd, "),
        ({"optimizer__schedule": "step"}, "config.optimizer.schedule is 'step'; it must be mile"),
        ({"optimizer__learning_rate": -1.0}, "config.optimizer.learning_rate is -1.0; it must be"),
        ({"optimizer__learning_rate": float("nan")}, "config.optimizer.learning_rate is nan"),
        ({"optimizer__learning_rate": float("inf")}, "config.optimizer.learning_rate is inf"),
        ({"optimizer__momentum": 1.0}, "config.optimizer.momentum is 1.0; it must lie in [0, 1)"),
        ({"optimizer__milestones": (70, 40)}, "milestones is (70, 40); it must be rising epochs"),
        ({"optimizer__warmup_epochs": 100}, "it must lie in [0, epochs), and epochs is 100"),
        ({"optimizer__clip_norm": -1}, "config.optimizer.clip_norm is -1.0; it must be 0 (off)"),
        ({"loss__alpha": 2.0}, "config.loss.alpha is 2.0; it must be a cosine, in [-1, 1]"),
        ({"loss__label_smoothing": 1.0}, "config.loss.label_smoothing is 1.0; it must lie in"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(changes, sentence):
    with pytest.raises(UserError) as error:
        from_dict(values(**changes))
    assert sentence in str(error.value)


def test_what_must_be_given():
    with pytest.raises(UserError, match="config lacks title, model, data"):
        from_dict({})


def test_differences_name_what_decides_the_result():
    old = to_dict(from_dict(values()))
    new = from_dict(values(epochs=3, model__width=64, folds=(0,), data__threads=1, title="other"))
    assert differences(old, new) == [
        "epochs is 100.0 there and 3.0 here",
        "model.width is None there and 64 here",
    ]


def test_a_field_that_came_later_has_its_default():
    old = to_dict(from_dict(values()))
    del old["loss"]["label_smoothing"], old["train_folds"], old["data"]["augment"]
    assert differences(old, from_dict(values())) == []
    other = from_dict(values(data__augment={"zoom": (0.7, 1.4)}))
    assert differences(old, other) == ["data.augment.zoom is [1.0, 1.0] there and [0.7, 1.4] here"]


def test_run_config_is_frozen():
    config = from_dict(values())
    assert isinstance(config, RunConfig)
    with pytest.raises(AttributeError):
        config.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_settings_of_older_versions_are_read_unless_even_stain_was_on():
    values = importlib.import_module("configs.pbc10").get_config("plain").to_dict()
    assert from_dict({**values, "data": {**values["data"], "even_stain": False}}) == from_dict(
        values
    )
    with pytest.raises(UserError, match="the run was trained on pictures with even_stain"):
        from_dict({**values, "data": {**values["data"], "even_stain": True}})
