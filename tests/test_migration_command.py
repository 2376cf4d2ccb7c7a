"""`import_checkpoint`, and going on from what it wrote."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import torch

import helpers
import tpu_scripts
from import_command import arguments_in, command, restored, run
from next_step import Compared, float32_corrections
from tpu_scripts import import_flags

ROOT = pathlib.Path(tpu_scripts.__file__).parents[1]
BERT = pathlib.Path(__file__).parent / "migration_files" / "bert"
SHAPES = {"dense/kernel": (3, 5), "dense/bias": (5,), "scale": ()}


class InTorch:
    """Named parameters in two groups after some steps."""

    def __init__(self, rng):
        self.rng = rng
        self.tensors = {
            name: torch.nn.Parameter(torch.tensor(weight))
            for name, weight in helpers.random_weights(
                rng, {"dense.weight": (5, 3), "dense.bias": (5,), "scale": ()}
            ).items()
        }
        named = list(self.tensors.items())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": named[:1]},
                {"params": named[1:], "weight_decay": 0.0, "lr": 1e-3},
            ],
            lr=2e-3,
        )
        for _ in range(5):
            self.step()

    def weights(self):
        """As AdamW has them."""
        arrays = [t.detach().numpy().T.copy() for t in self.tensors.values()]
        return dict(zip(SHAPES, arrays, strict=True))

    def step(self):
        gradients = helpers.random_gradients(self.rng, self.weights())
        for tensor, gradient in zip(
            self.tensors.values(), gradients.values(), strict=True
        ):
            tensor.grad = torch.tensor(np.asarray(gradient).T)
        self.optimizer.step()
        return gradients

    def save(self, path):
        model = {name: t.detach() for name, t in self.tensors.items()}
        torch.save({"model": model, "optim": self.optimizer.state_dict()}, path)


@pytest.mark.slow
def test_torch(rng, tmp_path):
    """The whole way: names, axes, groups, weights, the next step."""
    there = InTorch(rng)
    there.save(tmp_path / "run.pt")
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "tpu_scripts.import_checkpoint",
            *command(
                {
                    "source": "torch",
                    "input": tmp_path / "run.pt",
                    "output": tmp_path / "imported",
                    "rename": [r"\.=/", "weight$=kernel"],
                    "transpose": "kernel$=1,0",
                    "strict": "true",
                }
            ),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "dense/kernel <- dense.weight" in process.stdout
    zeros = {key: np.zeros(shape, np.float32) for key, shape in SHAPES.items()}
    optimizer, variables, report = restored(
        process.stdout, tmp_path / "imported", zeros
    )
    assert report.complete
    for key, weight in there.weights().items():
        np.testing.assert_array_equal(variables[key].numpy(), weight)
    compared = Compared(optimizer, variables, 1e-8)
    for _ in range(3):
        gradients = there.step()
        compared.step(gradients, there.weights())


class InSonnet:
    """An optimizer that counts, and tells no settings, after some steps."""

    def __init__(self, rng):
        self.rng = rng
        self.variables = helpers.as_variables(
            helpers.random_weights(rng, SHAPES)
        )
        self.optimizer = snt.optimizers.Adam(2e-3)
        for _ in range(4):
            self.step()

    def weights(self):
        return helpers.values(self.variables)

    def step(self):
        gradients = helpers.random_gradients(self.rng, self.weights())
        self.optimizer.apply(
            helpers.to_gradients(gradients.values()),
            list(self.variables.values()),
        )
        return gradients


def test_sonnet(rng, tmp_path):
    there = InSonnet(rng)
    checkpoint = tf.train.Checkpoint(opt=there.optimizer)
    given = {
        "source": "sonnet",
        "input": checkpoint.save(tmp_path / "sonnet"),
        "output": tmp_path / "imported",
    }
    with pytest.raises(
        ValueError, match=r"--variables, .*: 0 \(3, 5\), 1 \(5,"
    ):
        run(**given)
    keys = tmp_path / "keys"
    keys.write_text("\n".join(SHAPES))
    out = run(**given, variables=keys)
    # Which rate it had, only the training's program knows.
    optimizer, variables, report = restored(
        out, tmp_path / "imported", there.weights(), learning_rate=2e-3
    )
    assert "optimizer/hyperparameters/learning_rate" in report.seeded
    assert float(optimizer.learning_rate) == np.float32(2e-3)
    compared = Compared(optimizer, variables, 1e-8)
    gradients = there.step()
    corrections = float32_corrections(0.9, 0.999, 5)
    compared.step(gradients, there.weights(), corrections=corrections)


def test_bert(tmp_path):
    given = {"source": "bert", "input": BERT / "model.ckpt-3"}
    out = run(**given, output=tmp_path / "new", learning_rate=5e-5)
    arguments = arguments_in(out)
    assert arguments["learning_rate"] == 5e-5
    reader = tf.train.load_checkpoint(str(BERT / "model.ckpt-3"))
    names = [n for n in reader.get_variable_to_shape_map() if "/adam" not in n]
    names.remove("global_step")
    zeros = {n: np.zeros_like(reader.get_tensor(n)) for n in names}
    optimizer, variables, report = restored(out, tmp_path / "new", zeros)
    # The weight decay is assumed: it stays that of the program.
    assert report.seeded == ("optimizer/hyperparameters/weight_decay",)
    for name, variable in variables.items():
        weight = reader.get_tensor(name)
        np.testing.assert_array_equal(variable.numpy(), weight)
        velocity = reader.get_tensor(f"{name}/adam_v")
        held = optimizer.get_slot(variable, "velocity")
        np.testing.assert_array_equal(held, velocity)
    undecayed = [p.key for p in optimizer.parameters if not p.decayed]
    assert sorted(undecayed) == sorted(
        n for n in names if "LayerNorm" in n or "bias" in n
    )


def test_a_dry_run_writes_nothing(tmp_path):
    before = sorted(BERT.iterdir())
    out = run(source="bert", input=BERT / "model.ckpt-3", dry_run="true")
    assert "state of 6 variables" in out
    assert sorted(BERT.iterdir()) == before


def test_a_checkpoint_is_not_written_over(tmp_path):
    given = {"source": "bert", "input": BERT / "model.ckpt-3"}
    run(**given, output=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"--output: .* has a checkpoint"):
        run(**given, output=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_variables_in_a_file_or_listed(monkeypatch, tmp_path):
    """A key may have spaces, and be the name of a folder."""
    keys = tmp_path / "keys"
    keys.write_text("my layer/kernel\r\nmy layer/bias\n\n")
    assert import_flags.list_of(str(keys)) == [
        "my layer/kernel",
        "my layer/bias",
    ]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scale").mkdir()
    assert import_flags.list_of("scale") == ["scale"]


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_weights_of_another_dtype(tmp_path, dtype):
    """A training's restore takes them, and not only the state."""
    weight = torch.nn.Parameter(torch.full((3,), 3.0, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([("w", weight)])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = {"model": {"w": weight.detach()}, "o": optimizer.state_dict()}
    torch.save(state, tmp_path / "run.pt")
    given = {} if dtype is None else {"dtype": dtype}
    out = run(
        source="torch",
        input=tmp_path / "run.pt",
        output=tmp_path / "new",
        **given,
    )
    held = "bfloat16" if dtype else saved_dtype(tmp_path)
    assert f"weights are {held}; --dtype has others written" in out
    zeros = {"w": np.zeros(3, helpers.NUMPY_DTYPE[held])}
    _, variables, report = restored(out, tmp_path / "new", zeros)
    assert not report.mismatched
    np.testing.assert_array_equal(
        np.float32(variables["w"]), weight.detach().float().numpy()
    )


def saved_dtype(folder):
    """That of the weight in the checkpoint."""
    reader = tf.train.load_checkpoint(str(folder / "new"))
    types = reader.get_variable_to_dtype_map()
    return types["variables/w/.ATTRIBUTES/VARIABLE_VALUE"].name


def test_groups_of_several_decays(tmp_path):
    """The source's own AdamW has no group that is treated otherwise."""
    tensors = {name: torch.nn.Parameter(torch.ones([2])) for name in "ab"}
    optimizer = torch.optim.AdamW(
        [
            {"params": [("a", tensors["a"])], "weight_decay": 0.1},
            {"params": [("b", tensors["b"])], "weight_decay": 0.05},
        ]
    )
    for tensor in tensors.values():
        tensor.grad = torch.ones([2])
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "torch.pt")
    out = run(
        source="torch",
        input=tmp_path / "torch.pt",
        output=tmp_path / "out",
        weight_decay=0.1,
    )
    assert "unlike" not in out
    assert arguments_in(out)["weight_decay_multipliers"] == {"^b$": 0.5}
