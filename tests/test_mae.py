"""Masked-autoencoder pretraining: nothing hidden is seen, only what is hidden counts, no leak."""

import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from bcvit_jax import losses
from bcvit_jax.config import MaeConfig, OptimizerConfig, RunConfig, from_dict
from bcvit_jax.data import DataConfig, open_dataset
from bcvit_jax.errors import UserError
from bcvit_jax.experiment import run as run_experiment
from bcvit_jax.fold_run import check_run
from bcvit_jax.main import main
from bcvit_jax.models import MaskedAutoencoderConfig, build, mae, model_config
from bcvit_jax.pretraining import sheet, to_pixels
from bcvit_jax.program import make_mesh, make_program, network_config
from bcvit_jax.signals import Signals, Stop
from bcvit_jax.train import to_devices
from bcvit_jax.weights import encoders, load_pretrained, pretrained, to_flat
from tests.conftest import write_dataset
from tests.networks import random_batch, random_images, tiny_config
from tests.steps_on_devices import pretraining_losses

pytestmark = pytest.mark.usefixtures("strict_ranks")

ROOT = Path(__file__).resolve().parents[1]
NETWORKS: dict[str, dict[str, Any]] = {
    "overlapping": dict(),
    "overlapping behind a stem": dict(stem=(8,), patch_size=8, stride=6),
    "not overlapping, registers": dict(stride=8, registers=2),
    "an odd overlap and a rest": dict(patch_size=7, stride=4),
}
SMALL = dict(width=32, depth=1, heads=2)
MODEL: dict[str, Any] = dict(name="bcvit_tiny_patch16_s12_128", image_size=32, patch_size=8)
MODEL |= dict(stride=6, width=32, heads=2, mlp_width=64, depth=2)


def masked(ratio: float = 0.6, **changes: Any) -> MaskedAutoencoderConfig:
    return MaskedAutoencoderConfig(tiny_config(**changes), ratio, **SMALL)


def network(config: MaskedAutoencoderConfig, seed: int = 0) -> Any:
    return build(config, rngs=nnx.Rngs(seed))


def run_config(**fields: Any) -> RunConfig:
    fields = dict(mae=MaeConfig(0.6, **SMALL), batch_size=8) | fields
    return RunConfig("test", MODEL, DataConfig(path=""), **fields)


# -------------------------------------------------------------------------------------- the mask


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_a_pixel_is_shown_where_a_visible_patch_holds_it(changes):
    config = tiny_config(**changes)
    rows, columns = config.grid
    visible = np.array([[0, 3], [columns + 1, rows * columns - 1]])
    expected = np.zeros((2, 32, 32), bool)
    for image, patches in enumerate(visible):
        for patch in patches:
            y, x = (config.stride * int(i) for i in divmod(patch, columns))
            expected[image, y : y + config.patch_size, x : x + config.patch_size] = True
    np.testing.assert_array_equal(mae.shown_pixels(jnp.asarray(visible), config), expected)


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_tiles_are_the_middles_of_the_patches_and_share_no_pixel(changes):
    config = tiny_config(**changes)
    image = np.arange(32 * 32 * 3, dtype=np.float32).reshape(1, 32, 32, 3)
    found, stride = np.asarray(mae.tiles(jnp.asarray(image), config)), config.stride
    first = (config.patch_size - stride) // 2
    for patch, tile in enumerate(found[0]):
        y, x = (first + stride * i for i in divmod(patch, config.grid[1]))
        np.testing.assert_array_equal(tile, image[0, y : y + stride, x : x + stride].ravel())
    assert len(set(found.ravel())) == found.size == config.num_patches * stride**2 * 3


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 6), (0.6, 10), (0.5, 13), (0.04, 24)])
def test_the_ratio_is_exact_and_the_key_decides_the_mask(ratio, visible):
    config = masked(ratio)
    assert config.num_visible == visible
    orders = [mae.draw_order(jax.random.key(seed), 64, 25) for seed in (0, 0, 1)]
    assert (np.sort(orders[0], axis=1) == np.arange(25)).all()
    np.testing.assert_array_equal(orders[0], orders[1])
    shown = [np.asarray(mae.shown_pixels(o[:, :visible], config.encoder)) for o in orders]
    assert (shown[0] != shown[2]).any((1, 2)).mean() > 0.9
    if visible < 24:
        assert len({mask.tobytes() for mask in shown[0]}) > 60
    # Every patch is hidden as often as any other.
    often = np.bincount(np.asarray(orders[0][:, :visible]).ravel(), minlength=25) / 64
    assert np.abs(often - visible / 25).max() < 0.25


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_hidden_pixels_have_no_influence_at_all(changes):
    """On no visible token and on no predicted number; every shown pixel of a patch has some."""
    config = masked(**changes)
    model, images, key = network(config), random_images(3), jax.random.key(5)
    order = mae.draw_order(key, 3, config.encoder.num_patches)

    @jax.jit
    def found(images):
        z, shown = model.encode(images, order)
        output = model(images, key=key)
        weights = [jax.random.normal(key, x.shape) for x in (z, output.prediction)]
        tokens = jax.grad(lambda x: (model.encode(x, order)[0] * weights[0]).sum())(images)
        pixels = jax.grad(lambda x: (model(x, key=key).prediction * weights[1]).sum())(images)
        return z, output, shown, (tokens, pixels)

    z, output, shown, gradients = found(images)
    assert z.shape == (3, config.encoder.first_patch + config.num_visible, 32)
    np.testing.assert_array_equal(output.shown, shown)
    hidden = ~np.asarray(shown)
    assert 0.1 < hidden.mean() < 0.75
    for gradient in map(np.asarray, gradients):
        assert (gradient[hidden] == 0).all()
        assert (gradient[~hidden] != 0).mean() > 0.99
    other = jnp.where(shown[..., None], images, random_images(3, seed=9))
    assert (other != images).any()
    np.testing.assert_array_equal(found(other)[1].prediction, output.prediction)


# -------------------------------------------------------------------------------------- the loss


def test_the_loss_is_that_of_hidden_pixels_written_out():
    config = run_config(optimizer=OptimizerConfig(learning_rate=1e-3))
    program = make_program(config, 3, 10, 10, make_mesh())
    model: Any = program.model
    key, batch = jax.random.key(3), random_batch(8)
    state = program.init(key)
    graph, _ = nnx.split(network(model))
    images = jnp.asarray(batch["image"] / np.float32(127.5) - 1)
    forward = jax.jit(lambda p, x, key: nnx.merge(graph, p)(x, key=key))
    output = forward(state.params, images, jax.random.fold_in(key, 0))
    prediction, shown = np.asarray(output.prediction), np.asarray(output.shown)
    squares, stride = [], model.encoder.stride
    for image in range(8):
        for patch in range(25):
            y, x = (1 + stride * i for i in divmod(patch, 5))
            tile = np.asarray(images[image, y : y + stride, x : x + stride], np.float64)
            tile = (tile - tile.mean()) / np.sqrt(tile.var() + 1e-6)
            error = (prediction[image, patch].reshape(stride, stride, 3) - tile) ** 2
            squares += list(error[~shown[image, y : y + stride, x : x + stride]].ravel())
    placed = next(to_devices(iter([batch]), make_mesh()))
    _, metrics = program.train_step(state, placed, key)
    assert float(metrics["loss"]) == pytest.approx(np.mean(squares), rel=1e-4)
    assert float(metrics["hidden"]) == pytest.approx(len(squares) / (8 * 25 * stride**2 * 3))
    assert set(metrics) == {"loss", "hidden", "gradient_norm", "learning_rate"}


def test_what_was_shown_counts_for_nothing():
    rng = np.random.default_rng(0)
    prediction, target = (jnp.asarray(rng.normal(size=(2, 3, 4))) for _ in range(2))
    hidden = jnp.asarray(rng.random((2, 3, 4)) < 0.5)
    gradient = jax.grad(losses.reconstruction)(prediction, target, hidden)
    np.testing.assert_array_equal(gradient != 0, hidden)


def test_the_loss_falls_each_step_has_another_mask_and_labels_are_not_read():
    optimizer = OptimizerConfig("adamw", 3e-3, 0.0, schedule="cosine", milestones=())
    program = make_program(run_config(optimizer=optimizer), 3, 200, 200, make_mesh())
    state, key, batch = program.init(jax.random.key(0)), jax.random.key(1), random_batch(8)
    found = []
    for step in range(200):
        batch["label"] = np.full(8, step % 3, np.int32)
        state, metrics = program.train_step(state, batch, key)
        found.append([float(metrics[name]) for name in ("loss", "hidden")])
    loss, hidden = np.transpose(found)
    assert loss[0] > 0.9 and loss[-10:].mean() < 0.7 * loss[0]
    assert len(set(hidden.round(6))) > 100
    seen, restored = (
        np.asarray(x) for x in program.predict_step(state.params, jnp.asarray(batch["image"]))
    )
    images = batch["image"] / np.float32(127.5) - 1
    shown = np.isclose(seen, images, atol=1e-6).all(-1)
    assert 0.3 < shown.mean() < 0.7 and not seen[~shown].any()
    np.testing.assert_allclose(restored[shown], images[shown], atol=1e-6)
    inside = np.zeros((32, 32), bool)
    inside[1:31, 1:31] = True
    hidden = ~shown & inside[None]
    assert np.square(restored - images)[hidden].mean() < 0.7 * np.square(images)[hidden].mean()


def test_the_pictures_of_a_perfect_prediction_are_the_images():
    config = tiny_config()
    images = random_images(2)
    shown = mae.shown_pixels(jnp.asarray([[0, 7], [12, 20]]), config)
    perfect = mae.Reconstruction(mae.standardise(mae.tiles(images, config))[0], shown)
    seen, restored = mae.pictures(images, perfect, config)
    np.testing.assert_allclose(restored[:, 1:31, 1:31], images[:, 1:31, 1:31], atol=1e-5)
    np.testing.assert_array_equal(seen, np.where(shown[..., None], images, 0))
    rows = [to_pixels(np.asarray(x)) for x in (images, seen)]
    assert rows[1][~np.asarray(shown)].tolist()[0] == [128, 128, 128]
    assert len(sheet(*rows)) > 1000


def test_one_device_and_eight_give_the_same_losses():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    lines = ["from tests.steps_on_devices import jax, json, pretraining_losses"]
    lines += ["print(json.dumps([jax.device_count(), *pretraining_losses()]))"]
    command = [sys.executable, "-W", "error", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    eight, one = json.loads(done.stdout), pretraining_losses()
    assert (eight[0], jax.device_count(), len(set(one))) == (8, 1, 4)
    np.testing.assert_allclose(eight[1:], one, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------- runs and their folders


def values(dataset: Path, **changes: Any) -> dict[str, Any]:
    """A config as a plain dict: 12 steps on four folds of the tiny data set."""
    optimizer = dict(name="adamw", learning_rate=1e-3, schedule="cosine")
    fields: dict[str, Any] = dict(title="t", model=MODEL, optimizer=optimizer, folds=(0,))
    fields |= dict(mae=dict(ratio=0.6, **SMALL), epochs=2, batch_size=8, eval_batch_size=8)
    fields |= dict(checkpoint_epochs=0.5, log_steps=1)
    fields["data"] = dict(path=str(dataset), balance=False, flips_turns=True, threads=1)
    return fields | changes


def losses_of(workdir: Path) -> list[float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines]


class StopsAt(Signals):
    """As if a signal came while the loop asks for the n-th time."""

    def __init__(self, asked: int):
        self.left = asked
        super().__init__()

    def __setattr__(self, name, value):
        if name != "received":
            super().__setattr__(name, value)

    @property
    def received(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else None


@pytest.fixture(scope="module")
def pretraining(tiny_dataset, tmp_path_factory) -> Path:
    """A finished pretraining with fold 0 held out."""
    workdir = tmp_path_factory.mktemp("runs") / "mae"
    run_experiment(values(tiny_dataset), workdir, Signals())
    return workdir


def test_a_run_leaves_an_encoder_and_pictures_and_scores_nothing(pretraining, tiny_dataset, capfd):
    found = {str(p.relative_to(pretraining)) for p in pretraining.rglob("*.*") if p.is_file()}
    wanted = {"encoder.safetensors", "reconstructions.png", "training.json"}
    assert {f"fold0/{name}" for name in wanted} | {"config.json", "metrics.jsonl"} <= found
    assert not [name for name in found if "report" in name or "predictions" in name]
    with Image.open(pretraining / "fold0" / "reconstructions.png") as picture:
        assert picture.size == (8 * 36, 3 * 36)
    facts = encoders.facts_of(pretraining / "fold0" / "encoder.safetensors")
    dataset = open_dataset(tiny_dataset)
    assert facts["folds"] == ["fold1", "fold2", "fold3", "fold4"]
    assert (facts["dataset"], len(facts["cells"])) == (dataset.fingerprint, 48)
    assert not set(facts["cells"]) & set(dataset.digests("fold0"))
    run_experiment(values(tiny_dataset), pretraining, Signals())
    out = capfd.readouterr().out
    assert f"{pretraining} is finished (fold0)" in out
    assert f"--config.weights.path={pretraining}" in out


def test_a_stopped_run_goes_on_with_the_same_losses(pretraining, tiny_dataset, tmp_path, capfd):
    workdir = tmp_path / "run"
    with pytest.raises(Stop, match="saved after step 5 of 12"):
        run_experiment(values(tiny_dataset), workdir, StopsAt(4))
    assert not (workdir / "fold0" / "encoder.safetensors").exists()
    with pytest.raises(UserError, match="pretraining without a finished fold"):
        encoders.find(workdir)
    run_experiment(values(tiny_dataset), workdir, Signals())
    assert "going on after step 5 of 12" in capfd.readouterr().out
    assert losses_of(workdir) == losses_of(pretraining)
    assert len(losses_of(workdir)) == 12
    files = [folder / "fold0" / "encoder.safetensors" for folder in (workdir, pretraining)]
    one, other = (pretrained(network_of(), file)[0] for file in files)
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def network_of(**changes: Any) -> Any:
    """The classifier's network."""
    model = {name: value for name, value in MODEL.items() if name != "name"} | changes
    return model_config(MODEL["name"], 3, **model)


@pytest.mark.parametrize(
    ("changes", "last_block", "fresh"),
    [
        ({}, "copy", {"head", "sparse_attention"}),
        ({}, "fresh", {"head", "sparse_attention", "last_block"}),
        ({"selection_depth": "last"}, "copy", {"head", "sparse_attention"}),
        ({"selection": False}, "copy", {"head"}),
    ],
)
def test_the_encoder_arrives_bit_for_bit(pretraining, changes, last_block, fresh):
    config = network_of(**changes)
    model = build(config, rngs=nnx.Rngs(1))
    before = to_flat(model)
    report = load_pretrained(model, pretraining, last_block=last_block)
    after = to_flat(model)
    assert {name.partition(".")[0] for name in report.fresh} == fresh
    theirs = encoders.read_arrays(pretraining / "fold0" / "encoder.safetensors")
    arrived = set()
    for name, array in theirs.items():
        if changes.get("selection_depth") == "last":
            name = name.replace("blocks.1.", "last_block.")
        np.testing.assert_array_equal(after[name], array, err_msg=name)
        arrived.add(name)
    for name in report.fresh:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    for name in set(after) - arrived - set(report.fresh):
        np.testing.assert_array_equal(after[name], after[name.replace("last_block", "blocks.1")])
    assert not any("decoder" in name for name in theirs)


def test_positions_follow_another_grid(pretraining):
    flat, _ = pretrained(network_of(stride=4), pretraining)
    theirs = encoders.read_arrays(pretraining / "fold0" / "encoder.safetensors")
    position, old = flat["embedding.position"], theirs["embedding.position"]
    assert position.shape == (1, 50, 32)
    np.testing.assert_array_equal(position[:, 0], old[:, 0])
    corner = np.abs(position[0, 1] - old[0, 1]).max()
    assert corner < np.abs(position[0, 1] - old[0, 25]).max()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 48, "heads": 3}, "width is 32 there and 48 here; heads is 2 there and 3 here"),
        ({"depth": 3}, "depth is 2 there and 3 here"),
        ({"activation": "gelu"}, "activation is relu there and gelu here"),
        ({"stem": (8,)}, r"stem is \(\) there and \(8,\) here"),
        ({"layer_scale": 0.1}, "blocks.0.attention_scale is missing"),
    ],
)
def test_another_network_is_refused_by_what_differs(pretraining, changes, sentence):
    with pytest.raises(UserError, match=rf"does not fit this network: .*{sentence}"):
        pretrained(network_of(**changes), pretraining)


def test_a_changed_bit_is_noticed(pretraining, tmp_path):
    file = tmp_path / "encoder.safetensors"
    content = bytearray((pretraining / "fold0" / file.name).read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: it is not what its SHA-256 says"):
        pretrained(network_of(), file)


def test_a_fold_that_was_seen_is_not_scored(pretraining, tiny_dataset, tmp_path):
    """By number in the same data set, by the cells' digests in another."""

    def check(dataset: Path, fold: int, path: Path) -> None:
        fields = values(dataset, folds=(fold,), mae={}, weights={"path": str(path)})
        check_run(from_dict(fields), open_dataset(dataset))

    copied = tmp_path / "elsewhere.safetensors"
    shutil.copy(pretraining / "fold0" / "encoder.safetensors", copied)
    for path in (pretraining, pretraining / "fold0", copied):
        check(tiny_dataset, 0, path)
        with pytest.raises(UserError) as caught:
            check(tiny_dataset, 1, path)
        assert f"{path}, which was pretrained on 12 of the 12 cells of fold1" in str(caught.value)
    # Another data set of the first 50 files, in the folds that they had.
    other = write_dataset(tmp_path / "other", (30, 20))
    check(other, 0, pretraining)
    with pytest.raises(UserError, match="on 10 of the 10 cells of fold2"):
        check(other, 2, pretraining)
    check(write_dataset(tmp_path / "strange", (8, 8), seed=1), 2, pretraining)


def test_holding_out_nothing_warns_and_no_fold_is_left_to_score(tiny_dataset, tmp_path, capfd):
    fields = values(tiny_dataset, folds=(), epochs=1)
    run_experiment(fields, tmp_path / "run", Signals())
    out = capfd.readouterr().out
    assert "held out  nothing" in out and "warning: pretraining holds out no fold" in out
    assert len(encoders.facts_of(tmp_path / "run/all_folds/encoder.safetensors")["cells"]) == 60
    dataset = open_dataset(tiny_dataset)
    for fold in range(5):
        with pytest.raises(UserError, match=f"12 of the 12 cells of fold{fold}"):
            encoders.unseen(str(tmp_path / "run"), dataset, fold)


def test_of_several_folds_the_unseen_one_is_taken(pretraining, tiny_dataset, tmp_path):
    for fold in (0, 1, 2):
        folds = [f"fold{i}" for i in range(5) if i != fold]
        facts = encoders.facts_of(pretraining / "fold0" / "encoder.safetensors")
        file = tmp_path / f"fold{fold}" / "encoder.safetensors"
        encoders.save(file, {"x": np.zeros(1, np.float32)}, facts | {"folds": folds})
    dataset = open_dataset(tiny_dataset)
    for fold in (0, 1, 2):
        assert encoders.unseen(str(tmp_path), dataset, fold) == (
            tmp_path / f"fold{fold}" / "encoder.safetensors"
        )
    with pytest.raises(UserError, match="several folds"):
        encoders.find(tmp_path)


def test_a_classifier_begins_with_it(pretraining, tiny_dataset, tmp_path, capfd):
    fields = values(tiny_dataset, mae={}, weights={"path": str(pretraining)}, epochs=1)
    run_experiment(fields, tmp_path / "run", Signals())
    out = capfd.readouterr().out
    assert "weights: encoder pretrained on fold1, fold2, fold3, fold4 of " in out
    assert "fresh: head, sparse_attention" in out
    assert (tmp_path / "run" / "report.html").exists()


# ------------------------------------------------------------------------- faults before any work


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mae": {"ratio": 1.0}}, "config.mae.ratio is 1.0; it must be 0 .no pretraining."),
        ({"mae": {"ratio": 0.99}}, "config.mae: ratio is 0.99; of 25 patches it must hide some"),
        ({"mae": {"ratio": 0.01}}, "config.mae: ratio is 0.01; of 25 patches it must hide some"),
        ({"mae": {"ratio": 0.5, "heads": 3}}, "config.mae: the decoder's width 128 is not a mult"),
        ({"mae": {"ratio": 0.5, "depth": 0}}, "config.mae: the decoder's depth is 0; it must be"),
        ({"mae": {"rato": 0.5}}, "no field config.mae.rato; did you mean ratio"),
        ({"model": MODEL | {"drop_path": 0.1}}, "config.mae: drop_path is 0.1; pretraining leaves"),
        ({"model": {"name": "resnet18", "image_size": 32}}, "only a Vision Transformer is pretr"),
        ({"optimizer": {"layer_decay": 0.5}}, "layer_decay is 0.5; it must be 1 in pretraining"),
        ({"optimizer": {"frozen_blocks": 1}}, "frozen_blocks is 1; it must be 0 in pretraining"),
        ({"weights": {"path": "x.npz"}}, "config.weights.path is 'x.npz'; it must be '' in pretr"),
        ({"data": {"path": "", "mixup": 0.2}}, "config.data.mixup is 0.2; it must be 0 in pretra"),
        ({"folds": (), "train_folds": (1,)}, "train_folds is .1,.; it must be .. in pretraining"),
        ({"folds": (), "mae": {}}, "config.folds is ..; it must name at least one fold"),
    ],
)
def test_bad_values_are_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        network_config(from_dict(values(Path("x"), **changes)), 3)


@pytest.mark.parametrize("command", ["export", "report.__main__", "robustness", "figures.__main__"])
def test_a_pretraining_is_no_classifier_for_any_command(command, pretraining, tmp_path, capfd):
    flags = ["--workdir", str(pretraining)]
    if command in ("export", "figures.__main__"):
        flags += ["--out", str(tmp_path / "out")]
    assert importlib.import_module(f"bcvit_jax.{command}").main(flags) == 2
    told = capfd.readouterr().err
    assert "is a pretraining, which tells no classes apart" in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_flags_of_the_config_file(monkeypatch, capfd, tmp_path):
    """The config has no settings of a classifier; a wrong ratio is told before any work."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Signals, "install", lambda self: None)
    common = ["--config=configs/mae.py", f"--workdir={tmp_path / 'w'}"]
    assert main([*common, "--config.loss.alpha=0.1"]) == 2
    assert "there is no field config.loss.alpha" in capfd.readouterr().err
    assert main([*common, "--config.mae.ratio=-1"]) == 2
    assert "config.mae.ratio is -1.0; it must" in capfd.readouterr().err
    assert not (tmp_path / "w").exists()


def test_the_config_is_frozen_into_what_the_network_takes():
    config = masked(0.6)
    assert not config.encoder.selection and dataclasses.asdict(config)["encoder"]["depth"] == 3
    names = {name.partition(".")[0] for name in to_flat(network(config))}
    assert names == {"embedding", "blocks", "norm", "decoder"}
