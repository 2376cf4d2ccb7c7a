"""Tests of how the optimizers for Keras find what belongs to a variable."""

import pytest

from keras_adapters import PLAIN, Adapted, check_equal, state

NAMES = ("body", "head", "out")


class KeyTests(Adapted):
    """Subclassed for each library."""

    def named_model(self, names=NAMES, units=3, **options):
        """A compiled model; the first two layers have one shape, if of 3."""
        dense = self.library.layers.Dense
        self.library.utils.set_random_seed(1)
        layers = [dense(units, "tanh", name=names[0])]
        layers += [dense(3, "tanh", name=names[1]), dense(1, name=names[2])]
        model = self.library.Sequential(layers, name="net")
        model.build((None, 3))
        self.compile(model, self.adapter.AdamW(0.02, **PLAIN, **options))
        return model

    def compile(self, model, optimizer):
        loss = self.library.losses.MeanSquaredError()
        model.compile(optimizer, loss, run_eagerly=True)

    def thaw(self, model):
        """Trains all layers but the first, then all."""
        model.layers[0].trainable = False
        self.compile(model, model.optimizer)
        self.fit(model)
        model.layers[0].trainable = True
        self.compile(model, model.optimizer)
        self.fit(model)

    def check_goes_on(self, loaded, model):
        for one in (model, loaded):
            self.fit(one)
        check_equal(state(loaded), state(model))

    def keys(self, model):
        return [p.key for p in model.optimizer.adamw.parameters]

    def loaded(self, model, tmp_path, suffix="keras", **options):
        path = str(tmp_path / f"model.{suffix}")
        model.save(path)
        loaded = self.library.models.load_model(path, **options)
        self.compile(loaded, loaded.optimizer)
        return loaded

    @pytest.mark.parametrize("units", [3, 4])
    def test_a_layer_that_is_thawed_later(self, units, tmp_path):
        self.check_thawed(tmp_path, units)

    def check_thawed(self, tmp_path, units=3, suffix="keras"):
        model = self.named_model(
            units=units,
            weight_decay=0.1,
            exclude_from_weight_decay=["head/kernel"],
            learning_rate_multipliers={"head": 0.25},
        )
        self.thaw(model)
        loaded = self.loaded(model, tmp_path, suffix)
        self.check_goes_on(loaded, model)

    def test_a_model_that_is_saved_frozen(self, tmp_path):
        model = self.named_model()
        self.fit(model)

        def set_trainable(one, trainable):
            for layer in one.layers:
                layer.trainable = trainable
            self.compile(one, one.optimizer)

        set_trainable(model, False)
        loaded = self.loaded(model, tmp_path)
        for one in (model, loaded):
            set_trainable(one, True)
        self.check_goes_on(loaded, model)

    def test_a_thawed_layer_with_another_name(self, tmp_path):
        """As automatic names are, in a second model of a process."""
        model = self.named_model()
        self.thaw(model)
        path = str(tmp_path / "model.weights.h5")
        model.save_weights(path)
        other = self.named_model(("body_1", "head_1", "out_1"))
        with pytest.warns(UserWarning, match="Their order matched them"):
            other.load_weights(path)
            self.fit(other)
        self.fit(model)
        check_equal(state(other), state(model))

    def test_files_in_the_order_of_building(self):
        """Files had that order once; their keys tell more."""
        model = self.named_model()
        self.thaw(model)
        file, old = {}, {}
        model.optimizer.save_own_variables(file)
        numbers = {"0": 4, "1": 5, "2": 0, "3": 1, "4": 2, "5": 3}
        for name, value in file.items():
            if name.startswith("slots|"):
                _, number, key = name.split("|", 2)
                name = f"slots|{numbers[number]}|{key}"
            old[name] = value
        other = self.named_model()
        other.set_weights(model.get_weights())
        other.optimizer.build(other.trainable_variables)
        other.optimizer.load_own_variables(old)
        self.check_goes_on(other, model)

    def test_the_configuration_of_another_model(self):
        model = self.named_model()
        self.fit(model)
        config = model.optimizer.get_config()
        names = ("encoder", "head", "decoder")
        fresh, other = self.named_model(names), self.named_model(names)
        self.compile(other, self.adapter.AdamW.from_config(config))
        for one in (fresh, other):
            self.fit(one)
        assert self.keys(other) == self.keys(fresh)
        assert other.optimizer.get_config()["keys"] == self.keys(fresh)

    def test_selected_variables_before_fit(self, tmp_path):
        model = self.named_model()
        _, head, out = model.layers
        optimizer = self.adapter.AdamW(
            exclude_from_weight_decay=[head.bias],
            learning_rate_multipliers=[(head.kernel, 0.5)],
            weight_decay_multipliers=[(out.kernel, 0.5)],
            norm_groups={"out": [out.bias]},
            **PLAIN,
        )
        self.compile(model, optimizer)
        loaded = self.loaded(self.loaded(model, tmp_path), tmp_path)
        self.check_goes_on(loaded, model)
        parameters = loaded.optimizer.adamw.parameters
        excluded = [p.key.endswith("head/bias") for p in parameters]
        assert [not p.decayed for p in parameters] == excluded
        grouped = [p.key.endswith("out/bias") for p in parameters]
        assert [bool(p.groups) for p in parameters] == grouped
