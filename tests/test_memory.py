"""What the compiled train step asks for, by the program's own account."""

from tests.benchmarks.jobs import Shape
from tests.benchmarks.ours import compiled_memory

SMALL = dict(width=64, heads=4, mlp_width=128, depth=4)


def test_collecting_attention_grows_with_the_tokens_and_not_with_their_square():
    """Temporaries with class rows, fusion and selection, less those of the plain network.

    Four maps of four heads kept whole would ask for 64·n² numbers an image.
    """
    shares = []
    for stride in (16, 12, 8, 6):
        shape = Shape(batch=2, side=160, stride=stride)
        tokens = ((160 - 16) // stride + 1) ** 2 + 1
        collecting = compiled_memory(shape, **SMALL)
        collecting -= compiled_memory(shape, **SMALL, selection=False)
        shares.append(collecting / tokens)
    # bytes a token: at 6.2 times the tokens a square's share would be 6.2 times the first
    assert max(shares) < 1.5 * shares[0]
    assert max(shares) < 2 * 64 * 4 * 101 / 10  # a tenth of whole maps at the smallest grid
