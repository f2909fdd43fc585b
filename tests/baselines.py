"""The convolutional networks beside torchvision's and timm's, with the same weights and images."""

import copy
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from safetensors.torch import save_file
from torch import nn

from bcvit_jax.config import LossConfig, OptimizerConfig, RunConfig
from bcvit_jax.data import DataConfig
from bcvit_jax.models import NetworkConfig, build, create_model, model_config
from bcvit_jax.optimizer import make_optimizer
from bcvit_jax.program import Program, State, make_mesh, make_program
from bcvit_jax.weights import load_pretrained, name_of, pretrained
from bcvit_jax.weights.maps import IMAGENET
from tests.networks import random_batch

SIDE, BATCH, CLASSES = 64, 4, 5
STEPS, RATE = 3, 1e-4
MOMENTS = (".mean", ".variance")
# Programs that run a few times are ready sooner with less optimisation.
SOON: Any = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}


def parameters(name: str, **overrides) -> int:
    """Numbers of our network with 1000 classes, none of them computed."""
    model = nnx.eval_shape(lambda: create_model(name, 1000, **overrides))
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def their_parameters(make) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make(num_classes=1000).parameters())


def lively(network: nn.Module) -> nn.Module:
    """Norms that differ from channel to channel, and running moments of images of noise.

    Branches begin small, as they should: else the gradients of 50 layers on four small images are
    so large (norm 1200) that PyTorch in float32 and in float64 part after one step.
    """
    torch.manual_seed(0)
    named = network.named_modules()
    norms = {n: m for n, m in named if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))}
    with torch.no_grad():
        for name, norm in norms.items():
            norm.weight.uniform_(0.8, 1.2)
            norm.bias.normal_(0, 0.1)
            if re.search(r"layer\d\.\d\.bn3|block\.3\.1", name):
                norm.weight.mul_(0.2)
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.5
        network.train()
        for seed in range(3):
            network(normalised(random_batch(BATCH, SIDE, seed=seed)["image"]))
    for norm in norms.values():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.1
    return network


def normalised(images: np.ndarray) -> torch.Tensor:
    """uint8 [b, s, s, 3] -> [b, 3, s, s] as torchvision's and timm's weights saw pixels."""
    mean, std = (np.asarray(part, np.float32) for part in IMAGENET)
    pixels = (images.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def saved(network: nn.Module, folder: Path) -> Path:
    save_file(
        {k: v.contiguous() for k, v in network.state_dict().items()}, folder / "w.safetensors"
    )
    return folder / "w.safetensors"


def assert_same_logits(name: str, network: nn.Module, folder: Path, **overrides) -> str:
    """Of images of another size than the weights' too; returns the family that was recognised."""
    config = model_config(name, CLASSES, **overrides)
    model = build(config, rngs=nnx.Rngs(0))
    report = load_pretrained(model, saved(network, folder), head=True)
    assert report.fresh == ()
    graph, variables = nnx.split(model)
    forward = jax.jit(
        lambda variables, images: nnx.merge(graph, variables)(images), compiler_options=SOON
    )
    batch = random_batch(BATCH, SIDE, seed=9)["image"]
    with torch.no_grad():
        expected = network.eval()(normalised(batch)).numpy()
    output = forward(variables, jnp.asarray(batch / 127.5 - 1.0, jnp.float32))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(output.logits, expected, rtol=0, atol=1e-4)
    assert output.kept.shape == (BATCH, 0)
    assert output.feature.dtype == jnp.float32
    return report.family


def program_of(name: str, **overrides) -> tuple[RunConfig, Program]:
    """Cross-entropy and PyTorch's SGD."""
    optimizer = OptimizerConfig(learning_rate=RATE, milestones=(), weight_decay=5e-4)
    model = dict(name=name, image_size=SIDE) | overrides
    loss = LossConfig(contrastive=0.0)
    config = RunConfig("test", model, DataConfig(path=""), optimizer, loss, batch_size=BATCH)
    return config, make_program(config, CLASSES, 100, 100, make_mesh())


def state_of(config: RunConfig, program: Program, flat: dict[str, np.ndarray]) -> State:
    """The first state of a training that begins with the weights `flat`."""
    abstract = jax.eval_shape(program.init, jax.random.key(0))

    def fill(path, _):
        return jnp.asarray(flat[name_of(path)])

    params = jax.tree.map_with_path(fill, abstract.params)
    statistics = jax.tree.map_with_path(fill, abstract.statistics)
    optimizer, _ = make_optimizer(config.optimizer, 100, 100)
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), statistics)


def pure_batch(seed: int) -> dict[str, np.ndarray]:
    """A batch without mixed images."""
    batch = random_batch(BATCH, SIDE, CLASSES, seed)
    return batch | {"mix": np.ones(BATCH, np.float32)}


def assert_same_training(name: str, network: nn.Module, folder: Path, **overrides) -> None:
    """Three steps beside PyTorch in float64: losses, moments, and where every weight went."""
    config, program = program_of(name, **overrides)
    flat, _ = pretrained(program.model, saved(network, folder), head=True)
    state = state_of(config, program, flat)
    key = jax.random.key(0)
    step: Any = program.train_step
    step = step.lower(state, pure_batch(0), key).compile(compiler_options=SOON)
    network = copy.deepcopy(network).double().train()
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
    for seed in range(STEPS):
        batch = pure_batch(seed)
        state, metrics = step(state, batch, key)
        loss = F.cross_entropy(
            network(normalised(batch["image"]).double()), torch.from_numpy(batch["label"]).long()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=0, atol=1e-4)
    expected, _ = pretrained(program.model, saved(network, folder), head=True)
    ours = {name_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(state.variables)}
    assert ours.keys() == expected.keys()
    for array, value in expected.items():
        np.testing.assert_allclose(ours[array], value, rtol=1e-4, atol=1e-4, err_msg=array)
        error = np.linalg.norm(ours[array] - value)
        way = np.linalg.norm(value - flat[array])
        assert error <= 0.02 * way + 1e-7 * value.size**0.5, array
    moved = [n for n in flat if n.endswith(MOMENTS)]
    assert len(moved) == 2 * sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) > 0
    for array in moved:
        assert np.abs(flat[array] - expected[array]).max() > 1e-5, array


def small(name: str = "resnet18", classes: int = CLASSES, **overrides) -> NetworkConfig:
    """A ResNet of two blocks on 32×32 pixels."""
    return model_config(name, classes, **(dict(image_size=32, depths=(1, 1)) | overrides))
