"""What the programs say of a wrong command line."""

import sys
from typing import NoReturn

from absl import flags


def parse(program: str, argv: list[str]) -> list[str]:
    """Parses a command line; one line and exit code 2 if it is wrong."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        fail(program, str(error))


def fail(program: str, message: str) -> NoReturn:
    """Ends a program with one line on stderr and exit code 2."""
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
