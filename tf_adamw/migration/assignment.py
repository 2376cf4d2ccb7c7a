"""Gives an optimizer the state of another one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tf_adamw import arguments, replicas
from tf_adamw.adapter import Adapter
from tf_adamw.hyperparameters import ASSIGNABLE
from tf_adamw.migration import differences, given
from tf_adamw.migration.matching import Fitted, Names, fitted, matched
from tf_adamw.migration.source import Source
from tf_adamw.registry import Parameter
from tf_adamw.rollback import unchanged_on_failure
from tf_adamw.slots import start_again
from tf_adamw.state import OptimizerState

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Report:
    """What `import_state` did, or would do.

    Attributes:
      optimizer: the source: "PyTorch AdamW".
      iterations: what AdamW's `iterations` is now.
      mapped: `{key: the source's name}` of the variables that got state.
      seeded: keys of the variables that the source lacks; their state starts.
      left_over: what the source has, and nothing here takes.
      differences: where a setting of the optimizer is not the one of the
        source's next step.
      notes: what to know besides.
      transposed: the keys of those whose state was transposed.
    """

    optimizer: str
    iterations: int
    mapped: dict[str, str]
    seeded: tuple[str, ...]
    left_over: tuple[str, ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    transposed: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether everything matched and every setting is the source's."""
        return not (self.seeded or self.left_over or self.differences)

    def __str__(self) -> str:
        lines = [
            f"{self.optimizer}: state of {len(self.mapped)} variables, "
            f"iterations = {self.iterations}",
            *(
                f"  {key} <- {name}{', transposed' * (key in self.transposed)}"
                for key, name in self.mapped.items()
            ),
        ]
        for title, names in (
            ("without state in the source, starting anew", self.seeded),
            ("in the source alone", self.left_over),
            ("unlike the source's next step", self.differences),
            ("notes", self.notes),
        ):
            if names:
                lines += [f"{title}:", *(f"  {name}" for name in names)]
        return "\n".join(lines)


def import_state(
    optimizer: OptimizerState | Adapter,
    source: Source,
    *,
    names: Names | None = None,
    transpose: Mapping[str, Sequence[int]] | None = None,
    weights: bool = False,
    strict: bool = False,
    dry_run: bool = False,
) -> Report:
    """Makes an optimizer's next step the next step of another optimizer.

    Sets the slots, `iterations`, and the learning rate and weight decay where
    they are numbers and the source tells them, or they were given. The other
    settings are fixed when an optimizer is made: make it with
    `AdamW(**source.arguments())`.

    Args:
      optimizer: a `tf_adamw.AdamW`, or one of `tf_adamw.keras` or
        `tf_adamw.tf_keras`, built.
      source: what `read` returned.
      names: which variable is which: `{the source's name: key}`, or a function
        from the one to the other, or the list of keys in the source's order;
        None instead of a key leaves a variable out. By default those of equal
        names, or one of which ends with "/" and the other; of a source that
        only counts its variables, the order in which they were built.
      transpose: `{regular expression on keys: axes}`: the source's arrays are
        transposed by them, as `numpy.transpose` does.
      weights: whether to assign the weights, too, that the source has.
      strict: whether to refuse unless everything matches, settings too.
      dry_run: whether to change nothing and only report.

    Returns:
      A `Report`.

    Raises:
      ValueError: if the optimizer is not built, a shape does not fit, nothing
        fits, a value is none that Adam can have, or `strict` and not
        everything fits; also in a `tf.function`, `strategy.run` or
        `averaged_weights()`. Nothing has changed then.
      TypeError: if the optimizer is none of tf_adamw.
    """
    replicas.check_outside("import_state")
    optimizer = given.adamw_of(optimizer)
    optimizer.check_settable()
    by_key: dict[str, list[Parameter]] = {}
    for parameter in optimizer.parameters:
        by_key.setdefault(parameter.key, []).append(parameter)
    mapped = matched(source, list(by_key), names)
    if weights:
        given.check_weights(source, mapped)
    given.check_transpose(transpose or {})
    found = fitted(source, mapped, by_key, transpose or {})
    _check_numbers(optimizer, source)
    given.check_fit(source, mapped, by_key, found, weights)
    report = _report(optimizer, source, mapped, found)
    if strict and not report.complete:
        unlike = (*report.seeded, *report.left_over, *report.differences)
        raise ValueError(f"The source does not match: {'; '.join(unlike)}.")
    if not dry_run:
        changed = _changed(optimizer)
        with unchanged_on_failure(changed), _same_numbers(optimizer):
            _assign(optimizer, source, by_key, found.slots)
            if weights:
                _assign_weights(by_key, found.weights)
    return report


def _check_numbers(optimizer: OptimizerState, source: Source) -> None:
    coupling = differences.coupling_of(optimizer)
    for name, value in source.assigned(*coupling).items():
        if optimizer.hyperparameters.owns(name):
            arguments.number(name, value)
    if not 0 <= source.counter < 2**63:
        raise ValueError(f"iterations must be >= 0, got {source.counter}.")


def _report(
    optimizer: OptimizerState,
    source: Source,
    mapped: Mapping[str, str],
    found: Fitted,
) -> Report:
    slots = found.slots
    seeded = [
        name if name == key else f"{key}/{name}"
        for key in optimizer.slots
        for name in (optimizer.slots[key] if key in mapped else (key,))
        if name != "accumulator" and name not in slots.get(key, {})
    ]
    taken = set(mapped.values())
    left_over = [
        name
        for name, found in source.slots.items()
        if found and name not in taken
    ]
    left_over += [
        f"{mapped[key]}/{name}"
        for key in mapped
        for name in slots[key]
        if name not in optimizer.slots[key]
    ]
    return Report(
        source.optimizer,
        source.counter,
        dict(mapped),
        tuple(seeded),
        (*left_over, *source.ignored),
        tuple(differences.differences(optimizer, source, mapped)),
        (*differences.notes(optimizer, source), *found.notes),
        found.transposed,
    )


def _changed(optimizer: OptimizerState) -> Iterable[tf.Variable]:
    """The variables that an import can change."""
    for parameter in optimizer.parameters:
        yield parameter.variable
        yield from parameter.slots.values()
    yield from optimizer.counters.held()
    yield from optimizer.hyperparameters.held()
    for name in ASSIGNABLE:
        exact = getattr(optimizer.hyperparameters, f"{name}_float64", None)
        if exact is not None:
            yield exact


@contextlib.contextmanager
def _same_numbers(optimizer: OptimizerState) -> Iterator[None]:
    """Keeps the exact numbers that variables are rounded from."""
    held = optimizer.hyperparameters
    before = {n: held.plain(n) for n in ASSIGNABLE if held.owns(n)}
    try:
        yield
    except BaseException:
        for name, value in before.items():
            held.assign(name, value)
        raise


def _assign(
    optimizer: OptimizerState,
    source: Source,
    by_key: Mapping[str, Sequence[Parameter]],
    slots: Mapping[str, Arrays],
) -> None:
    for key, parameters in by_key.items():
        for name in optimizer.slots[key]:
            if name in slots.get(key, {}):
                _assign_parts(
                    [p.slots[name] for p in parameters], slots[key][name]
                )
            else:
                for parameter in parameters:
                    start_again(parameter, name)
    for counter in optimizer.counters.held():
        counter.assign(tf.zeros([], counter.dtype))
    optimizer.counters.iterations.assign(source.counter)
    coupling = differences.coupling_of(optimizer)
    for name, value in source.assigned(*coupling).items():
        if optimizer.hyperparameters.owns(name):
            optimizer.hyperparameters.assign(name, float(value))


def _assign_weights(
    by_key: Mapping[str, Sequence[Parameter]], weights: Arrays
) -> None:
    for key, value in weights.items():
        _assign_parts([p.variable for p in by_key[key]], value)


def _assign_parts(parts: Sequence[tf.Variable], value: np.ndarray) -> None:
    """Assigns to a variable, or to the shards of one."""
    first = 0
    for part in parts:
        rows = value
        if len(parts) > 1:
            rows = value[first : first + part.shape[0]]
            first += part.shape[0]
        part.assign(tf.cast(tf.convert_to_tensor(rows), part.dtype))
