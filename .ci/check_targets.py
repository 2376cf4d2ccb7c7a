"""Checks that every Python file has its Bazel target.

    python .ci/check_targets.py

Exits with 1 and one line for each file that a BUILD file has to name.
"""

import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("tf_adamw", "tpu_scripts", "tests")
# tests/pytest_test.bzl puts it into every test.
TEST_MAIN = "run_pytest.py"


def rules(build_file):
    """The (rule, {attribute: literal}) pairs of a BUILD file."""
    for node in ast.parse(build_file.read_text()).body:
        call = getattr(node, "value", None)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            attributes = {}
            for keyword in call.keywords:
                if keyword.arg in ("name", "srcs"):
                    attributes[keyword.arg] = ast.literal_eval(keyword.value)
            yield call.func.id, attributes


def sources(build_file, rule):
    """The files that the targets of a rule name, as paths in the package."""
    found = set()
    for name, attributes in rules(build_file):
        if name == rule and rule == "pytest_test":
            found.add(attributes["name"] + ".py")
        elif name == rule:
            found.update(attributes.get("srcs", []))
    return found


def is_script(path):
    return 'if __name__ == "__main__":' in path.read_text()


def missing_lines(package):
    """For each file without its target, what to add where."""
    folder = ROOT / package
    build_file = folder / "BUILD"
    libraries = sources(build_file, "py_library")
    binaries = sources(build_file, "py_binary")
    tests = sources(build_file, "pytest_test")
    for path in sorted(folder.rglob("*.py")):
        file = path.relative_to(folder).as_posix()
        if package == "tests" and file == TEST_MAIN:
            continue
        if package == "tests" and file.startswith("test_"):
            if file not in tests:
                yield (
                    f"{package}/{file} has no test: add to {package}/BUILD: "
                    f'pytest_test(name = "{path.stem}")'
                )
        elif is_script(path):
            if file not in binaries:
                yield (
                    f"{package}/{file} has no binary: add to {package}/BUILD: "
                    f'py_binary(name = "{path.stem}", srcs = ["{file}"])'
                )
        elif file not in libraries:
            yield (
                f"{package}/{file} is in no library: add to the srcs of its "
                f'py_library in {package}/BUILD: "{file}",'
            )
    for file in sorted(libraries | binaries | tests):
        if not (folder / file).exists():
            yield f"{package}/BUILD names {file}, which is gone: remove it"


def main():
    lines = [line for package in PACKAGES for line in missing_lines(package)]
    print("\n".join(lines) or "Every Python file has its Bazel target.")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
