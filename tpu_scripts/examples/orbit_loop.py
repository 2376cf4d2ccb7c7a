"""Orbit saves, resumes and writes summaries: a linear reader of digits.

    python -m tpu_scripts.examples.orbit_loop --model_dir=/tmp/orbit_loop

Orbit comes with `pip install --no-deps tf-models-official`.
"""

import orbit
import tensorflow as tf
from absl import app, flags
from sklearn import datasets

from tf_adamw import AdamW

STEPS = flags.DEFINE_integer("steps", 500, "Steps, earlier runs included.")
MODEL_DIR = flags.DEFINE_string("model_dir", None, "Output.", required=True)


class Trainer(orbit.StandardTrainer):
    def __init__(self, data: tf.data.Dataset) -> None:
        self.strategy = tf.distribute.get_strategy()
        super().__init__(self.strategy.experimental_distribute_dataset(data))
        self.w = tf.Variable(tf.zeros([64, 10]), name="w")
        self.adamw = AdamW(0.01, aggregation="mean")
        self.adamw.build({"w": self.w})

    def loss(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        fit = tf.nn.log_softmax(tf.cast(images, tf.float32) / 16 @ self.w)
        return -tf.reduce_mean(tf.gather(fit, labels, batch_dims=1))

    def train_step(self, iterator: tf.data.Iterator) -> None:
        def replica_step(*batch: tf.Tensor) -> None:
            self.adamw.minimize(lambda: self.loss(*batch), [self.w])

        self.strategy.run(replica_step, args=next(iterator))


def main(_: list[str]) -> None:
    images, labels = datasets.load_digits(return_X_y=True)
    data = tf.data.Dataset.from_tensor_slices((images[:1347], labels[:1347]))
    with tf.distribute.MirroredStrategy().scope():
        trainer = Trainer(data.shuffle(1347).repeat().batch(64))
    step = trainer.adamw.iterations
    state = tf.train.Checkpoint(w=trainer.w, adamw=trainer.adamw)
    controller = orbit.Controller(
        trainer=trainer,
        strategy=trainer.strategy,
        global_step=step,
        steps_per_loop=100,
        checkpoint_manager=tf.train.CheckpointManager(
            state, MODEL_DIR.value, 3, step_counter=step, checkpoint_interval=1
        ),
        summary_dir=MODEL_DIR.value,
    )
    controller.train(STEPS.value)
    print(f"held-out loss: {trainer.loss(images[1347:], labels[1347:]):.3f}")


if __name__ == "__main__":
    app.run(main)
