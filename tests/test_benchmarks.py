"""The benchmarks compare like with like, and their table is what was measured."""

import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bcvit_jax.macs import macs
from tests.benchmarks import __main__ as program
from tests.benchmarks import elsewhere, limit, ours, peers, start
from tests.benchmarks import profile as by_operation
from tests.benchmarks.jobs import Shape, random_batch
from tests.networks import named
from tests.tiny_run import TINY

SHAPE = Shape("vit_t", batch=4, side=64)


def copied(params: Any) -> peers.Network:
    """PyTorch's network with our weights."""
    network = peers.Network(SHAPE, whole_maps=False)
    renamed = {
        "embedding.projection": "patches",
        "embedding.class_token": "token",
        "embedding.position": "position",
        "attention_norm": "norm1",
        "attention.projection": "attn.proj",
        "attention.qkv": "attn.qkv",
        "mlp_norm": "norm2",
        "mlp.expand": "mlp.fc1",
        "mlp.contract": "mlp.fc2",
        "sparse_attention.": "",
        "last_block": "last",
    }
    state = {}
    for name, array in named(params).items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        value = np.asarray(array)
        if name.endswith(".kernel"):
            value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        name = name.replace(".kernel", ".weight").replace(".scale", ".weight")
        state[name] = torch.from_numpy(value.copy())
    network.load_state_dict(state)  # strict: every array of both sides is there
    return network


def test_the_peer_trains_as_we_do():
    """Three steps from the same weights: logits, both losses, selection and SGD agree."""
    made, key = ours.program(SHAPE), jax.random.key(0)
    state, batch = made.init(key), random_batch(SHAPE)
    network = copied(nnx.state(state.params, nnx.Param))
    with torch.inference_mode():
        theirs = network(peers.prepared(torch.from_numpy(batch["image"])))[0]
    logits, _ = made.predict_step(state.params, jnp.asarray(batch["image"]))
    np.testing.assert_allclose(logits, theirs.numpy(), rtol=0, atol=1e-4)
    step = peers.train(SHAPE, network)
    losses = []
    for _ in range(3):
        state, metrics = made.train_step(state, batch, key)
        losses.append((float(metrics["loss"]), step()))
    for loss, their_loss in losses:
        assert loss == pytest.approx(their_loss, abs=1e-4)
    assert losses[2][0] < losses[0][0] - 1e-3


def test_whole_maps_keep_as_many_tokens():
    network = peers.Network(SHAPE, whole_maps=True)
    seen = []
    network.last.register_forward_hook(lambda _module, arguments, _result: seen.append(arguments))
    network(peers.prepared(torch.from_numpy(random_batch(SHAPE)["image"])))
    assert seen[0][0].shape == (4, 1 + 3, 192)


def test_products_of_a_step_are_those_that_pytorch_counts():
    step = peers.train(SHAPE)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    # It counts a few small products more: rows, fusion, head, contrastive loss.
    counted = limit.products_of_a_step(SHAPE, every_token=True)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_products_of_our_own_pass_are_those_that_it_traces():
    made, batch = ours.program(SHAPE), jnp.asarray(random_batch(SHAPE)["image"])
    params = jax.eval_shape(made.init, jax.random.key(0)).params
    counted = limit.products_of_a_pass(SHAPE, every_token=False)
    assert counted == pytest.approx(2 * macs(made.predict_step, params, batch), rel=0.01)
    assert counted < 0.94 * limit.products_of_a_pass(SHAPE, every_token=True)


def test_ratios_are_those_of_the_pairs():
    values = {"ours": [2.0, 3.0, 8.0], "peer": [1.0, 2.0, 2.0]}
    found = program.result("train/P1/x", values, "images/s")
    expected = {"ours": 3.0, "peer": 2.0, "ratio": 2.0, "low": 1.5, "high": 4.0}
    assert found == {"name": "train/P1/x", "unit": "images/s"} | expected
    assert "1.50–4.00" in program.table([found])


def test_a_row_is_measured_in_two_processes(tmp_path):
    row = program.Row("forward/P1/x", "forward", "forward", Shape("vit_t", 1, side=32), 2, 1)
    (found,) = program.measure(row, tmp_path)
    assert json.loads(json.dumps(found)) == found
    assert found["low"] <= found["ratio"] <= found["high"]
    assert found["limit_gflops"] > 1


def test_on_bccd_either_neutrophil_is_right_and_rare_classes_do_not_count_in_the_mean():
    labels = ["NGS"] * 40 + ["EOS"] * 20 + ["BAS"]
    found = ["NGB"] * 10 + ["NGS"] * 20 + ["EOS"] * 10 + ["EOS"] * 15 + ["NGB"] * 5 + ["EOS"]
    result = elsewhere.score(labels, found, [f"{i}.jpg" for i in range(61)])
    recall = {name: entry["recall"] for name, entry in result["classes"].items()}
    assert recall == {"NGS": 0.75, "EOS": 0.75, "BAS": 0.0}
    assert result["balanced_accuracy"] == 0.75
    assert result["classes"]["NGS"]["called"] == {"EOS": 10, "NGB": 10, "NGS": 20}
    assert "EOS 15, NGB 5" in elsewhere.table(result)


def test_bccds_cells_are_where_the_labels_say(shared_data):
    """The middle of a picture is darker, by its nucleus, than its ground."""
    pictures, labels, files = elsewhere.cells(shared_data / "bccd")
    assert len(pictures) == 228 and labels.count("NGS") >= 150
    assert {picture.shape for picture in pictures} == {(484, 484, 3)}
    middle = np.array([p[192:292, 192:292, 0].mean() for p in pictures])
    ground = np.array([np.quantile(p[..., 0], 0.9) for p in pictures])
    assert (middle < 0.95 * ground).all()
    assert len(set(files)) > 200
    close, _, _ = elsewhere.cells(shared_data / "bccd", cut=1.2)
    for whole, part in zip(pictures, close, strict=True):
        edge = (484 - len(part)) // 2
        np.testing.assert_array_equal(whole[edge : 484 - edge, edge : 484 - edge], part)
    assert 200 < np.median([len(part) for part in close]) < 300


def test_a_profile_holds_the_products_of_every_block():
    step, found = by_operation.profile(SHAPE, steps=2)
    tokens, width = (64 - 16) // 12 + 1, 192
    rows = 4 * (tokens**2 + 1)
    # Forward and backward pass of each of the whole blocks make this array.
    expand = [times for kind, (_, times) in found.items() if f"f32[{rows},{4 * width}]" in kind]
    assert step > 0 and sum(expand) >= 24
    assert all(ms >= 0 and times > 0 for ms, times in found.values())
    assert list(found.values()) == sorted(found.values(), key=lambda f: -f[0])


def test_a_start_is_measured_up_to_the_first_step(tiny_dataset, tmp_path):
    """It ends before the run does, leaves what was compiled, and a failed run isn't a fast one."""
    flags = [f"--config.{k}={v}" for k, v in (TINY | {"data.path": tiny_dataset}).items()]
    begin = time.perf_counter()
    seconds = start.first_step(flags, tmp_path / "work", tmp_path / "programs")
    assert 1 < seconds < time.perf_counter() - begin
    assert not (tmp_path / "work" / "report.html").exists()
    assert any((tmp_path / "programs").iterdir())
    with pytest.raises(RuntimeError, match=r"before its first step.*nowhere"):
        start.first_step([f"--config.data.path={tmp_path}/nowhere"], tmp_path / "x", tmp_path)
