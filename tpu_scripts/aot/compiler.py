"""The TPU's own compiler, on a machine without a TPU."""

import dataclasses
import time

import tensorflow as tf

from tpu_scripts.aot import lowering, private
from tpu_scripts.aot.hlo import Module
from tpu_scripts.aot.private import (
    CompilerError,
    MissingExtraError,
    versions,
)
from tpu_scripts.aot.tracing import Program

__all__ = [
    "CompilerError",
    "Executable",
    "MissingExtraError",
    "compile_hlo",
    "compile_program",
    "count_replicas",
    "versions",
]


@dataclasses.dataclass(frozen=True)
class Executable:
    """What the compiler made of a program.

    Attributes:
      module: the optimized HLO.
      seconds: the time that it took.
      memory: bytes per chip: of the arguments, the state among them, of what
        of them the results take over, of temporaries and of the code.
      bytes_accessed: the compiler's own figure, for all memories.
      flops: likewise.
    """

    module: Module
    seconds: float
    memory: dict[str, int]
    bytes_accessed: int
    flops: int


def count_replicas(topology: str) -> int:
    """The number of replicas that a slice has.

    Args:
      topology: as libtpu names it: `v5e:2x4`, `v4:2x2x1`, `v5e:16x16`.

    Raises:
      MissingExtraError: JAX or libtpu is not installed.
      CompilerError: libtpu does not know the topology.
    """
    return len(private.tpu_devices(topology))


def compile_program(program: Program, topology: str) -> Executable:
    """Compiles the program of a replica for all replicas of a slice.

    To be called outside of the program's `tf.Graph`.

    Args:
      program: traced for as many replicas as the slice has.
      topology: the slice.

    Raises:
      MissingExtraError: JAX or libtpu is not installed.
      CompilerError: XLA cannot lower the program, or the compiler refuses it
        or the topology.
      ValueError: this machine has not the memory for the variables' values.
    """
    try:
        serialized = lowering.hlo(program, "hlo_serialized")
    except tf.errors.ResourceExhaustedError as error:
        raise ValueError(
            f"this machine has not the memory for one replica: {error}"
        ) from error
    except (ValueError, tf.errors.OpError) as error:
        raise CompilerError(f"XLA cannot lower the program: {error}") from error
    return compile_hlo(serialized, topology)


def compile_hlo(serialized_hlo: bytes, topology: str) -> Executable:
    """Compiles an HloModuleProto for all replicas of a slice.

    Raises:
      MissingExtraError: JAX or libtpu is not installed.
      CompilerError: the compiler refuses the program, or the topology.
    """
    devices = private.tpu_devices(topology)
    start = time.perf_counter()
    compiled = private.compile_hlo(serialized_hlo, devices)
    seconds = time.perf_counter() - start
    costs = compiled.cost_analysis()
    stats = compiled.get_compiled_memory_stats()
    return Executable(
        module=Module(compiled.hlo_modules()[0].to_string()),
        seconds=seconds,
        memory={
            "arguments": stats.argument_size_in_bytes,
            "aliased": stats.alias_size_in_bytes,
            "temporaries": stats.temp_size_in_bytes,
            "code": stats.generated_code_size_in_bytes,
        },
        bytes_accessed=int(costs["bytes accessed"]),
        flops=int(costs.get("flops", 0)),
    )
