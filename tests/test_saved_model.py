"""A SavedModel goes on training where there is no tf_adamw."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import helpers
import saved_model_module as module
import saved_model_program as program

pytestmark = pytest.mark.core

# 3 and 9 are in the middle of a window of two.
FIRST, MIDDLE, LAST, END = 3, 6, 9, 12
BEFORE = "*before_optimizations.txt"  # what XLA dumps for each program
PROGRAM = pathlib.Path(program.__file__)
INPUTS = {
    "predict": ["x"],
    "set_learning_rate": ["rate"],
    "train_step": ["x", "y"],
}
# Command lines of saved_model_cli, after one import of TensorFlow.
COMMAND_LINES = """
import json, os, sys
import tensorflow
from tensorflow.python.tools import saved_model_cli
for arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        sys.argv = ["saved_model_cli", *arguments]
        saved_model_cli.main()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(str(arguments))
"""


def other_process(export, folder, **environment):
    """Trains there from FIRST to LAST; returns {name: array} of what it saw.

    It runs a copy of the program, in a folder with nothing else in it.
    """
    batches = [module.batch(number) for number in range(FIRST, LAST)]
    np.savez(folder / "batches.npz", **stacked(batches))
    script = shutil.copy(PROGRAM, folder)
    packages = [path for path in sys.path if path.endswith("-packages")]
    subprocess.run(
        [
            sys.executable,
            script,
            export,
            folder / "batches.npz",
            folder / "checkpoint",
            folder / "results.npz",
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(packages),
            "CUDA_VISIBLE_DEVICES": "-1",
            **environment,
        },
        check=True,
        timeout=300,
    )
    with np.load(folder / "results.npz") as file:
        return dict(file)


def stacked(batches):
    return {k: np.stack([part[k] for part in batches]) for k in ("x", "y")}


def exported(name, folder, strategy=None):
    """Trains to FIRST; returns the export, and a live trainer there.

    Of one on replicas the live trainer is another, with its checkpoint.
    """
    live = module.Trainer(name)
    if strategy is None:
        module.train(live, 0, FIRST)
        return live.export(folder / "export"), live
    there = module.made_in(strategy, name)
    module.train_live(strategy, there, 0, FIRST)
    path = module.checkpoint_of(there).write(str(folder / "replicas"))
    module.checkpoint_of(live).read(path).assert_consumed()
    return there.export(folder / "export"), live


class Continued:
    """A live trainer, and the process that went on from its export."""

    def __init__(self, name, folder, strategy=None):
        self.export, live = exported(name, folder, strategy)
        # From here on the two have nothing in common.
        self.losses = module.train(live, FIRST, MIDDLE)
        rate = tf.constant(program.RATE)
        self.next_rate = live.set_learning_rate(rate)["next"]
        self.losses += module.train(live, MIDDLE, LAST)
        self.predicted = live.predict(module.tensors(FIRST)["x"])["y"]
        self.state = module.saved_bits(live, folder)
        module.train(live, LAST, END)
        self.end = module.saved_bits(live, folder)
        self.xla = folder / "xla"
        flags = f"--xla_dump_to={self.xla} --xla_dump_hlo_as_text"
        self.there = other_process(self.export, folder, XLA_FLAGS=flags)
        self.checkpoint = str(folder / "checkpoint")
        self.name = name


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("plain", False), marks=pytest.mark.slow),
        ("rich", False),
        ("rich", True),
    ],
    ids=["plain", "rich", "rich made on replicas"],
)
def continued(request, tmp_path_factory, mirrored):
    name, on_replicas = request.param
    folder = tmp_path_factory.mktemp("saved_model")
    return Continued(name, folder, mirrored if on_replicas else None)


def test_it_had_no_tf_adamw(continued):
    assert not continued.there["importable"]
    assert not continued.there["imported"].size


def test_it_trains_as_the_live_module(continued):
    """Bit for bit, from the middle of a window on."""
    there = continued.there
    np.testing.assert_array_equal(there["losses"], continued.losses)
    np.testing.assert_array_equal(there["predicted"], continued.predicted)
    assert module.bits(continued.checkpoint) == continued.state


def test_the_rate_was_set_and_nothing_traced(continued):
    there = continued.there
    assert there["next_rate"] == continued.next_rate
    assert not there["retraced"]
    assert there["iterations"] == LAST // (1 + (continued.name == "rich"))


def test_its_checkpoint_goes_on_in_a_live_module(continued, tmp_path):
    live = module.Trainer(continued.name)
    module.checkpoint_of(live).read(continued.checkpoint).assert_consumed()
    module.train(live, LAST, END)
    assert module.saved_bits(live, tmp_path) == continued.end


def compiled_functions(export):
    """The names of the functions that XLA has to compile."""
    saved = saved_model_pb2.SavedModel()
    file = pathlib.Path(export) / "saved_model.pb"
    saved.ParseFromString(file.read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    return {
        function.signature.name
        for function in functions
        if function.attr["_XlaMustCompile"].b
    }


def test_the_compiled_step_survives(continued):
    """What is exported as compiled is compiled there, by XLA's own account."""
    names = compiled_functions(continued.export)
    programs = [path.read_text() for path in continued.xla.glob(BEFORE)]
    assert len(names) == len(programs)
    if helpers.JIT_MODES[0]:  # The step; with accumulation also its first half.
        assert len(names) == (1 if continued.name == "plain" else 2)
        assert all("f32[3,4]" in program for program in programs)
        assert any("sqrt(" in program for program in programs)


def test_fused_ops_survive(tmp_path):
    trainer = module.Trainer("plain", jit_compile=False)
    export = trainer.export(tmp_path / "export")
    assert not compiled_functions(export)
    loaded = tf.saved_model.load(export)
    assert module.train(loaded, 0, 3) == module.train(trainer, 0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("on_replicas", [False, True])
def test_saved_model_cli(mirrored, on_replicas, tmp_path):
    """It starts from the export each time that it is run."""
    strategy = mirrored if on_replicas else None
    export, live = exported("rich", tmp_path, strategy)
    given = {**module.batch(FIRST), "rate": np.float32(0.25)}
    for name, array in given.items():
        np.save(tmp_path / f"{name}.npy", array)
    lines = [
        [
            *("run", "--dir", export, "--tag_set", "serve"),
            *("--signature_def", name, "--outdir", f"{tmp_path}/{name}"),
            *("--inputs", ";".join(f"{n}={tmp_path}/{n}.npy" for n in names)),
        ]
        for name, names in INPUTS.items()
    ]
    subprocess.run(
        [sys.executable, "-c", COMMAND_LINES, json.dumps(lines)],
        check=True,
        timeout=300,
    )
    for name, names in INPUTS.items():
        path = module.checkpoint_of(live).write(str(tmp_path / "before"))
        step = getattr(live, name)
        expected = step(**{n: tf.constant(given[n]) for n in names})
        module.checkpoint_of(live).read(path).assert_consumed()
        assert expected
        for output, value in expected.items():
            found = np.load(tmp_path / name / f"{output}.npy")
            np.testing.assert_array_equal(found, value, err_msg=output)
