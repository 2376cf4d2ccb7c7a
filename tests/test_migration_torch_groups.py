"""Groups, names and weights in PyTorch's files that only look alright."""

import numpy as np
import pytest
import torch

import tf_adamw
from helpers import as_variables
from next_step import Imported
from tf_adamw import migration

KEYS = ("w", "b")


class Named:
    """A torch.optim.AdamW of two alike parameters, after some steps."""

    def __init__(self, rng, groups=None, names=KEYS, steps=4, **options):
        self.rng, self.names = rng, names
        self.tensors = {
            name: torch.nn.Parameter(torch.tensor(rng.normal(size=3)))
            for name in names
        }
        kind = options.pop("kind", torch.optim.AdamW)
        self.optimizer = kind(
            [
                {"params": [(name, self.tensors[name])], **own}
                for name, own in (groups or {n: {} for n in names}).items()
            ],
            **options,
        )
        for _ in range(steps):
            self.step()

    def weights(self):
        return {k: t.detach().numpy().copy() for k, t in self.tensors.items()}

    def step(self):
        gradients = {name: self.rng.normal(size=3) for name in self.names}
        for name, tensor in self.tensors.items():
            tensor.grad = torch.tensor(gradients[name])
        self.optimizer.step()
        return gradients

    def read(self, folder, change=lambda state: state, **given):
        path = folder / "file.pt"
        torch.save(change(self.optimizer.state_dict()), path)
        return migration.read("torch", path, **given)


def imported(source, run, **options):
    return Imported(source, run.weights(), jit_compile=False, **options)


def strictly(source, weights, **options):
    """An import that refuses; returns the AdamW and its variables."""
    optimizer = tf_adamw.AdamW(**{**source.arguments(), **options})
    variables = as_variables(weights)
    optimizer.build(variables)
    migration.import_state(optimizer, source, strict=True)
    return optimizer, variables


def test_a_group_that_does_not_learn(rng, tmp_path):
    run = Named(rng, {"w": {"lr": 1e-2}, "b": {"lr": 0.0}})
    source = run.read(tmp_path)
    with pytest.raises(ValueError, match=r"b has the .* 1, in .* it is 0"):
        strictly(source, run.weights())
    frozen = {"learning_rate_multipliers": {"b": 0.0}}
    strictly(source, run.weights(), **frozen)
    heir = imported(source, run, **frozen)
    before = run.weights()["b"]
    heir.step(run.step(), run.weights())
    np.testing.assert_array_equal(heir.variables["b"], before)


def test_names_that_are_numbers(rng, tmp_path):
    """Those of a ParameterList, the second one's group before the first's."""
    run = Named(rng, {"1": {}, "0": {}}, names=("0", "1"))
    source = run.read(tmp_path)
    assert not source.positional
    heir = imported(source, run)
    assert heir.report.mapped == {"0": "0", "1": "1"}
    heir.step(run.step(), run.weights())


def renamed(*names):
    def change(state):
        for group, own in zip(state["param_groups"], names, strict=True):
            group["param_names"] = own
        return state

    return change


def groups_of(value):
    return lambda state: {**state, "param_groups": value}


def group_with(**changes):
    def change(state):
        for group in state["param_groups"]:
            group.update(changes)
        return state

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed(["w"], ["w"]), "'w' more than once in their param_names"),
        (renamed(["w"], []), "1 params and 0 param_names"),
        (renamed(["w", "b"], ["c"]), "1 params and 2 param_names"),
        (group_with(params=[0]), "0 more than once in their params"),
        (group_with(params=3), "params and param_names must be lists"),
        (groups_of([]), "list of one dict or more"),
        (groups_of([1, 2]), "list of one dict or more"),
        (groups_of({"a": 1}), "list of one dict or more"),
    ],
)
def test_groups_refused(rng, tmp_path, change, words):
    run = Named(rng, steps=1)
    with pytest.raises(ValueError, match=words) as refusal:
        run.read(tmp_path, change)
    assert "\n" not in str(refusal.value)


def test_state_of_no_group(rng, tmp_path):
    run = Named(rng)

    def drop(state):
        return {**state, "param_groups": state["param_groups"][:1]}

    source = run.read(tmp_path, drop)
    assert list(source.slots) == ["w"]
    assert source.ignored == ("state of 1, of no group",)


def test_weights_of_two_models(rng, tmp_path):
    """Nothing tells which of them the moments belong to."""
    run = Named(rng)
    model = {n: t.detach() for n, t in run.tensors.items()}
    ema = {n: t + 1 for n, t in model.items()}
    source = run.read(
        tmp_path, lambda state: {"ema": ema, "model": model, "opt": state}
    )
    assert not source.weights
    report = imported(source, run).report
    assert "weights at 'ema' and at 'model'" in " ".join(report.notes)


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda model, state: [model, state], "0"),
        (lambda model, state: (state, {"net": model}), r"1['net']"),
        (lambda model, state: {"run": {"net": model, "o": state}}, "'run'['n"),
        # What has the names and no tensors is no model.
        (lambda model, state: [dict.fromkeys(model, 1), model, state], "1"),
    ],
)
def test_where_weights_are(rng, tmp_path, wrap, place):
    run = Named(rng)
    model = {n: t.detach() for n, t in run.tensors.items()}
    source = run.read(tmp_path, lambda state: wrap(model, state))
    for name, weight in run.weights().items():
        np.testing.assert_array_equal(source.weights[name], weight)
    report = imported(source, run).report
    words = f"the weights in the file are those at {place}"
    assert any(note.startswith(words) for note in report.notes)


def test_two_optimizers_under_one_key(rng, tmp_path):
    run = Named(rng)
    with pytest.raises(ValueError, match=r"2 opt.*: 'a'\['o'\], 'b'\['o'\]"):
        run.read(tmp_path, lambda state: {n: {"o": state} for n in "ab"})


def old(state):
    """As PyTorch wrote it before it knew decoupled_weight_decay."""
    for group in state["param_groups"]:
        group.pop("decoupled_weight_decay", None)
    return state


def test_an_old_adam_with_a_decay(rng, tmp_path):
    run = Named(rng, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"old PyTorch.*give weight_decay=0.1"):
        strictly(run.read(tmp_path, old), run.weights())
    given = run.read(tmp_path, old, weight_decay=0.1)
    strictly(given, run.weights())
    imported(given, run).step(run.step(), run.weights())
    # Adam that does not decay is the same.
    plain = Named(rng, kind=torch.optim.Adam)
    strictly(plain.read(tmp_path, old), plain.weights())


@pytest.mark.parametrize(
    ("own", "given", "words"),
    [
        (
            {"betas": (0.8, 0.99)},
            {"beta_1": 0.9, "beta_2": 0.999},
            r"betas\[0\] is 0.8 in the group of b, beta_1 is 0.9; betas\[1\]",
        ),
        ({"eps": 1e-6}, {"epsilon": 1e-8}, "eps is 1e-06 in the group of b"),
    ],
)
def test_a_group_that_is_not_followed(rng, tmp_path, own, given, words):
    run = Named(rng, {"w": {}, "b": own})
    with pytest.raises(ValueError, match=words) as refusal:
        strictly(run.read(tmp_path, **given), run.weights())
    assert "group of w" not in str(refusal.value)


def test_groups_of_other_decays(rng, tmp_path):
    run = Named(rng, {"w": {"weight_decay": 0.1}, "b": {"weight_decay": 0.2}})
    source = run.read(tmp_path, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"b has .* 1, in .* it is 2"):
        strictly(source, run.weights())
    followed = {"weight_decay_multipliers": {"b": 2.0}}
    strictly(source, run.weights(), **followed)
    heir = imported(source, run, **followed)
    heir.step(run.step(), run.weights())


def test_a_parameter_whose_steps_were_skipped(rng, tmp_path):
    """A fused AdamW has state of it, and a step of 0."""
    run = Named(rng)

    def skip(state):
        state["state"][1] = {
            n: torch.zeros_like(v) for n, v in state["state"][1].items()
        }
        return state

    heir = imported(run.read(tmp_path, skip), run)
    assert heir.report.seeded == ("b/momentum", "b/velocity")
