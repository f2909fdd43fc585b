"""Multiply-accumulates and parameters of a program, counted from its jaxpr without running it.

Counted are matrix products and convolutions, which is the usual count of papers: norms, softmax,
activations and biases are left out. One multiply-accumulate is two floating-point operations, and
what this paper (as most) prints as GFLOPs is multiply-accumulates.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

# Primitives that run the program within them once.
_CALLS = (
    "jit pjit closed_call checkpoint remat remat2 custom_jvp_call custom_vjp_call "
    "custom_vjp_call_jaxpr"
).split()


def macs(function: Callable[..., Any], *avals: Any) -> int:
    """Multiply-accumulates of `function(*avals)`; avals: arrays, shapes or trees of them.

    A convolution's products with padding, and with zeros between dilated pixels, count. Errors:
    ValueError where the number depends on values (a while loop, branches that cost differently)
    or a fused kernel hides it.
    """
    if isinstance(function, jax.stages.Wrapped):  # with compiler options it is traced in no other
        function = function.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]
    return _of(jax.make_jaxpr(function)(*avals).jaxpr)


def parameters(tree: Any) -> int:
    """Numbers in all arrays of a tree, or in their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _of(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return _results(equation) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        # A kernel holds the input channels of one group only.
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return _results(equation) * math.prod(kernel) // outputs
    if "dot_product_attention" in name or name == "ragged_dot_general":
        raise ValueError(f"{name} hides its products; trace the program in float32 on a CPU")
    within = [_of(part) for part in _jaxprs(params)]
    if not any(within):
        return 0
    if name == "scan":
        return params["length"] * sum(within)
    if name == "cond" and len(set(within)) == 1:
        return within[0]
    if name in _CALLS:
        return sum(within)
    raise ValueError(
        f"the multiply-accumulates of {name} depend on its values; a loop must have a fixed "
        "number of rounds, and the branches of a choice must cost the same"
    )


def _results(equation: Any) -> int:
    return math.prod(equation.outvars[0].aval.shape)


def _jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs within an equation's parameters."""
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part
