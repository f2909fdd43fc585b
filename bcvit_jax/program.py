"""What is compiled: the start, the train step and the predict step of one network and recipe."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bcvit_jax import losses
from bcvit_jax.config import RunConfig
from bcvit_jax.errors import UserError
from bcvit_jax.models import (
    BCViTConfig,
    MaskedAutoencoderConfig,
    NetworkConfig,
    build,
    compiler_options,
    mae,
    model_config,
    scale,
)
from bcvit_jax.models.stacking import is_stacked, stack, unstack
from bcvit_jax.optimizer import make_optimizer


class State(NamedTuple):
    """All that a train step reads and writes."""

    step: jax.Array
    params: Any
    opt_state: Any
    statistics: Any = ()
    """What training measures and no gradient moves (batch norm); () in networks without it."""

    @property
    def variables(self) -> Any:
        """All arrays of the network, as prediction and export take them."""
        return _variables(self.params, self.statistics)


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of one network and recipe; compiled once, used for every fold."""

    init: Callable[[jax.Array], State]
    train_step: Callable[[State, Mapping[str, Any], jax.Array], tuple[State, dict]]
    """Takes parameters as they are or stacked, which takes less memory, and leaves them so."""
    stack: Callable[[Any], Any]
    """Parameters as training keeps them: stacked (`models.stacking`) where blocks run in a loop."""
    unstack: Callable[[Any], Any]
    """Stacked parameters as they were: all else takes them so."""
    predict_step: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    """Of a state's `variables` and images: logits and kept; in pretraining `mae.pictures`."""
    model: NetworkConfig


def _variables(params: Any, statistics: Any) -> Any:
    return nnx.merge_state(params, statistics) if statistics else params


def _statistics(network: nnx.Module) -> Any:
    return nnx.state(network, nnx.BatchStat) or ()


def network_config(config: RunConfig, num_classes: int) -> NetworkConfig:
    """The network that `config.model` names, in pretraining its autoencoder.

    Errors: UserError for an unknown name, field or value.
    """
    overrides = dict(config.model)
    name = overrides.pop("name", None)
    if name is None:
        raise UserError("config.model.name is not set; name one of bcvit_jax.models.list_models()")
    try:
        network = model_config(name, num_classes, **overrides)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model: {error}") from None
    if not config.mae.ratio:
        return network
    if not isinstance(network, BCViTConfig):
        raise UserError(
            f"config.mae.ratio is {config.mae.ratio}; only a Vision Transformer is pretrained, and "
            f"{name} is none, so set it to 0"
        )
    try:
        return MaskedAutoencoderConfig(network, **dataclasses.asdict(config.mae))
    except ValueError as error:
        raise UserError(f"config.mae: {error}") from None


def _classification(config: RunConfig) -> Callable:
    """(network, batch, key) -> the loss of equations 12 to 14, and metrics."""

    def objective(network, batch, key):
        output = network(scale(batch["image"]), key=key)
        entropy = losses.cross_entropy(
            output.logits,
            batch["label"],
            smoothing=config.loss.label_smoothing,
            mixed_labels=batch["mixed_label"],
            mix=batch["mix"],
        )
        # Of a mixed image the class with the larger share counts.
        label = jnp.where(batch["mix"] >= 0.5, batch["label"], batch["mixed_label"])
        alike = losses.contrastive(output.feature, label, alpha=config.loss.alpha)
        total = entropy + config.loss.contrastive * alike
        hits = (output.logits.argmax(-1) == label).mean()
        return total, {"cross_entropy": entropy, "contrastive": alike, "top1": hits}

    return objective


def _pretraining(model: MaskedAutoencoderConfig) -> Callable:
    """(network, batch, key) -> the loss of the hidden pixels, and metrics; labels are not read."""

    def objective(network, batch, key):
        images = scale(batch["image"])
        output = network(images, key=key)
        target, _, _ = mae.standardise(mae.tiles(images, model.encoder))
        shown = jnp.broadcast_to(output.shown[..., None], images.shape)
        hidden = ~mae.tiles(shown, model.encoder)
        total = losses.reconstruction(output.prediction, target, hidden)
        return total, {"hidden": hidden.mean()}

    return objective


def make_program(
    config: RunConfig, num_classes: int, steps_per_epoch: float, steps: int, mesh: Mesh
) -> Program:
    """Init, train step and predict step, jitted over `mesh` (its one axis splits the batch)."""
    model = network_config(config, num_classes)
    optimizer, schedule = make_optimizer(config.optimizer, steps_per_epoch, steps)
    abstract = nnx.eval_shape(lambda: build(model, rngs=nnx.Rngs(0)))
    graph, _ = nnx.split(abstract)
    pretraining = isinstance(model, MaskedAutoencoderConfig)
    objective = _pretraining(model) if pretraining else _classification(config)
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_batch = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))

    def stacked(params):
        # Of a classifier's last block few tokens are read: it is apart from the loop.
        return stack(params, apart=isinstance(model, BCViTConfig))

    def init(key):
        network = build(model, rngs=nnx.Rngs(key))
        params = nnx.state(network, nnx.Param)
        step = jnp.zeros((), jnp.int32)
        return State(step, params, optimizer.init(params), _statistics(network))

    def train_step(state, batch, key):
        key = jax.random.fold_in(key, state.step) if model.takes_key else None

        def loss(params):
            # A copy: the state's own variables can't change below the gradient.
            network = nnx.merge(graph, _variables(unstack(params), state.statistics), copy=True)
            total, parts = objective(network, batch, key)
            return total, ({"loss": total, **parts}, _statistics(network))

        (_, (metrics, statistics)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        gradient, params = unstack(gradient), unstack(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        params = optax.apply_updates(params, updates)
        if is_stacked(state.params):
            params = stacked(params)
        return State(state.step + 1, params, opt_state, statistics), metrics

    def predict_step(variables, images):
        network, images = nnx.merge(graph, variables), scale(images)
        if isinstance(model, MaskedAutoencoderConfig):
            output = network(images, key=jax.random.key(0))
            return mae.pictures(images, output, model.encoder)
        output = network(images)
        return output.logits, output.kept

    options, looped = compiler_options(model), model.in_a_loop(config.batch_size)
    return Program(
        # A program of many small parts that runs once: less optimised, it is ready sooner.
        jax.jit(
            init,
            out_shardings=everywhere,
            compiler_options={"xla_backend_optimization_level": 1},
        ),
        jax.jit(
            train_step,
            donate_argnums=0,
            in_shardings=(everywhere, by_batch, everywhere),
            out_shardings=everywhere,
            compiler_options=options,
        ),
        jax.jit(stacked if looped else lambda params: params, out_shardings=everywhere),
        jax.jit(unstack, out_shardings=everywhere),
        jax.jit(
            predict_step,
            in_shardings=(everywhere, by_batch),
            out_shardings=everywhere,
            compiler_options=options,
        ),
        model,
    )


def make_mesh() -> Mesh:
    """All devices in one axis, which splits the batch."""
    return jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))


def shareable(batch_size: int) -> int:
    """The batch that is no smaller and that all devices can share equally."""
    return -(-batch_size // jax.device_count()) * jax.device_count()


def abstract_batch(batch_size: int, image_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a training batch, for tracing without data."""
    return {
        "image": jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "mixed_label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "mix": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    }


def fresh_state(program: Program, key: jax.Array) -> State:
    """`program.init(key)`, whose compiled code is then let go: tens of MiB that run only once."""
    state = program.init(key)
    init: Any = program.init
    init.clear_cache()
    return state


def compiled(function: Any, *arguments: Any) -> Callable[..., Any]:
    """A jitted function compiled for `arguments`, arrays or their shapes, without running it."""
    return function.lower(*arguments).compile()
