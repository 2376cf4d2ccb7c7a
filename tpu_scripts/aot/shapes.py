"""Shapes of the variables of well-known models, by key."""

import json
import re
from collections.abc import Callable

Shapes = dict[str, tuple[int, ...]]


def gpt2_small() -> Shapes:
    """124.4 M parameters in 148 variables, those of the checkpoint "gpt2"."""
    width = 768
    shapes: Shapes = {"wte": (50257, width), "wpe": (1024, width)}
    for i in range(12):
        block = f"h/{i}"
        _norm(shapes, f"{block}/ln_1", width)
        _dense(shapes, f"{block}/attn/c_attn", width, 3 * width)
        _dense(shapes, f"{block}/attn/c_proj", width, width)
        _norm(shapes, f"{block}/ln_2", width)
        _dense(shapes, f"{block}/mlp/c_fc", width, 4 * width)
        _dense(shapes, f"{block}/mlp/c_proj", 4 * width, width)
    _norm(shapes, "ln_f", width)
    return shapes


def bert_large() -> Shapes:
    """335.1 M parameters in 391 variables, without the heads of its tasks."""
    width = 1024
    shapes: Shapes = {
        f"embeddings/{name}": (rows, width)
        for name, rows in (("word", 30522), ("position", 512), ("type", 2))
    }
    _norm(shapes, "embeddings/norm", width)
    for i in range(24):
        layer = f"layer/{i}"
        for name in ("query", "key", "value", "output"):
            _dense(shapes, f"{layer}/attention/{name}", width, width)
        _norm(shapes, f"{layer}/attention/norm", width)
        _dense(shapes, f"{layer}/intermediate", width, 4 * width)
        _dense(shapes, f"{layer}/output", 4 * width, width)
        _norm(shapes, f"{layer}/norm", width)
    _dense(shapes, "pooler", width, width)
    return shapes


NAMED: dict[str, Callable[[], Shapes]] = {
    "gpt2-small": gpt2_small,
    "bert-large": bert_large,
}


def read(name: str) -> Shapes:
    """Returns the shapes of a model, or those of a file.

    Args:
      name: "gpt2-small", "bert-large", or a JSON file: an object of keys and
        lists of sizes.

    Raises:
      ValueError: there is no such file, or it is none.
    """
    if name in NAMED:
        return NAMED[name]()
    try:
        with open(name, encoding="utf-8") as file:
            shapes = json.load(file, object_pairs_hook=_once)
        if not isinstance(shapes, dict) or not shapes:
            raise ValueError("it is no object of keys and lists of sizes")
        return {key: _sizes(key, shape) for key, shape in shapes.items()}
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--shapes={name} is not one of {', '.join(NAMED)}, nor a JSON "
            f'file like {{"kernel": [768, 3072]}}: {error}'
        ) from error


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"{twice} is in it more than once")
    return found


def _sizes(key: str, shape: object) -> tuple[int, ...]:
    if not re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*", key):
        raise ValueError(f"{key!r} cannot be a variable's name in a graph")
    if isinstance(shape, list) and all(
        type(size) is int and size > 0 for size in shape
    ):
        return tuple(shape)
    raise ValueError(f"{key} has the shape {shape!r}")


def _dense(shapes: Shapes, name: str, inputs: int, outputs: int) -> None:
    shapes[f"{name}/kernel"] = (inputs, outputs)
    shapes[f"{name}/bias"] = (outputs,)


def _norm(shapes: Shapes, name: str, width: int) -> None:
    shapes[f"{name}/scale"] = (width,)
    shapes[f"{name}/bias"] = (width,)
