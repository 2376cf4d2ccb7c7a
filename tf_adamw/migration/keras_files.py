"""What the files that Keras 3 and tf_keras write hold of an optimizer."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

_HDF5, _ZIP = b"\x89HDF", b"PK\x03\x04"


@dataclasses.dataclass(frozen=True)
class OptimizerFile:
    """An optimizer's variables, as a file has them.

    Attributes:
      path: of the file.
      arrays: the variables' values, in the optimizer's order.
      names: the variables' names, if the file has them.
      config: `{"class_name": ..., "config": ...}`, if the file has it.
      label: the optimizer's name, if the file has it.
      weights: the model's: under their names if the file has them, else under
        their places in it.
      library: the version of Keras that wrote it, if the file tells.
      ignored: what else it has of the optimizer.
    """

    path: str
    arrays: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    config: Mapping[str, Any] | None
    label: str
    weights: Mapping[str, np.ndarray]
    library: str
    ignored: tuple[str, ...]


def is_checkpoint(path: str) -> bool:
    """Whether a path is a checkpoint's prefix, and not a file.

    Raises:
      ValueError: if it is neither.
    """
    if tf.io.gfile.exists(f"{path}.index"):
        return True
    if not tf.io.gfile.exists(path):
        raise ValueError(
            f"There is neither a file {path!r} nor a checkpoint of that "
            f"prefix ({path}.index)."
        )
    if tf.io.gfile.isdir(path):
        latest = tf.train.latest_checkpoint(path)
        hint = f": {latest!r}" if latest else ""
        raise ValueError(
            f"{path!r} is a folder; expected a file or a checkpoint's prefix"
            f"{hint}."
        )
    return False


def read_file(path: str) -> OptimizerFile:
    """Reads a `.keras`, `.weights.h5` or `.h5` file.

    Raises:
      ValueError: if it is none, is damaged, or holds no optimizer's state.
      ImportError: without h5py.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        data = file.read()
    if not data.startswith((_HDF5, _ZIP)):
        raise ValueError(
            f"{path!r} is no .keras, .weights.h5 or .h5 file of Keras, nor "
            "the prefix of a checkpoint."
        )
    h5py = _h5py()
    try:
        config, library = None, ""
        if data.startswith(_ZIP):
            config, library, data = _unzipped(data)
        with h5py.File(io.BytesIO(data), "r") as file:
            found = _contents(path, file, config, library)
    # A file that is cut off or overwritten has many ways to fail.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path!r} is damaged, or no file of Keras: {reason}"
        ) from error
    if found is None:
        raise ValueError(
            f"{path!r} holds no optimizer's state: expected that of a model "
            "that was compiled and trained (of legacy optimizers only "
            "checkpoints and .h5 files have it)."
        )
    return found


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "Files of Keras are read by h5py: pip install h5py."
        ) from error
    return h5py


def _unzipped(data: bytes) -> tuple[Any, str, bytes]:
    """The optimizer's config, Keras's version and the HDF5 file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        config = json.loads(archive.read("config.json"))
        version = json.loads(archive.read("metadata.json"))["keras_version"]
        weights = archive.read("model.weights.h5")
    compiled = config.get("compile_config") or {}
    return compiled.get("optimizer"), version, weights


def _contents(
    path: str, file: Any, config: Any, library: str
) -> OptimizerFile | None:
    if "optimizer_weights" in file:
        return _whole_model(path, file)
    ignored: tuple[str, ...] = ()
    place = file.get("optimizer")
    if place is None:
        return None
    if "inner_optimizer" in place:
        place, ignored = place["inner_optimizer"], ("dynamic_scale",)
    if isinstance(config, dict) and "inner_optimizer" in config["config"]:
        config = config["config"]["inner_optimizer"]
    variables = place["vars"]
    order = sorted(variables, key=int)
    return OptimizerFile(
        path,
        arrays=tuple(_array(variables[i]) for i in order),
        names=(),
        config=config if isinstance(config, dict) else None,
        label=_text(variables.attrs.get("name", "")),
        weights=dict(_weights(file)),
        library=library,
        ignored=ignored,
    )


def _weights(file: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The model's variables by their places: "layers/dense/vars/0"."""
    places: list[str] = []
    file.visit(places.append)
    for place in places:
        top = place.split("/")[0]
        kept = re.search(r"(^|/)vars/\d+$", place)
        if kept and top not in ("optimizer", "metrics"):
            yield place, _array(file[place])


def _whole_model(path: str, file: Any) -> OptimizerFile:
    """An `.h5` file of a whole model, which has the variables' names."""
    training = json.loads(_text(file.attrs.get("training_config", "{}")))
    config = training.get("optimizer_config")
    ignored: tuple[str, ...] = ()
    if config and "inner_optimizer" in config["config"]:
        config, ignored = config["config"]["inner_optimizer"], ("loss_scale",)
    arrays = dict(_named(file["optimizer_weights"]))
    if ignored:
        arrays = _inner(arrays)
    weights: dict[str, np.ndarray] = {}
    for layer in _names(file["model_weights"], "layer_names"):
        weights.update(_named(file["model_weights"][layer]))
    return OptimizerFile(
        path,
        arrays=tuple(arrays.values()),
        names=tuple(arrays),
        config=config,
        label="",
        weights=weights,
        library=_text(file.attrs.get("keras_version", "")),
        ignored=ignored,
    )


def _inner(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the optimizer within a LossScaleOptimizer of Keras 3."""
    names = list(arrays)
    last = [
        n for n, name in enumerate(names) if name.endswith("/dynamic_scale")
    ]
    if not last:
        return dict(arrays)
    outer = names[last[0]].removesuffix("dynamic_scale")
    inner = names[last[0] + 1 :]
    return {name.removeprefix(outer): arrays[name] for name in inner}


def _named(group: Any) -> Iterator[tuple[str, np.ndarray]]:
    for name in _names(group, "weight_names"):
        yield name.split(":")[0], _array(group[name])


def _array(stored: Any) -> np.ndarray:
    """A value; HDF5 has bfloat16 as 2 bytes of no meaning."""
    value = np.asarray(stored[()])
    if value.dtype == np.dtype("V2"):
        return value.view(tf.bfloat16.as_numpy_dtype)
    return value


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names; Keras splits long ones into name0, name1 ..."""
    parts = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(parts)}" in group.attrs:
        parts.append(f"{attribute}{len(parts)}")
    return [_text(name) for part in parts for name in group.attrs[part]]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
