"""Checkpoints of every strategy go on under every other one.

The clusters of processes and this process save at the same time, and then
each goes on with what all have saved: in the middle of a window, with every
option on.
"""

import numpy as np
import pytest

import cluster
import crossing
import strategies
from crossing import MODES

pytestmark = [pytest.mark.core, pytest.mark.slow]

HERE = ["default", "one_device", "mirrored_2", "mirrored_4"]
CLUSTERS = {
    "multi_worker_2": {"worker": 2},
    "parameter_server": {"ps": 1, "worker": 1, "chief": 1},
}
PLACES = [*HERE, *CLUSTERS]
REPLICAS = {"mirrored_2": 2, "multi_worker_2": 2, "mirrored_4": 4}
ENDS = {"multi_worker_2": (), "parameter_server": ("chief-0",)}


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """{place: {(mode, place that saved, how): state}} after the last step."""
    folder = tmp_path_factory.mktemp("crossing")
    command = ["crossing_program.py", str(folder), *PLACES]
    running = {
        place: cluster.Cluster(jobs, folder / place, command)
        for place, jobs in CLUSTERS.items()
    }
    found, trainings = {}, {}
    with running["multi_worker_2"], running["parameter_server"]:
        for place in HERE:
            strategy = strategies.named(place)
            trainings[place], found[place] = crossing.save(
                folder, place, strategy
            )
        for place, processes in running.items():
            processes.wait((folder / f"{place}.saved").exists)
        (folder / "go").touch()
        for place in HERE:
            found[place] |= crossing.go_on(
                folder, PLACES, trainings[place], strategies.named(place)
            )
        for place, processes in running.items():
            processes.wait_for_end(*ENDS[place])
    for place in CLUSTERS:
        found[place] = {}
        read = cluster.read_results(folder / f"{place}.npz")
        for name, state in read.items():
            values = {key: value for (key,), value in state.items()}
            found[place][tuple(name.split(" from "))] = values
    return found


@pytest.mark.parametrize("mode", [str(mode) for mode in MODES])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("origin", PLACES)
def test_goes_on_as_if_never_stopped(states, origin, place, mode):
    """Bit for bit where the same is computed, otherwise within rounding.

    TensorFlow's fused ops compute the same everywhere. XLA's program is
    another one for one replica than for several, and parameter servers have
    none.
    """
    hows = ["built", "not built"]
    if mode != "False" and origin != crossing.COMPILED_BEFORE_BUILD:
        hows.remove("not built")
    expected = states[origin][mode, "never stopped"]
    same = mode == "False" or kind(origin) == kind(place)
    for how in hows:
        found = states[place][mode, origin, how]
        assert set(found) == set(expected)
        for name, value in expected.items():
            if same:
                assert found[name].tobytes() == value.tobytes(), name
            else:
                # error_bounds.py, for both: (16 + 5 t) u of values of order
                # one, after t = 5 updates. The weights' bound is smaller.
                tolerance = 2 * (16 + 5 * 5) * 2.0**-24
                np.testing.assert_allclose(
                    found[name], value, tolerance, tolerance, err_msg=name
                )


def kind(place):
    """What computes the same bits in mode "auto"."""
    if place == "parameter_server":
        return place
    return REPLICAS.get(place, 1) > 1, REPLICAS.get(place, 1)


@pytest.mark.parametrize("place", PLACES)
def test_a_failure_half_way(states, place):
    """Every variable of every process has the value that it had."""
    before, between, after = (
        {
            name: value.tobytes()
            for name, value in states[place]["False", "half way", when].items()
        }
        for when in ("before", "in between", "after")
    )
    assert before == after != between


def test_the_state_has_moved(states):
    """The comparisons above are of something."""
    state = states["default"]["False", "never stopped"]
    assert state["iterations"] == crossing.CONTINUED_TO // 2
    assert state["loss_scale"] == 2.0**12
    for key in crossing.SHAPES:
        assert np.all(state[f"{key}/velocity_max"] > 0)
        assert np.all(np.isfinite(state[f"{key}/average"]))
