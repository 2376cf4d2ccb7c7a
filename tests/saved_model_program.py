"""Goes on training a SavedModel in a process that has no tf_adamw.

    python saved_model_program.py EXPORT BATCHES CHECKPOINT RESULTS

Trains on the first half of the batches, sets the learning rate, trains on the
second half, and writes a checkpoint and what it saw.
"""

import importlib
import sys

import numpy as np

RATE = 0.03125


class NoOptimizer:
    """A finder of modules before all others, for which tf_adamw is missing."""

    def find_spec(self, name, path=None, target=None):
        """Refuses the package; leaves all others to the next finder."""
        if name.partition(".")[0] == "tf_adamw":
            raise ModuleNotFoundError(f"No module named {name!r}")


def importable(name):
    """Whether the module can be imported."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


def steps(train_step, batches):
    """The losses of one step per batch."""
    return [float(train_step(x=x, y=y)["loss"]) for x, y in batches]


def main(export, batches, checkpoint, results):
    """Writes {name: array} to `results`."""
    sys.meta_path.insert(0, NoOptimizer())
    import tensorflow as tf

    with np.load(batches) as file:
        pairs = [
            (tf.constant(x), tf.constant(y))
            for x, y in zip(file["x"], file["y"], strict=True)
        ]
    loaded = tf.saved_model.load(export)
    train_step, half = loaded.train_step, len(pairs) // 2
    losses = steps(train_step, pairs[:half])
    traced = train_step.experimental_get_tracing_count()
    following = loaded.set_learning_rate(tf.constant(RATE))["next"]
    losses += steps(train_step, pairs[half:])
    saved = tf.train.Checkpoint(model=loaded.model, optimizer=loaded.optimizer)
    saved.write(checkpoint)
    np.savez(
        results,
        losses=losses,
        next_rate=following,
        retraced=train_step.experimental_get_tracing_count() - traced,
        iterations=loaded.optimizer.counters.iterations,
        predicted=loaded.signatures["predict"](x=pairs[0][0])["y"],
        imported=[name for name in sys.modules if "tf_adamw" in name],
        importable=importable("tf_adamw"),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
