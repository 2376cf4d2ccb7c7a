"""The state of PyTorch's AdamW is taken over."""

import numpy as np
import pytest
import torch

from next_step import Imported
from tf_adamw import migration
from torch_training import DTYPES, SHAPES, TRANSPOSE, Trained


@pytest.mark.parametrize(
    "steps", [1, 7, pytest.param(300, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_next_step(rng, tmp_path, dtype, amsgrad, steps):
    trained = Trained(
        rng, steps, dtype, lr=2e-3, weight_decay=0.05, amsgrad=amsgrad
    )
    source = trained.read(tmp_path)
    assert source.positional and not source.assumed
    imported = trained.imported(source)
    assert imported.report.complete
    name = f"PyTorch AdamW{', AMSGrad' * amsgrad}, {dtype}"
    trained.check(imported, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_next_step_where_epsilon_matters(rng, tmp_path, dtype, amsgrad):
    options = {"scale": 1e-8, "amsgrad": amsgrad, "betas": (0.8, 0.95)}
    trained = Trained(rng, 4, dtype, **options)
    imported = trained.imported(trained.read(tmp_path))
    # The root of the velocity is of epsilon's size.
    ratio = np.sqrt(imported.slot("kernel", "velocity")) / 1e-8
    assert 0.1 < np.median(ratio) < 1.0
    trained.check(imported, f"PyTorch AdamW, gradients of 1e-8, {dtype}", 1)


def test_epsilon_grows_as_the_note_says(rng, tmp_path):
    trained = Trained(rng, 4, "float64", scale=1e-8, weight_decay=0.0)
    imported = trained.imported(trained.read(tmp_path))
    (note,) = [n for n in imported.report.notes if "epsilon" in n]
    percent = 1 - np.sqrt(1 - 0.999**5)
    assert f"{percent:.2%}" in note


def test_groups(rng, tmp_path):
    trained = Trained(
        rng,
        lr=2e-3,
        weight_decay=0.1,
        groups=[
            (["kernel"], {"lr": 1e-3}),
            (["scale", "bias"], {"weight_decay": 0.0}),
        ],
    )
    source = trained.read(tmp_path)
    assert source.settings["learning_rate"] == 2e-3
    options = {
        "exclude_from_weight_decay": ["bias", "scale"],
        "learning_rate_multipliers": {"kernel": 0.5},
    }
    imported = trained.imported(source, **options)
    assert imported.report.complete
    trained.check(imported, "PyTorch AdamW, two groups, float32")
    unlike = trained.imported(source).report.differences
    assert [line.split()[0] for line in unlike] == ["kernel", "bias", "scale"]


def give_names(trained):
    """Makes its optimizer one of named parameters, in groups of one."""
    state_dict = trained.optimizer.state_dict()
    (group,) = state_dict["param_groups"]
    named = [(f"model.{key}", trained.tensors[key]) for key in SHAPES]
    state_dict["param_groups"] = [
        {**group, "params": [i], "param_names": [name]}
        for i, (name, _) in enumerate(named)
    ]
    trained.optimizer = torch.optim.AdamW([{"params": [n]} for n in named])
    trained.optimizer.load_state_dict(state_dict)


def test_a_square_kernel(rng, tmp_path):
    tensor = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = torch.optim.AdamW([("weight", tensor)])
    tensor.grad = torch.tensor(np.float32(rng.normal(size=[4, 4])))
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "square.pt")
    source = migration.read("torch", tmp_path / "square.pt")
    given = {"weights": {"kernel": np.ones([4, 4], np.float32)}}
    given["names"] = {"weight": "kernel"}
    untold = Imported(source, **given).report
    assert "square" in " ".join(untold.notes)
    told = Imported(source, **given, transpose=TRANSPOSE)
    assert "square" not in " ".join(told.report.notes)
    theirs = optimizer.state[tensor]["exp_avg"].numpy()
    np.testing.assert_array_equal(told.slot("kernel", "momentum"), theirs.T)


def test_named_parameters_and_a_whole_checkpoint(rng, tmp_path):
    trained = Trained(rng)
    give_names(trained)
    model = {f"model.{k}": t.detach() for k, t in trained.tensors.items()}
    source = trained.read(
        tmp_path,
        lambda state: {"epoch": 3, "model": model, "optimizer": state},
    )
    assert not source.positional
    assert list(source.slots) == ["model.kernel", "model.bias", "model.scale"]
    names = {f"model.{k}": k for k in SHAPES}
    zeros = {k: np.zeros(s, np.float32) for k, s in SHAPES.items()}
    imported = Imported(source, zeros, names, TRANSPOSE)
    migration.import_state(
        imported.optimizer,
        source,
        names=names,
        transpose=TRANSPOSE,
        weights=True,
    )
    for key, weight in trained.weights().items():
        np.testing.assert_array_equal(imported.variables[key], weight)
    trained.check(imported, None)


def test_bfloat16_state(rng, tmp_path):
    trained = Trained(rng)
    for tensor in trained.tensors.values():
        tensor.data = tensor.data.to(torch.bfloat16)
    other = torch.optim.AdamW(list(trained.tensors.values()))
    for tensor in trained.tensors.values():
        tensor.grad = torch.ones_like(tensor)
    other.step()
    trained.optimizer = other
    source = trained.read(tmp_path)
    for key, position in (("kernel", "0"), ("scale", "2")):
        state = other.state[trained.tensors[key]]
        for name, slot in (("momentum", "exp_avg"), ("velocity", "exp_avg_sq")):
            value = source.slots[position][name]
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, state[slot].float().numpy())


def test_a_parameter_that_was_never_stepped(rng, tmp_path):
    trained = Trained(rng, 0)
    for _ in range(3):
        trained.step(skip=["bias"])
    imported = trained.imported(trained.read(tmp_path))
    assert imported.report.seeded == ("bias/momentum", "bias/velocity")
    assert list(imported.report.mapped) == list(SHAPES)
    gradients = trained.step(skip=["bias"])
    imported.step(gradients, trained.weights())


def test_a_parameter_stepped_less_often(rng, tmp_path):
    """Its corrected moments are kept: next to nothing changes late."""
    trained = Trained(rng, 0, dtype="float64", weight_decay=0.0)
    for step in range(3000):
        trained.step(skip=["bias"] if step < 2 else [])
    source = trained.read(tmp_path)
    (line,) = source.ignored
    assert "2998" in line and "3000" in line
    assert "its next steps differ from PyTorch's" in line
    imported = trained.imported(source)
    assert line in imported.report.left_over
    state = trained.optimizer.state[trained.tensors["bias"]]
    for name, slot, beta in (
        ("momentum", "exp_avg", 0.9),
        ("velocity", "exp_avg_sq", 0.999),
    ):
        corrected = state[slot].numpy() / (1 - beta**2998)
        ours = imported.slot("bias", name) / (1 - beta**3000)
        np.testing.assert_allclose(ours, corrected, rtol=1e-13)


def test_given_settings_count(rng, tmp_path):
    source = Trained(rng).read(tmp_path, learning_rate=0.5, epsilon=1e-3)
    assert source.settings["learning_rate"] == 0.5
    assert source.settings["epsilon"] == 1e-3
    assert source.settings["weight_decay"] == 0.01


def test_adam_without_decay(rng, tmp_path):
    trained = Trained(rng, kind=torch.optim.Adam, lr=1e-2)
    source = trained.read(tmp_path)
    assert source.optimizer == "PyTorch Adam"
    imported = trained.imported(source)
    assert imported.report.complete
    trained.check(imported, "PyTorch Adam, float32")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"kind": torch.optim.Adam, "weight_decay": 0.1},
            "adds it to the grad",
        ),
        ({"maximize": True}, "maximized"),
        ({"kind": torch.optim.RAdam}, "no state of PyTorch's Adam"),
        ({"kind": torch.optim.SGD, "lr": 0.1}, "no state of PyTorch's Adam"),
        (
            {"groups": [(["kernel"], {"betas": (0.8, 0.9)}), (["bias"], {})]},
            r"differ in betas\[0\]: 0.8, 0.9; .* give beta_1",
        ),
        (
            {"groups": [(["kernel"], {"eps": 1e-6}), (["bias"], {})]},
            "differ in eps: 1e-08, 1e-06; .* give epsilon",
        ),
        (
            {"groups": [(["kernel"], {"weight_decay": 1}), (["bias"], {})]},
            "differ in weight_decay, other than 0: 0.01, 1.0; .* give weight_d",
        ),
        (
            {"groups": [(["kernel"], {"amsgrad": True}), (["bias"], {})]},
            "differ in amsgrad",
        ),
    ],
)
def test_refused(rng, tmp_path, options, words):
    trained = Trained(rng, 1, **options)
    with pytest.raises(ValueError, match=words) as refusal:
        trained.read(tmp_path)
    assert "\n" not in str(refusal.value)


class Unpickled:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("an object was unpickled",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {}}, "holds 0 optimizers"),
        (3, "holds 0 optimizers"),
        (
            {n: {"state": {}, "param_groups": []} for n in ("g", "d")},
            "holds 2 optimizers: 'g', 'd'",
        ),
        (Unpickled(), "not unpickled"),
    ],
)
def test_files_refused(tmp_path, content, words):
    path = tmp_path / "file.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=words) as refusal:
        migration.read("torch", path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("bytes_left", [0, 1, 700, -1])
def test_damaged_files_refused(rng, tmp_path, bytes_left):
    path = tmp_path / "optimizer.pt"
    torch.save(Trained(rng).optimizer.state_dict(), path)
    path.write_bytes(path.read_bytes()[:bytes_left])
    with pytest.raises(
        ValueError, match=r"optimizer\.pt.*(cut off|no file)"
    ) as refusal:
        migration.read("torch", path)
    assert "\n" not in str(refusal.value)


def test_a_wrong_bit_in_a_moment_refused(rng, tmp_path):
    path = tmp_path / "optimizer.pt"
    trained = Trained(rng)
    torch.save(trained.optimizer.state_dict(), path)
    state = trained.optimizer.state[trained.tensors["bias"]]
    held = state["exp_avg"].numpy().tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(held) + 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"checksum of .* is wrong") as refusal:
        migration.read("torch", path)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Cannot read .*No such file"):
        migration.read("torch", tmp_path / "none.pt")
