"""Distribution strategies: which replica may read and write what.

A variable is *replicated* (one copy per replica: MirroredStrategy,
MultiWorkerMirroredStrategy, TPUStrategy), *central* (one copy for several
replicas: CentralStorageStrategy, and ParameterServerStrategy with several
accelerators per worker), or plain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf


def home(variable: tf.Variable) -> tf.distribute.Strategy | None:
    """The strategy whose variable it is; None for one that acts as plain."""
    own = getattr(variable, "distribute_strategy", None)
    return None if own is None or exported(variable) else own


def replicated(variable: tf.Variable) -> bool:
    """Whether each replica has a copy of its own."""
    distributed = isinstance(variable, tf.distribute.DistributedValues)
    return distributed and not exported(variable)


def exported(variable: tf.Variable) -> bool:
    """Whether `tf.saved_model.save` traces: the first copy stands for all.

    There is no public way to ask. But only then a variable has a handle
    outside of the replicas, except on a TPU, where it always has one, and in
    `strategy.extended.update`, where no step is done.
    """
    if tf.executing_eagerly():
        return False
    if not isinstance(variable, tf.distribute.DistributedValues):
        return False
    own = variable.distribute_strategy
    if is_tpu(own):
        return False
    if not tf.distribute.has_strategy():
        with own.scope():
            return _has_handle(variable)
    return tf.distribute.in_cross_replica_context() and _has_handle(variable)


def _has_handle(variable: tf.Variable) -> bool:
    try:
        _ = variable.handle
    except ValueError:
        return False
    return True


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether it is one of the TPU strategies."""
    return isinstance(
        strategy,
        (tf.distribute.TPUStrategy, tf.distribute.experimental.TPUStrategy),
    )


def is_cpu(device: str) -> bool:
    """Whether a device is a CPU, of any process."""
    return tf.DeviceSpec.from_string(device).device_type == "CPU"


def remote(device: str) -> bool:
    """Whether a device is another process's, as those of parameter servers."""
    if device.startswith("/job:localhost/"):
        return False
    # Without the device that the caller may have named.
    with tf.init_scope(), tf.device(None):
        if not tf.executing_eagerly():
            return False
        local = tf.DeviceSpec.from_string(tf.zeros([]).device)
    there = tf.DeviceSpec.from_string(device)
    if there.job is None:
        return False
    return (there.job, there.task) != (local.job, local.task)


def several() -> bool:
    """Whether this is the code of one of several replicas."""
    context = tf.distribute.get_replica_context()
    return context is not None and context.num_replicas_in_sync > 1


def check_outside(what: str) -> None:
    """Refuses what changes all replicas at once, where one of them runs.

    Args:
      what: is called.

    Raises:
      ValueError: in a `tf.function`, or in `strategy.run`.
    """
    if not tf.executing_eagerly() or several():
        raise ValueError(
            f"{what} must be called outside of a tf.function and of "
            "strategy.run."
        )


def central(variable: tf.Variable) -> bool:
    """Whether several replicas share its one copy."""
    own = home(variable)
    return not (own is None or _alone(own) or replicated(variable))


def strategy_to_enter(
    variables: Sequence[tf.Variable], name: Callable[[tf.Variable], str]
) -> tf.distribute.Strategy | None:
    """Checks that a step on these variables can be done here.

    Args:
      variables: the variables.
      name: says how a message calls one of them.

    Returns:
      None; or the strategy, of one replica, whose `run` has to be entered for
      the step.

    Raises:
      ValueError: if a variable does not belong to the current strategy, or
        the step has to be done by each replica and this is none.
    """
    current = tf.distribute.get_strategy()
    outside = tf.distribute.in_cross_replica_context()
    enter = None
    for variable in variables:
        if exported(variable):
            continue
        own = home(variable)
        if own is not current:
            _check_strategy(variable, name, current)
        if own is None or not replicated(variable):
            continue
        if own is current and not outside:
            _check_handle(variable, name)
        elif _alone(own):
            enter = own
        else:
            raise ValueError(
                f"The {own.num_replicas_in_sync} replicas of {_name(own)} "
                f"update {name(variable)!r} each by itself: call apply in a "
                "function that is passed to strategy.run()."
            )
    if enter is not None:
        owner((name(variable), variable) for variable in variables)
        if tf.distribute.has_strategy() and current is not enter:
            raise ValueError(
                f"{name(variables[0])!r} belongs to another {_name(enter)} "
                f"than the {_name(current)} that runs this step."
            )
    return enter


def _check_strategy(
    variable: tf.Variable,
    name: Callable[[tf.Variable], str],
    current: tf.distribute.Strategy,
) -> None:
    own = home(variable)
    if own is not None and not _alone(own):
        raise ValueError(
            f"Variable {name(variable)!r} belongs to a {_name(own)} of "
            f"{own.num_replicas_in_sync} replicas: call apply in a function "
            "that is passed to that strategy's run()."
        )
    servers = isinstance(
        current, tf.distribute.experimental.ParameterServerStrategy
    )
    if not _alone(current) or (servers and not remote(variable.device)):
        raise ValueError(
            f"Variable {name(variable)!r} was not created in the scope of the "
            f"{_name(current)} that runs this step: create model and optimizer "
            "under `with strategy.scope():`."
        )


def owner(
    named: Iterable[tuple[str, tf.Variable]],
) -> tf.distribute.Strategy | None:
    """The strategy under which the state of these variables is created.

    Args:
      named: keys and variables.

    Returns:
      The one strategy that all of them are replicated by, None if there is
      none.

    Raises:
      ValueError: if they belong to different strategies.
    """
    found: dict[Any, str] = {}
    for key, variable in named:
        found.setdefault(home(variable) if replicated(variable) else None, key)
    if len(found) > 1:
        raise ValueError(
            "Variables of one optimizer must belong to one strategy: "
            + ", ".join(
                f"{key!r} belongs to {_name(own) if own else 'none'}"
                for own, key in found.items()
            )
            + "."
        )
    return next(iter(found), None)


def check_readable(
    strategy: tf.distribute.Strategy, named: Iterable[tuple[str, tf.Variable]]
) -> None:
    """Refuses scalars that the strategy's replicas cannot read.

    Args:
      strategy: whose replicas cannot read variables of the host.
      named: arguments' names and the variables given for them.

    Raises:
      ValueError: naming the first such argument.
    """
    for name, variable in named:
        if not (replicated(variable) and home(variable) is strategy):
            raise ValueError(
                f"{name} is a variable outside of the {_name(strategy)}, "
                "which its replicas cannot read: create it in strategy.scope()."
            )


def _alone(strategy: tf.distribute.Strategy) -> bool:
    return strategy.num_replicas_in_sync == 1


def _name(strategy: tf.distribute.Strategy) -> str:
    return type(strategy).__name__


def _check_handle(
    variable: tf.Variable, name: Callable[[tf.Variable], str]
) -> None:
    try:
        _ = variable.handle
    except (AttributeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{_name(home(variable))} does not give a replica its own copy of "
            f"{name(variable)!r} (variable.handle); AdamW cannot update it."
        ) from error


def assign(variable: tf.Variable, value: tf.Tensor) -> None:
    """Assigns to a variable; within a replica, to the replica's own copy.

    `variable.assign` would reduce the value across replicas first, or refuse.
    """
    if _is_shared(variable):
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
    else:
        variable.assign(value)


def assign_add(variable: tf.Variable, value: tf.Tensor) -> None:
    """Adds to a variable, as `assign`."""
    if _is_shared(variable):
        tf.raw_ops.AssignAddVariableOp(resource=variable.handle, value=value)
    else:
        variable.assign_add(value)


def _is_shared(variable: tf.Variable) -> bool:
    own = home(variable)
    if own is None or tf.distribute.get_strategy() is not own:
        return False
    return not (
        replicated(variable) and tf.distribute.in_cross_replica_context()
    )


def copies(variable: tf.Variable) -> tuple[tf.Variable, ...]:
    """The copies of a variable that this process has; of a plain one, itself.

    Within a replica, the variable as the replica sees it.
    """
    own = home(variable)
    if own is None or not replicated(variable):
        return (variable,)
    inside = tf.distribute.get_strategy() is own
    if inside and not tf.distribute.in_cross_replica_context():
        return (variable,)
    return own.experimental_local_results(variable)


def per_replica(strategy: tf.distribute.Strategy, values: Iterable[Any]) -> Any:
    """Makes the distributed value that has these values on the replicas."""
    following = iter(values)
    return strategy.experimental_distribute_values_from_function(
        lambda _: next(following)
    )
