"""What is private in TensorFlow and JAX, and what is said when it moves."""

import importlib
import sys

import pytest
import tensorflow as tf

from tpu_scripts.aot import private

on_tpu = pytest.mark.tpu


def moved(call, *arguments):
    """The line in which a call says that what it needs has moved."""
    with pytest.raises(ImportError) as refusal:
        call(*arguments)
    message = str(refusal.value)
    assert "\n" not in message
    assert "has moved" in message
    assert "Known to work: TensorFlow 2.18 to 2.21, jax 0.10.2" in message
    assert tf.__version__ in message.partition("found: tensorflow")[2]
    return message


def graph_of_a_call():
    """A GraphDef with one function, and a call of it."""

    @tf.function
    def double(x):
        return 2 * x

    @tf.function
    def twice(x):
        return double(x)

    function = twice.get_concrete_function(tf.TensorSpec([]))
    return function.graph.as_graph_def()


@pytest.mark.core
def test_registered_kernels():
    found = {k.device_type for k in private.registered_kernels("MatMul")}
    assert "CPU" in found


@pytest.mark.core
def test_functions_are_defined():
    graph = graph_of_a_call()
    (definition,) = graph.library.function
    (call,) = (n for n in graph.node if definition.signature.name in str(n))
    definition.signature.name += "_defined"
    call.attr["f"].func.name += "_defined"
    private.define_function(definition)
    graph.ClearField("library")

    @tf.function
    def imported(x):
        (y,) = tf.graph_util.import_graph_def(
            graph, {"x": x}, [f"{call.name}:0"]
        )
        return y

    assert imported(tf.constant(3.0)) == 6.0


@pytest.mark.core
@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (
            "tensorflow.python.framework.kernels",
            "get_registered_kernels_for_op",
            private.registered_kernels,
        ),
        (
            "tensorflow.python.eager.context",
            "context",
            private.define_function,
        ),
    ],
)
def test_tensorflow_has_moved(monkeypatch, module, name, call):
    with monkeypatch.context() as patched:
        patched.delattr(importlib.import_module(module), name)
        assert name in moved(call, "MatMul")
    monkeypatch.setitem(sys.modules, module, None)
    assert module in moved(call, "MatMul")


def serialized():
    """A small program, as an HloModuleProto."""
    double = tf.function(lambda x: x + x, jit_compile=True)
    lower = double.experimental_get_compiler_ir(tf.TensorSpec([8]))
    return lower(stage="hlo_serialized")


@on_tpu
def test_a_program_is_compiled():
    devices = private.tpu_devices("v5e:2x2")
    assert len(devices) == 4
    executable = private.compile_hlo(serialized(), devices)
    (module,) = executable.hlo_modules()
    assert "replica_count=4" in module.to_string()


@on_tpu
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("jaxlib.xla_client", "CompileOptions"),
        ("jaxlib.xla_client", "DeviceAssignment"),
        ("jaxlib.xla_client", "DeviceList"),
        ("jax.extend.mlir", "hlo_to_stablehlo"),
        ("jax.interpreters.mlir", "make_ir_context"),
    ],
)
def test_jax_has_moved(monkeypatch, module, name):
    devices = private.tpu_devices("v5e:2x2")
    program = serialized()
    with monkeypatch.context() as patched:
        patched.delattr(importlib.import_module(module), name)
        assert name in moved(private.compile_hlo, program, devices)
    monkeypatch.setitem(sys.modules, module, None)
    assert module in moved(private.compile_hlo, program, devices)
