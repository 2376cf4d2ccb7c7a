"""Prints which program the step of each option is.

    python tests/tpu_step_digests.py

It is lowered with its state as tensors, by the kernels that TensorFlow has:
those of TPUs or of the host. The same digest means the same program.
"""

from tpu_canonical import canonical
from tpu_scripts.aot import functional
from tpu_steps import OPTIONS, traced


def main():
    for option, options in OPTIONS.items():
        text = functional.hlo(traced(**options).program)
        result, *_ = canonical(text)
        print(result, option)


if __name__ == "__main__":
    main()
