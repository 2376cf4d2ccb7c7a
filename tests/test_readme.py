"""The README's code runs as it stands."""

import pathlib
import re
import runpy

import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.core

README = pathlib.Path(__file__).parent.parent / "README.md"


def python_blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def tpu_loop():
    return next(code for code in python_blocks() if "TPUStrategy" in code)


def test_first_example_trains(capsys):
    namespace = {}
    exec(python_blocks()[0], namespace)
    assert bool(namespace["result"].applied)
    assert float(namespace["result"].grad_norm) > 0
    assert namespace["optimizer"].learning_rate == np.float32(5e-4)
    assert "dense/bias" in capsys.readouterr().out


def test_average_example():
    namespace = {}
    exec(python_blocks()[1], namespace)
    optimizer, w = namespace["optimizer"], namespace["w"]
    assert optimizer.iterations == 2
    np.testing.assert_array_equal(w, optimizer.get_slot(w, "average"))


class Cpus(tf.distribute.MirroredStrategy):
    """Stands in for TPUStrategy: all but the TPU itself is run."""

    count = 1

    def __init__(self, resolver):
        super().__init__(
            [f"/cpu:{number}" for number in range(self.count)],
            tf.distribute.ReductionToOneDevice(),
        )


@pytest.mark.parametrize("count", [1, 2])
def test_tpu_loop_trains_on_replicas(tmp_path, monkeypatch, count):
    monkeypatch.setattr(Cpus, "count", count)
    monkeypatch.setattr(tf.distribute, "TPUStrategy", Cpus)
    for module, name in (
        (tf.distribute.cluster_resolver, "TPUClusterResolver"),
        (tf.config, "experimental_connect_to_cluster"),
        (tf.tpu.experimental, "initialize_tpu_system"),
    ):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: None)
    code = tpu_loop().replace("/tmp/tf_adamw_loop", str(tmp_path))
    # AutoGraph needs a file to read.
    path = tmp_path / "loop.py"
    path.write_text(code)
    namespace = runpy.run_path(str(path))
    assert namespace["optimizer"].iterations.numpy() == 100
    names = [name for name, _ in tf.train.list_variables(str(tmp_path))]
    assert any("optimizer/slots/w/momentum" in name for name in names)


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z_]+@", README.read_text())
