"""Every file in configs/, in every variant: its network, its train step, without computing."""

import dataclasses
import importlib
import inspect
import json
import re
from collections import Counter
from pathlib import Path

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from bcvit_jax.appearance import OFF
from bcvit_jax.config import RunConfig, from_dict, recipe, to_dict
from bcvit_jax.costs import of_network
from bcvit_jax.models import BCViTConfig, MaskedAutoencoderConfig
from bcvit_jax.program import abstract_batch, make_mesh, make_program, network_config
from configs import ablations, base

pytestmark = pytest.mark.usefixtures("strict_ranks")

FOLDER = Path(base.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
CLASSES = 10


def get_config(name: str, variant: str = ""):
    function = importlib.import_module(f"configs.{name}").get_config
    return function(variant) if variant else function()


def variants(name: str) -> list[str]:
    """The default and those that the error about an unknown one names."""
    function = importlib.import_module(f"configs.{name}").get_config
    if not inspect.signature(function).parameters:
        return [""]
    with pytest.raises(ValueError, match="it knows") as caught:
        function("no such variant")
    known = str(caught.value).partition("it knows ")[2].partition(";")[0]
    return ["", *re.findall(r"\w+", known.replace(" and ", " ").replace(" or ", " "))]


ALL = [(name, variant) for name in NAMES for variant in variants(name)]
ALL += [("pbc10", "short,plain"), ("baselines", "resnet18,groupnorm,short,minutes")]
ALL += [("ablations", "short,leaky"), ("ablations", "pbc10,vit")]


def run_config(name: str, variant: str = "", **model) -> RunConfig:
    config = get_config(name, variant)
    for field, value in model.items():
        config.model[field] = value
    return from_dict(config.to_dict())


def test_all_are_found():
    some = {("base", ""), ("base", "literal"), ("pbc10", ""), ("pbc10", "plain")}
    assert some <= set(ALL)


@pytest.mark.parametrize(("name", "variant"), ALL, ids=[":".join(both).strip(":") for both in ALL])
def test_init_and_train_step_fit_together(name, variant):
    config = run_config(name, variant)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    program = make_program(config, CLASSES, steps_per_epoch=100.0, steps=1000, mesh=make_mesh())
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(program.init, key)
    batch = abstract_batch(config.batch_size, program.model.image_size)
    after, metrics = jax.eval_shape(program.train_step, state, batch, key)

    def shape_and_type(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    assert shape_and_type(after) == shape_and_type(state)
    assert {(x.shape, str(x.dtype)) for x in metrics.values()} == {((), "float32")}
    b = config.eval_batch_size
    images = abstract_batch(b, program.model.image_size)["image"]
    logits, kept = jax.eval_shape(program.predict_step, state.variables, images)
    if config.mae.ratio:  # pictures, before and after
        assert logits.shape == kept.shape == images.shape
        return
    assert (logits.shape, kept.shape) == ((b, CLASSES), (b, program.model.num_kept))


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_gives_the_command(name):
    words = importlib.import_module(f"configs.{name}").__doc__ or ""
    assert f"python -m bcvit_jax.main --config=configs/{name}.py" in words
    for variant in variants(name)[1:]:
        assert f"{name}.py:{variant}" in words or f":{variant}`" in words


def lowered_for_cuda(dtype: str) -> str:
    """The paper's train step as XLA would get it on a GPU."""
    config = run_config("base", dtype=dtype)
    program = make_program(config, CLASSES, steps_per_epoch=100.0, steps=1000, mesh=make_mesh())
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(program.init, key)
    traced = program.train_step.trace(state, abstract_batch(32, 224), key)  # pyright: ignore
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.fixture
def on_gpu(monkeypatch):
    """What asks for the kind of device is told that it is a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def test_the_papers_train_step_lowers_for_cuda(on_gpu):
    text = lowered_for_cuda("float32")
    assert "tensor<32x325x2304xf32>" in text  # q, k and v of all 325 tokens
    assert "tensor<32x13x768xf32>" in text  # what the twelfth block makes of the thirteen kept ones
    assert "cudnn" not in text  # which has no fused attention in float32


def test_in_bfloat16_every_block_calls_cudnns_fused_attention(on_gpu, monkeypatch):
    """cuDNN is pretended: its version is all that tracing asks for."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    text = lowered_for_cuda("bfloat16")
    calls = Counter(re.findall(r"@(__cudnn\$\w+)", text))
    # The block that the loop runs eleven times; of the others few tokens are asked for.
    assert calls == {"__cudnn$fmhaSoftmax": 1, "__cudnn$fmhaSoftmaxBackward": 1}
    assert not re.findall(r"tensor<32x12x(\d\d+)x\1x", text)  # no attention map is ever made


def test_baselines_share_pbc10s_data_and_length():
    variants = ("vgg16", "efficientnet_b0,groupnorm", "resnext50_32x4d,short", "resnet18,six")
    for variant in variants:
        words = variant.split(",")
        theirs = to_dict(run_config("pbc10", ",".join({"short", "six"} & set(words))))
        ours = to_dict(run_config("baselines", variant))
        for part in theirs.keys() - {"title", "model", "optimizer", "loss"}:
            assert ours[part] == theirs[part]
        assert ours["loss"] == theirs["loss"] | {"contrastive": 0.0}
        assert (ours["model"]["name"], ours["model"]["image_size"]) == (words[0], 112)
        assert ours["model"].get("norm") == ("group" if "groupnorm" in words else None)
        assert ours["model"]["dtype"] == "float32" and "stem" not in ours["model"]


def test_table_3_gives_every_network_about_the_same_minutes():
    epochs = {}
    for name in importlib.import_module("configs.baselines").variants():
        epochs[name] = run_config("baselines", f"minutes,{name}").epochs
        short = run_config("baselines", f"short,{name},minutes")
        assert short.epochs == pytest.approx(epochs[name] * 3 / 20, abs=0.01)  # a part of one too
        assert short.optimizer.warmup_epochs < short.epochs
    assert run_config("baselines", "bcvit,minutes") == run_config("pbc10")
    assert epochs["bcvit"] > epochs["resnet18"] > epochs["resnet50"] > epochs["vgg16"] == 1


def test_augmentations_take_one_kind_away_and_name_every_change():
    recipe = run_config("pbc10", "short").data
    names = importlib.import_module("configs.augmentations").variants()
    each = {name: run_config("augmentations", f"short,{name}").data for name in names}
    assert each["recipe"] == recipe
    assert run_config("augmentations", "six,light").epochs == 6
    fields = dataclasses.fields(recipe.augment)
    off = {
        name: {
            f.name
            for f in fields
            if getattr(data.augment, f.name) != getattr(recipe.augment, f.name)
        }
        for name, data in each.items()
    }
    kinds = [off[f"no_{kind}"] for kind in ("dyes", "focus", "zoom")]
    assert sum(map(len, kinds)) == len(set.union(*kinds)) == len(off["no_changes"])
    assert set.union(*kinds) == off["no_changes"]
    assert off["light"] == {f.name for f in fields} - {"share"} - off["no_changes"]
    assert off["strong_dyes"] == off["no_dyes"]
    assert not each["no_changes"].augment.recolours and not each["no_changes"].augment.degrades
    left = {name: (data.white_background, data.normalise_stain) for name, data in each.items()}
    assert left.pop("light_left") == (False, False) and left.pop("stain_left") == (True, False)
    assert set(left.values()) == {(True, True)}
    kept_scale = {name for name, data in each.items() if data.normalise_scale}
    assert each.keys() - kept_scale == {"scale_left"}


def test_what_mae_pretrains_is_the_network_of_the_config_it_is_for():
    for variant, theirs in (("", "pbc10"), ("base", "base")):
        ours, other = run_config("mae", variant), run_config(theirs)
        network = network_config(ours, CLASSES)
        assert isinstance(network, MaskedAutoencoderConfig)
        assert network.encoder == dataclasses.replace(
            network_config(other, CLASSES), selection=False
        )
        assert (network.ratio, ours.folds, ours.data.path) == (0.75, other.folds, other.data.path)
        assert ours.data.centre_crop == other.data.centre_crop
        assert ours.data.normalisation == other.data.normalisation


def test_base_is_the_papers_protocol():
    config = run_config("base")
    model = network_config(config, CLASSES)
    assert isinstance(model, BCViTConfig)
    sizes = (model.image_size, model.patch_size, model.stride, model.width, model.depth)
    assert sizes == (224, 16, 12, 768, 12)
    assert (model.heads, model.mlp_width, model.activation) == (12, 3072, "relu")
    assert (model.squeeze, model.selection_gradient) == ("max", "straight_through")
    assert (model.selection_depth, model.tokens_per_head) == ("extra", 1)
    assert (model.stem, model.drop_path) == ((), 0.0)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (optimizer.learning_rate, optimizer.schedule) == (1e-3, "milestones")
    assert (optimizer.milestones, optimizer.decay) == ((40, 70, 90), 0.1)
    assert (optimizer.warmup_epochs, optimizer.clip_norm) == (0.0, 0.0)
    assert (config.epochs, config.batch_size, config.folds) == (100, 32, (0, 1, 2, 3, 4))
    assert (config.loss.contrastive, config.loss.alpha) == (1.0, 0.4)
    assert config.loss.label_smoothing == 0.0
    data = config.data
    assert (data.path, data.balance, data.balance_target) == ("data/lmu", True, 0)
    assert data.protocol == "leak_free"
    assert not data.flips_turns
    assert (data.crop_area, data.centre_crop) == ((1.0, 1.0), 1.0)
    assert not any((data.brightness, data.contrast, data.saturation, data.hue))
    assert not any((data.mixup, data.cutmix))
    assert data.augment == OFF


def test_pbc10_plain_changes_the_pictures_and_nothing_else():
    plain, robust = (to_dict(run_config("pbc10", variant)) for variant in ("plain", ""))
    for part in plain.keys() - {"data", "title"}:
        assert plain[part] == robust[part]
    assert run_config("pbc10", "plain").data.augment == OFF
    assert len(run_config("pbc10").data.augment.changes) >= 10
    short, both = run_config("pbc10", "short"), run_config("pbc10", "short,plain")
    assert (short.epochs, both.epochs, run_config("pbc10", "plain,six").epochs) == (3, 3, 6)
    assert both.data == run_config("pbc10", "plain").data


@pytest.mark.parametrize(
    ("name", "words"), [("base", ""), ("pbc10", ""), ("pbc10", "short"), ("pbc10", "six")]
)
def test_an_ablation_changes_one_part_of_its_recipe(name, words):
    plain = network_and_recipe(run_config(name, words))
    prefix = f"{words or name}," if name == "pbc10" else ""
    expected = {
        "bcvit": {},
        "patch16_apart": {"stride": 16},
        "patch32_overlap": {"patch_size": 32, "stride": 24},
        "patch32_apart": {"patch_size": 32, "stride": 32},
        "no_contrastive": {"loss.contrastive": 0.0},
        "vit": {"stride": 16, "selection": False},
        "vit_no_contrastive": {"stride": 16, "selection": False, "loss.contrastive": 0.0},
        "no_selection": {"selection": False},
        "squeeze_mean": {"squeeze": "mean"},
        "squeeze_entropy": {"squeeze": "entropy"},
        "gradient_none": {"selection_gradient": "none"},
        "literal": {"squeeze": "mean", "selection_gradient": "none"},
        "last_block": {"selection_depth": "last"},
        "leaky": {"data.protocol": "paper"},
    }
    assert ablations.variants() == list(expected)
    for variant, changes in expected.items():
        found = network_and_recipe(run_config("ablations", prefix + variant))
        assert {key: found[key] for key in found if found[key] != plain[key]} == changes


def network_and_recipe(config: RunConfig) -> dict:
    """Every field of the network, and every other one that decides the result."""
    rest = {key: value for key, value in recipe(config).items() if not key.startswith("model.")}
    return dataclasses.asdict(network_config(config, CLASSES)) | rest


def test_the_papers_smallest_networks_have_the_sizes_that_the_file_tells():
    """7 MB and 1.18 GFLOPs, which no reading of Table 4 gives together."""
    told = {"width256": (9.45, 1.57), "width256_counted": (7.61, 1.19)}
    told |= {"width256_mlp2048": (6.83, 1.16), "depth12": (92.89, 17.66)}
    for name, (parameters, products) in told.items():
        found = of_network(run_config("sizes", name), CLASSES)
        assert (found["parameters"] / 1e6, found["macs"] / 1e9) == pytest.approx(
            (parameters, products), abs=0.005
        )


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_a_convolutional_network_costs_a_quarter_at_half_the_side(name):
    """Counted of the program as it is compiled; all but the first layer's padding scales."""
    config = run_config("baselines", name)
    half, full = (
        of_network(dataclasses.replace(config, model={**config.model, "image_size": side}), CLASSES)
        for side in (112, 224)
    )
    assert half["parameters"] == full["parameters"]
    assert 4 * half["macs"] == pytest.approx(full["macs"], rel=0.07)


@pytest.mark.parametrize("variant", ["shrt", "short,plian", "short,six"])
def test_an_unknown_variant_of_pbc10_is_named(variant):
    with pytest.raises(ValueError, match=rf"'{re.escape(variant)}'; it knows short, six"):
        get_config("pbc10", variant)


def test_literal_takes_every_literal_reading_and_nothing_else():
    configs = [run_config("base", variant) for variant in ("", "literal")]
    models = [dataclasses.asdict(network_config(config, CLASSES)) for config in configs]
    words = {"squeeze": "mean", "selection_gradient": "none"}
    assert models[1] == models[0] | words
    same = {"selection_depth": "extra", "tokens_per_head": 1, "activation": "relu", "stride": 12}
    assert same.items() <= models[1].items()
    paper, literal = (to_dict(config) for config in configs)
    for part in paper.keys() - {"model", "title"}:
        assert paper[part] == literal[part]
