"""Set-up of every test: devices, seeds, Hypothesis, the table of errors."""

import importlib.util
import os

# Before anything imports JAX: where libtpu is, it would look for a TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import numpy as np
import pytest
import tensorflow as tf

# Before anything starts TensorFlow: later it refuses to split its devices.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 4,
)

IN_CI = os.environ.get("CI") == "true"
# Every smaller example is compiled anew: in CI a failure is not worth minutes.
PHASES = [
    phase
    for phase in hypothesis.Phase
    if not IN_CI or phase.name not in ("shrink", "explain")
]
hypothesis.settings.register_profile(
    "tf_adamw",
    deadline=None,
    derandomize=IN_CI,
    phases=PHASES,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
    ],
)
hypothesis.settings.load_profile("tf_adamw")


# What the tests with a marker need that not every environment has.
NEEDED = {"orbit": ["orbit"], "tpu": ["jax", "libtpu"]}


def pytest_collection_modifyitems(config, items):
    """Leaves out what needs packages that are missing."""
    for marker, packages in NEEDED.items():
        if all(map(importlib.util.find_spec, packages)):
            continue
        left_out = [item for item in items if item.get_closest_marker(marker)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _seeds():
    tf.random.set_seed(1)
    np.random.seed(1)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture(scope="session")
def mirrored():
    """The one MirroredStrategy of the process with default collectives."""
    import strategies

    return strategies.named("mirrored_2")


@pytest.fixture
def functions(monkeypatch):
    """Every tf.function made while the test runs."""
    made = []
    original = tf.function

    def recording(func=None, **options):
        if func is None:
            return lambda inner: recording(inner, **options)
        made.append(original(func, **options))
        return made[-1]

    monkeypatch.setattr(tf, "function", recording)
    return made


def pytest_sessionfinish(session):
    """Under pytest-xdist, sends this process's worst errors."""
    import helpers

    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["worst_errors"] = helpers.WORST_ERRORS


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Receives them."""
    import helpers

    for label, error in (
        getattr(node, "workeroutput", {}).get("worst_errors", {}).items()
    ):
        helpers.record(label, error)


def pytest_terminal_summary(terminalreporter):
    """Prints the worst errors seen, as (label, error)."""
    import helpers

    if helpers.WORST_ERRORS:
        terminalreporter.section("worst errors")
    for label, error in sorted(helpers.WORST_ERRORS.items()):
        terminalreporter.write_line(f"{error:9.2e}  {label}")
