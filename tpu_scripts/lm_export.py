"""The trained model as a SavedModel that generates and goes on training."""

import tensorflow as tf

import tf_adamw.checkpoint
from tf_adamw import AdamW
from tpu_scripts.lm_model import LanguageModel, ModelConfig
from tpu_scripts.lm_training import train_step


class ExportedModel(tf.Module):
    """Model and optimizer with the signatures `train_step` and `generate`.

    With `use_ema`, `generate` uses the averages of the exported checkpoint:
    calls of `train_step` train the model and do not move them.

    Args:
      config: the configuration of the model.
      optimizer: an optimizer that is not built yet.
      checkpoint: path of the checkpoint to take all values from.
    """

    def __init__(self, config: ModelConfig, optimizer: AdamW, checkpoint: str):
        super().__init__(name="exported_model")
        self.model = LanguageModel(config)
        self.optimizer = optimizer
        optimizer.build(self.model)
        report = tf_adamw.checkpoint.restore(
            tf.train.Checkpoint(model=self.model, optimizer=optimizer),
            checkpoint,
        )
        if report.seeded or report.mismatched:
            raise ValueError(f"{checkpoint!r} is not of this model. {report}")
        # Training goes on with the weights, generation uses their average.
        self.generator = self.model
        if optimizer.use_ema:
            self.generator = LanguageModel(config)
            with optimizer.averaged_weights():
                for target, source in zip(
                    self.generator.variables,
                    self.model.variables,
                    strict=True,
                ):
                    target.assign(source)

    def save(self, path: str, batch_size: int) -> None:
        """Writes the SavedModel.

        Args:
          path: the directory to write.
          batch_size: examples per call of `train_step`.
        """
        context = self.model.context

        @tf.function(
            input_signature=[
                tf.TensorSpec(
                    [batch_size, context + 1], tf.int32, name="windows"
                )
            ]
        )
        def step(windows: tf.Tensor) -> dict[str, tf.Tensor]:
            loss, norm = train_step(
                self.model, self.optimizer, windows, batch_size
            )
            return {"loss": loss, "gradient_norm": norm}

        self.train_step = step
        tf.saved_model.save(
            self,
            path,
            signatures={"train_step": step, "generate": self.generate},
        )

    @tf.function(
        input_signature=[
            tf.TensorSpec([], tf.string, name="prompt"),
            tf.TensorSpec([], tf.int32, name="length"),
            tf.TensorSpec([], tf.float32, name="temperature"),
            tf.TensorSpec([], tf.int32, name="seed"),
        ]
    )
    def generate(
        self,
        prompt: tf.Tensor,
        length: tf.Tensor,
        temperature: tf.Tensor,
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Continues a text; with `use_ema` by the averages of the export.

        Args:
          prompt: string, the beginning; an empty one reads as a newline.
          length: int32, the number of bytes to add.
          temperature: float32, what the scores are divided by; 0 or less
            takes the likeliest byte.
          seed: int32; the same one gives the same text.

        Returns:
          `{"text": string}`: the prompt and what follows.
        """
        context = self.generator.context
        temperature = tf.maximum(temperature, 1e-9)
        prompt = tf.where(tf.equal(prompt, ""), "\n", prompt)
        tokens = tf.cast(tf.io.decode_raw(prompt, tf.uint8), tf.int32)
        tokens = tokens[-context:]
        count = tf.size(tokens)
        window = tf.pad(tokens, [[0, context - count]])
        window.set_shape([context])
        added = tf.TensorArray(tf.int32, size=length, element_shape=[])
        for i in tf.range(length):
            logits = self.generator(window[tf.newaxis])[:, count - 1]
            token = tf.random.stateless_categorical(
                logits / temperature, 1, [seed, i], dtype=tf.int32
            )[0, 0]
            added = added.write(i, token)
            if count == context:  # forget the oldest byte
                window, count = tf.roll(window, -1, axis=0), count - 1
            window = tf.where(tf.range(context) == count, token, window)
            count += 1
        characters = tf.constant([bytes([byte]) for byte in range(256)])
        text = tf.strings.reduce_join(tf.gather(characters, added.stack()))
        return {"text": prompt + text}


def sample(path: str, prompt: str, length: int, seed: int) -> str:
    """Loads the SavedModel and lets it continue the prompt."""
    generate = tf.saved_model.load(path).signatures["generate"]
    text = generate(
        prompt=tf.constant(prompt),
        length=tf.constant(length),
        temperature=tf.constant(0.8),
        seed=tf.constant(seed),
    )["text"]
    return text.numpy().decode(errors="replace")
