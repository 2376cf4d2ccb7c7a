"""The optimizers, and the ways in which they are called."""

import dataclasses
import importlib.util
import shutil

# One call of the optimizer from Python, in the caller's tf.function, in the
# caller's tf.function(jit_compile=True), and LOOP_STEPS steps in one such
# function. "accumulation" is "function" with the gradients of WINDOW calls
# summed.
CALLS = ("eager", "function", "jit", "loop")
MODES = (*CALLS, "accumulation", "import")
# Arguments of the call, or computed from the variables within it.
GRADIENTS = ("given", "made")
LOOP_STEPS = 20
WINDOW = 4
COMPILERS = ("cc", "gcc", "clang")


@dataclasses.dataclass(frozen=True)
class Peer:
    """An optimizer.

    Attributes:
      label: what it is, for the table.
      programs: the module here that has its steps.
      packages: the modules that have to be installed. The last is the
        optimizer's own.
      modes: those of `MODES` that it has.
    """

    label: str
    programs: str
    packages: tuple[str, ...]
    modes: tuple[str, ...] = CALLS

    def lacks(self) -> str | None:
        """What has to be installed first, as one line, or None."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                extra = "tf" if package == "tensorflow" else "bench"
                return f"{package} is missing: pip install 'tf_adamw[{extra}]'"
        if self.programs == "c_programs" and not compiler():
            return f"there is no C compiler: none of {', '.join(COMPILERS)}"
        return None


def compiler() -> str | None:
    """The path of the C compiler, if there is one."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


_TF = "tf_programs"
_TORCH = ("torch_programs", ("torch",), ("eager",))
# By name, in the order in which they are run: what is compared with one another
# stands together.
PEERS = {
    "tf_adamw": Peer("tf_adamw", _TF, ("tensorflow", "tf_adamw"), MODES),
    "tf_adamw-one-pass": Peer(
        "tf_adamw, jit_compile=True, fuse_on_cpu()",
        _TF,
        ("tensorflow", "tf_adamw"),
        (*CALLS, "accumulation"),
    ),
    "c-floor": Peer("one pass in C", "c_programs", ()),
    "keras": Peer("Keras 3 AdamW", _TF, ("tensorflow", "keras"), MODES),
    "optax": Peer(
        "Optax adamw", "jax_programs", ("jax", "optax"), (*CALLS, "import")
    ),
    "torch-fused": Peer("torch AdamW, fused", *_TORCH),
    "torch-foreach": Peer("torch AdamW, foreach", *_TORCH),
    "tf_adamw-fused": Peer(
        "tf_adamw, jit_compile=False", _TF, ("tensorflow", "tf_adamw")
    ),
    "adam-op": Peer("ResourceApplyAdam, no decay", _TF, ("tensorflow",)),
    "tf_keras": Peer(
        "tf_keras AdamW", _TF, ("tensorflow", "tf_keras"), (*CALLS, "import")
    ),
    "sonnet": Peer(
        "Sonnet Adam", _TF, ("tensorflow", "sonnet"), (*CALLS, "import")
    ),
}
