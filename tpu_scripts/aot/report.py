"""What a compiled step costs, as a table and as JSON."""

from typing import Any

from tpu_scripts.aot.compiler import Executable
from tpu_scripts.aot.steps import Step


def figures(step: Step, executable: Executable) -> dict[str, Any]:
    """Returns JSON-able figures, sizes in bytes and per chip.

    "hbm_bytes" is what the kernels read and write in HBM: where conditionals
    have branches, along the costliest; "hbm_bytes_least" along the cheapest.
    What the collectives move there is beside it.
    """
    module = executable.module
    traffic, reduced = module.traffic(), module.collective_traffic()
    written = len(module.results) - len(step.program.results())
    found = {
        "parameters": step.parameters,
        "variables": step.variables,
        "compile_seconds": round(executable.seconds, 3),
        "hbm_bytes": traffic.most,
        "hbm_bytes_least": traffic.least,
        "hbm_bytes_per_parameter": traffic.most / step.parameters,
        "collective_hbm_bytes": reduced.most,
        "bytes_accessed": executable.bytes_accessed,
        "flops": executable.flops,
        "state_bytes": step.state_bytes,
        "memory": executable.memory,
        "kernels": dict(module.kernels()),
        "collectives": {
            kind: {"count": count, "bytes": size}
            for kind, (count, size) in module.collectives().items()
        },
        "state_buffers_written": written,
        "state_buffers_in_place": len(module.aliases),
    }
    if step.floor is not None:
        least, most = step.floor
        found["floor_bytes"], found["floor_bytes_least"] = most, least
    return found


def table(found: dict[str, Any]) -> str:
    """Returns the figures as lines of a name and a value.

    Args:
      found: from `figures`; with "step", "topology" and "replicas", too, it
        says what was compiled.
    """
    rows = dict(_rows(found))
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _rows(found):
    count = found["parameters"]

    def per_parameter(name: str) -> str:
        return f"{found[name]:,}, {found[name] / count:.2f} per parameter"

    if "topology" in found:
        yield "step", found["step"]
        yield "slice", f"{found['topology']}, {found['replicas']} replicas"
    yield "parameters", f"{count:,} in {found['variables']:,} variables"
    yield "compile time", f"{found['compile_seconds']:.1f} s"
    yield "HBM bytes", per_parameter("hbm_bytes")
    if "floor_bytes" in found:
        yield "  floor", per_parameter("floor_bytes")
    if found["hbm_bytes_least"] != found["hbm_bytes"]:
        yield "HBM bytes, cheapest branches", per_parameter("hbm_bytes_least")
        if "floor_bytes" in found:
            yield "  its floor", per_parameter("floor_bytes_least")
    yield "HBM bytes of collectives", per_parameter("collective_hbm_bytes")
    yield "bytes accessed, all memories", per_parameter("bytes_accessed")
    yield "floating-point operations", f"{found['flops']:,}"
    yield "state", f"{found['state_bytes']:,} bytes"
    for name, size in found["memory"].items():
        yield name, f"{size:,} bytes"
    for kind, number in sorted(found["kernels"].items()):
        each = number / found["variables"]
        yield kind, f"{number:,}, {each:.2f} per variable"
    for kind, moved in found["collectives"].items():
        yield kind, f"{moved['count']:,} of {moved['bytes']:,} bytes"
    written, in_place = (
        found["state_buffers_written"],
        found["state_buffers_in_place"],
    )
    yield (
        "state updated in place",
        f"{'yes' if written == in_place else 'NO'}, {in_place} of {written}",
    )
