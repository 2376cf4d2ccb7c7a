"""A test file run by pytest."""

load("@rules_python//python:defs.bzl", "py_test")

def pytest_test(name, data = [], deps = [], tags = []):
    """Runs `<name>.py` alone, with what every test file needs.

    Args:
      name: the file's name without ".py".
      data: files that the test reads.
      deps: libraries and binaries other than the optimizer.
      tags: "manual" for what needs a package that Bazel's tests do without,
        "slow" where every test of the file is, "by_pytest" where the others
        take more than seven seconds together: CI runs these by pytest only.
    """
    py_test(
        name = name,
        size = "medium",
        timeout = "long",
        srcs = [
            name + ".py",
            "run_pytest.py",
        ],
        args = ["$(location %s.py)" % name],
        data = ["//:pyproject.toml"] + data,
        # An __init__.py made by Bazel would turn tests/ into a package.
        legacy_create_init = 0,
        main = "run_pytest.py",
        tags = tags,
        deps = [
            ":testing",
            "//tf_adamw",
        ] + deps,
    )
