"""The figures as Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

from tpu_scripts.bench.figures import NOISE_LIMIT
from tpu_scripts.bench.peers import LOOP_STEPS, PEERS, WINDOW

# Below, what the framework takes for itself would be most of it.
_LEAST_BYTES = 10**8
_CALLED = {
    "eager": "called eagerly",
    "function": "in the caller's `tf.function`",
    "jit": "in the caller's `tf.function(jit_compile=True)`",
    "loop": f"{LOOP_STEPS} steps in one compiled loop",
    "accumulation": f"a window of {WINDOW} calls in a `tf.function`",
}
# Whose time is divided by each peer's, by the peer that makes it a column.
_OURS = ("tf_adamw", "tf_adamw-one-pass", "tf_adamw-fused")
LEGEND = f"""\
Times are medians, with the interquartile range over the median in brackets, of
steps that the optimizers took in turns, each in a process of its own. A ratio
is that of two medians, its bracket the same of the rounds' ratios: above
{NOISE_LIMIT:.0%} it is too noisy to be given. Trace and first call are those of
one start; in a loop it takes {LOOP_STEPS} steps. A function that is called for
many variables counts its nodes once. Where gradients are made, the loop in
C reads the weights as such. Optax is compiled by `jax.jit` in every mode. "Peak
memory" is over that of weights, gradients and two moments, without what the
framework held before; the compiler's own memory is in it. "In a step" counts
what a step takes beyond what is held between steps. "-": not measured."""


def machine_lines(found: dict[str, Any]) -> str:
    """The machine in three lines."""
    versions = [f"{name} {v}" for name, v in found["versions"].items()]
    flags = f", XLA_FLAGS={found['xla_flags']}" if found["xla_flags"] else ""
    return (
        f"{found['cpu']}, {found['cores']} cores, "
        f"{found['memory_gib']} GiB, {found['threads']} threads each{flags}\n"
        f"{found['system']}\n{', '.join(versions)}"
    )


def table(result: dict[str, Any], names: Sequence[str]) -> str:
    """The figures of one case, called in one way.

    Args:
      result: as `runs.run` returns it.
      names: the peers that are rows, those without result too.
    """
    title = (
        f"### {result['case']}: {result['parameters']:,} parameters in "
        f"{result['variables']:,} variables, {_CALLED[result['mode']]}, "
        f"gradients {result['gradients']}"
    )
    if result["mode"] == "accumulation":
        rows = _accumulation_rows(result)
    else:
        rows = _rows(result, names)
    return f"{title}\n\n{_markdown(rows)}"


def _rows(
    result: dict[str, Any], names: Sequence[str]
) -> Iterable[Sequence[str]]:
    ours = [name for name in _OURS if name in result["peers"]]
    floor = ["c-floor"] if "c-floor" in result["peers"] else []
    yield (
        "",
        "ms a step",
        *("÷ C" for _ in floor),
        *(f"{name} ÷ it" for name in ours),
        "trace",
        "compile + first call",
        "graph nodes",
        "per variable",
        "peak memory",
        "in a step",
    )
    held = 16 * result["parameters"]
    for name in names:
        figure = result["peers"].get(name, {"failed": "-"})
        pairs = [(name, to) for to in floor] + [(of, name) for of in ours]
        yield (
            PEERS[name].label,
            _milliseconds(figure),
            *(_ratio(_find(result, *pair)) for pair in pairs),
            _number(figure.get("trace_seconds"), ".2f", " s"),
            _number(figure.get("first_call_seconds"), ".2f", " s"),
            _number(figure.get("nodes"), ",d"),
            _number(figure.get("nodes_per_variable"), ".1f"),
            *(
                _number(held >= _LEAST_BYTES and figure.get(ratio), ".2f")
                for ratio in ("memory_ratio", "step_memory_ratio")
            ),
        )


def _accumulation_rows(result: dict[str, Any]) -> Iterable[Sequence[str]]:
    yield "", "ms a call that sums", "ms a call that updates", "sums ÷ updates"
    for name, figure in result["peers"].items():
        if "failed" in figure:
            yield PEERS[name].label, figure["failed"], "-", "-"
        else:
            yield (
                PEERS[name].label,
                _milliseconds(figure["sums"]),
                _milliseconds(figure["updates"]),
                _ratio(figure["sums_ratio"]),
            )


def imports_table(found: dict[str, dict[str, Any]]) -> str:
    """How long the packages take to import."""
    rows = [("", "ms", "after")]
    for name, figure in found.items():
        package = PEERS[name].packages[-1]
        rows.append((package, _milliseconds(figure), figure["after"]))
    note = "A package that its framework imports by itself takes none."
    return f"### import\n\n{_markdown(rows)}\n\n{note}"


def _find(result: dict[str, Any], of: str, to: str) -> dict[str, Any] | None:
    for ratio in result["ratios"]:
        if (ratio["of"], ratio["to"]) == (of, to):
            return ratio
    return None


def _ratio(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return "-"
    if ratio["too_noisy"]:
        return f"too noisy (spread {ratio['spread']:.1%})"
    return f"{ratio['ratio']:.3g} ({ratio['spread']:.0%})"


def _milliseconds(figure: dict[str, Any]) -> str:
    if "failed" in figure:
        return figure["failed"].replace("|", "/")
    milliseconds = digits(1e3 * figure["median_seconds"])
    return f"{milliseconds} ({figure['spread']:.0%})"


def digits(value: float) -> str:
    """Three digits, or those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _number(value: Any, form: str, unit: str = "") -> str:
    return f"{value:{form}}{unit}" if value else "-"


def _markdown(rows: Iterable[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
