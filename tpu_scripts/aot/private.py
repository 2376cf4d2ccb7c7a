"""Everything of TensorFlow and JAX that is not public, and what it is for.

Seen to work with TensorFlow 2.18 to 2.21 and with jax 0.10.2 and libtpu
0.0.42.1 and 0.0.52.
"""

import contextlib
import importlib
import importlib.metadata
import math
import os
import textwrap
from typing import Any

import numpy as np

_WORKING = "TensorFlow 2.18 to 2.21, jax 0.10.2, libtpu 0.0.42.1"

# Without these libtpu asks a metadata server what machine it is on, and is
# aborted where another process has loaded it.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class MissingExtraError(ImportError):
    """JAX or libtpu is not installed."""


class CompilerError(Exception):
    """The TPU compiler refuses a program, or does not know a topology."""


def define_function(function: Any) -> None:
    """Makes a FunctionDef callable: there is no public way to define one."""
    _find("tensorflow.python.eager.context", "context")().add_function_def(
        function
    )


def registered_kernels(operation: str) -> Any:
    """The kernels of an operation: there is no public way to ask for them."""
    module = "tensorflow.python.framework.kernels"
    return _find(module, "get_registered_kernels_for_op")(operation).kernel


def tpu_devices(topology: str) -> list[Any]:
    """The compile-only devices of a slice, one per replica.

    Args:
      topology: a name that libtpu knows, "v5e:2x4" for example.

    Raises:
      MissingExtraError: JAX or libtpu is not installed.
      CompilerError: libtpu does not know the topology.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        importlib.import_module("libtpu")
        importlib.import_module("jax")
    except ImportError as error:
        raise MissingExtraError(
            f"jax and libtpu are needed ({error}): pip install '.[aot]'"
        ) from error
    describe = _find("jax.experimental.topologies", "get_topology_desc")
    try:
        options = _host_bounds(topology)
        if topology.lower().startswith("v4:"):
            # As TensorFlow has it: one replica for the two cores of a chip.
            options["chip_config_name"] = "megacore"
        return list(describe(topology, "tpu", **options).devices)
    except Exception as error:  # of several kinds, by what is wrong
        reason = textwrap.shorten(str(error), 300)
        raise CompilerError(f"topology {topology!r}: {reason}") from error


def _host_bounds(topology: str) -> dict[str, Any]:
    """What libtpu has to be told of a slice of less than a host, 2x2 chips."""
    _, _, layout = topology.partition(":")
    sizes = [int(size) for size in layout.split("x") if size.isdigit()]
    if math.prod(sizes) >= 4:
        return {}
    return {"chips_per_host_bounds": (*sizes, 1, 1, 1)[:3]}


def compile_hlo(serialized_hlo: bytes, devices: list[Any]) -> Any:
    """Compiles an HLO module for one replica per device.

    `jax.jit` has no public way to compile a module for replicas that meet in
    `all-reduce`s of their own.

    Args:
      serialized_hlo: an HloModuleProto.
      devices: from `tpu_devices`.

    Returns:
      JAX's executable.

    Raises:
      CompilerError: the compiler refuses the program.
    """
    client = "jaxlib.xla_client"
    options = _find(client, "CompileOptions")()
    options.num_replicas, options.num_partitions = len(devices), 1
    options.device_assignment = _find(client, "DeviceAssignment").create(
        np.arange(len(devices)).reshape(-1, 1)
    )
    replicas = _find(client, "DeviceList")(tuple(devices))
    to_stablehlo = _find("jax.extend.mlir", "hlo_to_stablehlo")
    make_context = _find("jax.interpreters.mlir", "make_ir_context")
    ir = _find("jax.interpreters.mlir", "ir")
    refusal = _find("jax.errors", "JaxRuntimeError")
    try:
        portable = to_stablehlo(serialized_hlo)
        with make_context():
            module = ir.Module.parse(portable)
            _erase_copies(module.operation)
        return devices[0].client.compile(module, replicas, options)
    except (refusal, ir.MLIRError) as error:
        raise CompilerError(str(error)) from error


def _erase_copies(operation: Any) -> None:
    """Erases mhlo.copy, which TensorFlow puts on results.

    The way back to HLO refuses it.
    """
    for region in operation.regions:
        for block in region.blocks:
            for inner in list(block.operations):
                _erase_copies(inner.operation)
                if inner.operation.name == "mhlo.copy":
                    (operand,) = inner.operation.operands
                    inner.operation.result.replace_all_uses_with(operand)
                    inner.operation.erase()


def _find(module: str, name: str) -> Any:
    """What a module has under a name, or which versions have it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        found = ", ".join(f"{p} {v}" for p, v in versions().items())
        raise ImportError(
            f"{module}.{name} is private in TensorFlow or JAX and has moved "
            f"({error}). Known to work: {_WORKING}; found: {found}."
        ) from error


def versions() -> dict[str, str]:
    """The versions of the packages that matter, of those installed."""
    found = {}
    for package in ("tensorflow", "tensorflow-tpu", "jax", "libtpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
