"""Writes a golden checkpoint for every option without one.

    python tests/goldens/make_golden.py [option ...]

The options are those of helpers.OPTIONS and of checkpoint_model. The folder
of an option is in format_<version>, of those of version 1 in this
one. A golden is what this version wrote: it is never written again. A change
that cannot read one has to be made so that it can.
"""

import json
import pathlib
import sys

import numpy as np
import tensorflow as tf

GOLDENS = pathlib.Path(__file__).parent
sys.path[:0] = [str(GOLDENS.parent), str(GOLDENS.parents[1])]

import helpers  # noqa: E402
import tf_adamw  # noqa: E402
from checkpoint_model import OF_HYPERPARAMETERS, made  # noqa: E402
from tf_adamw.scalar_state import FORMAT_VERSION  # noqa: E402

FOLDER = GOLDENS / f"format_{FORMAT_VERSION}"

COUNTERS = {
    "format_version": FORMAT_VERSION,
    "iterations": 7,
    "window_position": 1,
    "good_updates": 3,
}


def value_of(key, number, variable):
    """A value that no other key has; moderate ones, so that a step is one."""
    name = key.split("/")[-1]
    if name in COUNTERS:
        return COUNTERS[name]
    elements = np.arange(variable.shape.num_elements()) / 1024
    value = 1 + (number + 1) / 64 + elements.reshape(variable.shape)
    return value / 64 if "hyperparameters" in key else value


def values_of(found):
    """{key: value}; rounded, an exact value is that without "_float64"."""
    values = {
        key: value_of(key, number, found[key])
        for number, key in enumerate(sorted(found))
    }
    for key in found:
        if key.endswith("_float64"):
            values[key] = values[key.removesuffix("_float64")] * (1 + 2.0**-40)
    return values


def variables_by_key(root):
    """{checkpoint key: variable}: shortest paths from `root`, escaped."""
    found, seen, queue = {}, {id(root)}, [((), root)]
    for path, parent in queue:
        for name, child in tf.train.TrackableView.children(parent).items():
            if id(child) in seen:
                continue
            seen.add(id(child))
            here = (*path, name.replace(".", "..").replace("/", ".S"))
            queue.append((here, child))
            if isinstance(child, tf.Variable):
                found["/".join(here)] = child
    return found


def write(option):
    """Writes the golden of one option; refuses if there is one."""
    folder = FOLDER / option
    if folder.exists():
        sys.exit(f"{folder} exists; a golden is never written again")
    model, options = made(option)
    optimizer = tf_adamw.AdamW(**options)
    optimizer.build(model)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    found = variables_by_key(checkpoint)
    for key, value in values_of(found).items():
        found[key].assign(tf.cast(value, found[key].dtype))
    folder.mkdir(parents=True)
    path = checkpoint.write(str(folder / "checkpoint"))
    values = helpers.checkpoint_values(path)
    if set(values) != set(found):
        sys.exit(f"keys {set(values) ^ set(found)} are not as expected")
    lists = {k: v.astype(float).tolist() for k, v in sorted(values.items())}
    text = json.dumps(lists, indent=0)
    (folder / "values.json").write_text(text + "\n")


def main():
    """Writes the goldens named on the command line, or all that lack."""
    options = sys.argv[1:] or [
        option
        for option in (*helpers.OPTIONS, *OF_HYPERPARAMETERS)
        if not (FOLDER / option).exists()
    ]
    for option in options:
        write(option)
        print(f"wrote {FOLDER / option}")


if __name__ == "__main__":
    main()
