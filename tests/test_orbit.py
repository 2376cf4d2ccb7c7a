"""Orbit, where it is installed: its loops, its controller, the example."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn import datasets

import strategies
import tf_adamw
from numpy_adamw import NumpyAdamW
from test_examples import run

pytestmark = pytest.mark.orbit
RATE = 0.01
X = np.linspace(-1.0, 1.0, 24, dtype=np.float32).reshape(8, 3)
Y = np.sin(np.arange(8, dtype=np.float32))
START = np.float32([0.5, -0.25, 1.0])


def trainer(strategy, options=None, **settings):
    """Fits Y, linearly in X, with all of both in a step; evaluates on both."""
    # Not where Orbit is missing, and pytest only looks for tests.
    import orbit

    class Trainer(orbit.StandardTrainer, orbit.StandardEvaluator):
        def __init__(self):
            data = tf.data.Dataset.from_tensor_slices((X, Y))
            distribute = strategy.experimental_distribute_dataset
            train, test = data.batch(8).repeat(), data.batch(4)
            orbit.StandardTrainer.__init__(self, distribute(train), options)
            orbit.StandardEvaluator.__init__(self, distribute(test))
            self.w = tf.Variable(START, name="w")
            self.adamw = tf_adamw.AdamW(RATE, aggregation="mean", **settings)
            self.adamw.build([self.w])
            self.step = orbit.utils.create_global_step()

        def loss(self, x, y):
            return tf.reduce_mean((tf.linalg.matvec(x, self.w) - y) ** 2)

        def train_step(self, iterator):
            def replica_step(x, y):
                with tf.GradientTape() as tape:
                    loss = self.loss(x, y)
                self.adamw.minimize(loss, [self.w], tape)

            strategy.run(replica_step, args=next(iterator))
            self.step.assign_add(1)

        def train_loop_end(self):
            return {"first": self.w[0]}

        def eval_begin(self):
            return []

        def eval_step(self, iterator):
            losses = strategy.run(self.loss, args=next(iterator))
            return strategy.reduce("MEAN", losses, axis=None)

        def eval_reduce(self, state, loss):
            return [*state, loss]

        def eval_end(self, losses):
            return {"loss": tf.reduce_mean(losses)}

    with strategy.scope():
        return Trainer()


def controller(made, strategy, directory):
    import orbit

    saved = tf.train.Checkpoint(w=made.w, adamw=made.adamw, step=made.step)
    manager = tf.train.CheckpointManager(
        saved,
        directory,
        max_to_keep=2,
        step_counter=made.step,
        checkpoint_interval=4,
    )
    return orbit.Controller(
        trainer=made,
        evaluator=made,
        strategy=strategy,
        global_step=made.step,
        steps_per_loop=4,
        checkpoint_manager=manager,
        summary_dir=str(directory),
    )


def fitted(steps):
    """The weights after so many steps, and their loss, by the reference."""
    reference = NumpyAdamW({"w": START}, learning_rate=RATE)
    for _ in range(steps):
        residual = X @ reference.weights["w"] - Y
        reference.apply({"w": 2 * X.T @ residual / 8})
    w = reference.weights["w"]
    return w, np.mean((X @ w - Y) ** 2)


LOOPS = {
    "tf.while_loop": {},
    "Python loop": {"use_tf_while_loop": False},
    "eager": {"use_tf_while_loop": False, "use_tf_function": False},
    "two programs": {"use_tpu_summary_optimization": True},
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["default", "mirrored_2"])
def test_loops(name, loop, tmp_path):
    import orbit

    strategy = strategies.named(name)
    options = orbit.StandardTrainerOptions(**LOOPS[loop])
    made = trainer(strategy, options)
    result = controller(made, strategy, tmp_path).train_and_evaluate(
        10, eval_interval=5
    )
    expected, loss = fitted(10)
    assert made.adamw.iterations.numpy() == 10
    np.testing.assert_allclose(made.w.numpy(), expected, rtol=2e-6)
    np.testing.assert_allclose(result["loss"], loss, rtol=1e-5)


@pytest.mark.parametrize("name", ["default", "mirrored_2"])
def test_controller_goes_on(name, tmp_path):
    strategy = strategies.named(name)
    settings = {
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "skip_nonfinite": True,
    }

    def run(steps, directory):
        made = trainer(strategy, **settings)
        controller(made, strategy, directory).train(steps)
        return made

    run(7, tmp_path / "run")  # in the middle of a window
    again = run(12, tmp_path / "run")
    whole = run(12, tmp_path / "whole")
    assert again.adamw.iterations.numpy() == 6
    np.testing.assert_array_equal(again.w.numpy(), whole.w.numpy())
    for slot in ("momentum", "velocity", "average"):
        np.testing.assert_array_equal(
            again.adamw.get_slot(again.w, slot),
            whole.adamw.get_slot(whole.w, slot),
        )


def summaries(directory):
    """The (tag, step) pairs in a directory's event files."""
    return {
        (value.tag, event.step)
        for file in directory.glob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }


def test_own_trainer_of_orbit():
    """The one in Orbit's examples, written for tf_keras's optimizers."""
    import tf_keras
    from orbit.examples.single_task import single_task_trainer

    strategy = strategies.named("mirrored_2")
    data = tf.data.Dataset.from_tensor_slices({"x": X, "y": Y[:, None]})
    with strategy.scope():
        inputs = {"x": tf_keras.Input([3], name="x")}
        dense = tf_keras.layers.Dense(1, use_bias=False)
        model = tf_keras.Model(inputs, dense(inputs["x"]))
        dense.kernel.assign(START[:, None])
        adamw = tf_adamw.AdamW(RATE)
        made = single_task_trainer.SingleTaskTrainer(
            strategy.experimental_distribute_dataset(data.batch(8).repeat()),
            "y",
            model,
            lambda y, out: (y - out) ** 2,
            adamw,
        )
    made.train(tf.constant(10))
    expected, _ = fitted(10)
    np.testing.assert_allclose(dense.kernel[:, 0], expected, rtol=2e-6)


def test_example_goes_on(tmp_path):
    """Better, in nats, than the frequencies of the digits; better later."""
    _, labels = datasets.load_digits(return_X_y=True)
    shares = np.bincount(labels[:1347]) / 1347
    frequencies = -np.mean(np.log(shares[labels[1347:]]))
    directory = f"--model_dir={tmp_path}"
    early = run("orbit_loop", directory, "--steps=100")["loss"]
    late = run("orbit_loop", directory, "--steps=300")["loss"]
    assert late < early < frequencies
    assert {step for _, step in summaries(tmp_path)} == {100, 200, 300}
    saved = tf.train.latest_checkpoint(tmp_path)
    assert saved.endswith("-300")
