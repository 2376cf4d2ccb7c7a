"""Models with an optimizer and a checkpoint, for the tests of restore."""

import tensorflow as tf

import tf_adamw
from checkpoint_model import Layer, Model, train

EVERYTHING = {
    "amsgrad": True,
    "use_ema": True,
    "gradient_accumulation_steps": 2,
    "loss_scale_factor": tf_adamw.DynamicLossScale(initial=64.0),
}


class Run:
    """A model and an optimizer, trained by some steps, and their checkpoint."""

    def __init__(self, steps=0, model=None, **options):
        self.model = model or Model()
        self.optimizer = tf_adamw.AdamW(jit_compile=False, **options)
        self.optimizer.build(self.model)
        self.checkpoint = tf.train.Checkpoint(
            model=self.model, optimizer=self.optimizer
        )
        scale = options.get("loss_scale_factor")
        self.scale = float(self.optimizer.loss_scale) if scale else 1.0
        train(self.optimizer, self.model, 0, steps, self.scale)

    def bits(self):
        """{variable: bytes} of all that there is."""
        variables = [*self.optimizer.variables, *self.model.variables]
        return {v.ref(): v.numpy().tobytes() for v in variables}

    def slots(self, name):
        return {
            key: slots[name].numpy()
            for key, slots in self.optimizer.slots.items()
        }

    def weights(self):
        return {k: v.numpy() for k, v in self.model.by_key().items()}


class Named(tf.Module):
    """A model whose layers are attributes."""

    def __init__(self, frozen=(), **shapes):
        super().__init__()
        self._frozen = frozen
        for name, shape in shapes.items():
            setattr(self, name, Layer(*shape))

    @property
    def trainable_variables(self):
        return [
            variable
            for name in sorted(vars(self))
            if isinstance(layer := getattr(self, name), Layer)
            for kind in ("kernel", "bias")
            for variable in [getattr(layer, kind)]
            if f"{name}/{kind}" not in self._frozen
        ]

    def by_key(self):
        found = [
            (f"{name}/{kind}", getattr(getattr(self, name), kind))
            for name in sorted(vars(self))
            if isinstance(getattr(self, name), Layer)
            for kind in ("kernel", "bias")
        ]
        return {k: v for k, v in found if k not in self._frozen}
