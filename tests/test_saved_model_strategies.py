"""SavedModels made under a strategy, and loaded under one."""

import contextlib

import pytest
import tensorflow as tf

import cluster
import helpers
import saved_model_module as module
import strategies

pytestmark = pytest.mark.core


def reduced_step(strategy, trainer):
    """A step of a live or loaded trainer, on sums of gradients."""

    def step(x, y):
        own = trainer.gradients(x, y)["gradients"]
        context = tf.distribute.get_replica_context()
        trainer.apply(context.all_reduce("SUM", own))

    return tf.function(lambda x, y: strategy.run(step, (x, y)))


def all_copies(strategy, trainer):
    """{path: the bytes of all copies} of every variable, live or loaded."""
    found, todo = {}, [("", module.checkpoint_of(trainer))]
    while todo:
        path, parent = todo.pop()
        children = tf.train.TrackableView.children(parent)
        for name, child in children.items():
            if not isinstance(child, tf.Variable):
                todo.append((f"{path}/{name}", child))
                continue
            copies = strategy.experimental_local_results(child)
            found[f"{path}/{name}"] = [copy.numpy() for copy in copies]
    return {k: [c.tobytes() for c in copies] for k, copies in found.items()}


@pytest.mark.parametrize(
    ("name", "where"), [("plain", "in the scope"), ("rich", "outside")]
)
def test_made_on_replicas_loaded_without(mirrored, name, where, tmp_path):
    """It goes on as a module without a strategy does, bit for bit."""
    trainer = module.made_in(mirrored, name)
    module.train_live(mirrored, trainer, 0, 3)
    scope = mirrored.scope() if where == "in the scope" else None
    with scope or contextlib.nullcontext():
        export = trainer.export(tmp_path / "export")
    path = module.checkpoint_of(trainer).write(str(tmp_path / "checkpoint"))
    alone = module.Trainer(name)
    module.checkpoint_of(alone).read(path).assert_consumed()
    loaded = tf.saved_model.load(export)
    assert module.train(loaded, 3, 6) == module.train(alone, 3, 6)
    rate = tf.constant(0.25)
    assert loaded.set_learning_rate(rate) == alone.set_learning_rate(rate)
    assert module.train(loaded, 6, 9) == module.train(alone, 6, 9)
    assert module.saved_bits(loaded, tmp_path) == module.saved_bits(
        alone, tmp_path
    )


@pytest.mark.slow
def test_made_by_two_workers(tmp_path):
    """Each worker's export goes on as a module that reads their checkpoint."""
    program = str(cluster.HERE / "saved_model_worker_program.py")
    cluster.run({"worker": 2}, tmp_path, [program, str(tmp_path)])
    alone = module.Trainer("rich")
    path = str(tmp_path / "checkpoint-0")
    module.checkpoint_of(alone).read(path).assert_consumed()
    losses = module.train(alone, 3, 6)
    expected = module.saved_bits(alone, tmp_path)
    for worker in ("0", "1"):
        loaded = tf.saved_model.load(str(tmp_path / worker))
        assert module.train(loaded, 3, 6) == losses
        assert module.saved_bits(loaded, tmp_path) == expected


def test_the_live_module_trains_on_after_the_export(mirrored, tmp_path):
    """What the export traces is not what the replicas run."""
    first, second = (module.made_in(mirrored, "plain") for _ in range(2))
    module.train_live(mirrored, first, 0, 3)
    first.export(tmp_path / "export")
    module.train_live(mirrored, first, 3, 6)
    module.train_live(mirrored, second, 0, 6)
    assert module.saved_bits(first, tmp_path) == module.saved_bits(
        second, tmp_path
    )


def trained_on_replicas(strategy, trainer):
    """Six steps, the rate set after the fourth."""
    train_step = reduced_step(strategy, trainer)
    for number in range(6):
        if number == 4:
            strategy.run(trainer.set_learning_rate, args=(tf.constant(0.03),))
        train_step(*module.place(strategy, module.batch(number)))
    return all_copies(strategy, trainer)


def trained_alone(trainer):
    """The same on the whole batches, without a strategy."""
    module.train(trainer, 0, 4)
    trainer.set_learning_rate(tf.constant(0.03))
    module.train(trainer, 4, 6)


def check_weights(loaded, alone):
    for key, variable in alone.model.by_key().items():
        trained = getattr(loaded.model, key).numpy()
        assert helpers.relative_error(trained, variable) < 2e-6


@pytest.mark.parametrize(
    "name", ["plain", pytest.param("rich", marks=pytest.mark.slow)]
)
def test_loaded_on_replicas(mirrored, name, tmp_path):
    """As live replicas that are given the same sums, bit for bit."""
    export = module.Trainer(name).export(tmp_path / "export")
    with mirrored.scope():
        loaded = tf.saved_model.load(export)
    found = trained_on_replicas(mirrored, loaded)
    live = module.made_in(mirrored, name, aggregation="none")
    assert found == trained_on_replicas(mirrored, live)
    assert len(found["/model/hidden"]) == 2
    alone = module.Trainer(name)
    trained_alone(alone)
    check_weights(loaded, alone)


def test_made_on_replicas_and_loaded_there(mirrored, tmp_path):
    """Between two windows, the only place that is right for such a one."""
    trainer = module.made_in(mirrored, "rich")
    module.train_live(mirrored, trainer, 0, 2)
    export = trainer.export(tmp_path / "export")
    alone = module.Trainer("rich")
    path = module.checkpoint_of(trainer).write(str(tmp_path / "checkpoint"))
    module.checkpoint_of(alone).read(path)
    with mirrored.scope():
        loaded = tf.saved_model.load(export)
    trained_on_replicas(mirrored, loaded)
    trained_alone(alone)
    check_weights(loaded, alone)


@pytest.mark.parametrize(
    ("strategy", "aggregation", "jit_compile"),
    [
        ("mirrored_2", "sum", "auto"),
        pytest.param("mirrored_2", "none", "auto", marks=pytest.mark.slow),
        pytest.param("mirrored_4", "sum", False, marks=pytest.mark.slow),
        ("mirrored_4", "none", False),
    ],
)
def test_replicas_in_an_export_are_refused(
    strategy, aggregation, jit_compile, tmp_path
):
    """Each of them would update the one exported variable."""
    strategy = strategies.named(strategy)
    trainer = module.made_in(
        strategy, "plain", aggregation=aggregation, jit_compile=jit_compile
    )
    before = all_copies(strategy, trainer)

    @tf.function(input_signature=[], autograph=False)
    def train_step():
        variables = list(trainer.model.by_key().values())
        strategy.run(lambda: trainer.optimizer.apply(variables, variables))
        return tf.zeros([])

    trainer.more = train_step
    # Without it the gradient of a reduction may be what TensorFlow refuses.
    how = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with pytest.raises(
        ValueError, match=r"outside of strategy\.run"
    ) as refusal:
        trainer.export(tmp_path / "export", options=how)
    assert "\n" not in str(refusal.value)
    assert all_copies(strategy, trainer) == before
