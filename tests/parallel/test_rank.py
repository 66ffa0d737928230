"""Which process a launcher says that this one is, and what processes tell each other."""

import pytest
import torch
from in_processes import in_processes

from sever.parallel import collectives
from sever.utils.errors import DeviceError
from sever.utils.rank import World, first_host, meeting_point, tasks_per_node, world_of

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29400",
}  # fmt: skip
# Of `srun -n 7` on three machines, as the third process of the second one sees it
SRUN = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "7", "SLURM_LOCALID": "2", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),1", "SLURM_STEP_NODELIST": "gpu[03-05]",
    "SLURM_JOB_ID": "90210", "SLURM_STEP_ID": "4", "SLURM_NTASKS": "7",
}  # fmt: skip


# ----------------------------------------------------------------------------------- what launchers say


def test_torchrun_tells_place_and_meeting_point():
    assert world_of(TORCHRUN) == World(rank=5, size=8, local_rank=1, local_size=4)
    assert meeting_point(TORCHRUN) == ("10.0.0.7", 29400)


def test_srun_tells_place_and_meeting_point():
    assert world_of(SRUN) == World(rank=5, size=7, local_rank=2, local_size=3)
    last = SRUN | {"SLURM_PROCID": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"}
    assert world_of(last) == World(rank=6, size=7, local_rank=0, local_size=1)
    # 15000 + (90210 · 100 + 4) mod 20000: all machines work out the same
    assert meeting_point(SRUN) == ("gpu03", 15000 + 1004)


def test_steps_of_a_job_beside_each_other_meet_elsewhere():
    ports = {meeting_point(SRUN | {"SLURM_STEP_ID": str(step)})[1] for step in range(9)}
    ports |= {meeting_point(SRUN | {"SLURM_JOB_ID": str(90211 + job)})[1] for job in range(9)}
    assert len(ports) == 18
    assert all(1024 < port < 65536 for port in ports)


def test_torchrun_under_srun_is_what_counts():
    assert world_of(SRUN | TORCHRUN) == world_of(TORCHRUN)
    assert meeting_point(SRUN | TORCHRUN) == meeting_point(TORCHRUN)
    assert meeting_point(SRUN | {"MASTER_ADDR": "login", "MASTER_PORT": "4000"}) == ("login", 4000)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {
            "SLURM_NTASKS": "4",
            "SLURM_PROCID": "0",
            "SLURM_JOB_ID": "9",
            "SLURM_LOCALID": "0",
        },  # sbatch's script
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"},  # srun --pty bash
        {"RANK": "3"},
        {"WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.7"},
    ],
)
def test_a_process_that_no_launcher_started_is_alone(environment):
    assert world_of(environment) == World(rank=0, size=1, local_rank=0, local_size=1)
    assert world_of(environment).is_main


def test_the_process_of_rank_0_is_the_main_one():
    assert [world_of(TORCHRUN | {"RANK": str(rank)}).is_main for rank in (0, 1)] == [True, False]


@pytest.mark.parametrize(
    ("environment", "change", "words"),
    [
        (TORCHRUN, {"RANK": "8"}, ["contradict", "RANK=8", "WORLD_SIZE=8"]),
        (TORCHRUN, {"RANK": "-1"}, ["contradict", "RANK=-1"]),
        (TORCHRUN, {"LOCAL_RANK": "4"}, ["contradict", "LOCAL_RANK=4", "LOCAL_WORLD_SIZE=4"]),
        (TORCHRUN, {"LOCAL_WORLD_SIZE": "9"}, ["contradict", "LOCAL_WORLD_SIZE=9"]),
        (TORCHRUN, {"WORLD_SIZE": "0"}, ["contradict", "WORLD_SIZE=0"]),
        (TORCHRUN, {"RANK": "one"}, ["variable RANK", "received 'one'"]),
        (TORCHRUN, {"WORLD_SIZE": ""}, ["variable WORLD_SIZE", "received ''"]),
        (TORCHRUN, {"LOCAL_RANK": None}, ["variable LOCAL_RANK", "torchrun"]),
        (TORCHRUN, {"LOCAL_WORLD_SIZE": "2.0"}, ["variable LOCAL_WORLD_SIZE", "'2.0'"]),
        (SRUN, {"SLURM_PROCID": "7"}, ["contradict", "SLURM_PROCID=7", "SLURM_STEP_NUM_TASKS=7"]),
        (SRUN, {"SLURM_LOCALID": "3"}, ["contradict", "SLURM_LOCALID=3", "PER_NODE=3(x2),1"]),
        (SRUN, {"SLURM_NODEID": "3"}, ["SLURM_STEP_TASKS_PER_NODE", "no machine 3"]),
        (SRUN, {"SLURM_NODEID": None}, ["variable SLURM_NODEID"]),
        (SRUN, {"SLURM_STEP_TASKS_PER_NODE": None}, ["SLURM_STEP_TASKS_PER_NODE", "no machine 1"]),
        (SRUN, {"SLURM_STEP_NUM_TASKS": "many"}, ["variable SLURM_STEP_NUM_TASKS", "'many'"]),
        (SRUN, {"SLURM_PROCID": None}, ["variable SLURM_PROCID"]),
    ],
)  # fmt: skip
def test_variables_that_make_no_place_are_named(environment, change, words):
    changed = {name: value for name, value in (environment | change).items() if value is not None}
    with pytest.raises(DeviceError) as caught:
        world_of(changed)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT"),
        ({"SLURM_STEP_NODELIST": "a1", "SLURM_STEP_ID": "0"}, "SLURM_JOB_ID"),
        ({"SLURM_STEP_NODELIST": "a1", "SLURM_JOB_ID": "7"}, "SLURM_STEP_ID"),
    ],
)
def test_a_meeting_point_that_nothing_tells_is_a_mistake(environment, words):
    with pytest.raises(DeviceError, match=words):
        meeting_point(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("a1,a2", "a1"),
        ("gpu[03-05,9],login", "gpu03"),
        ("gpu[9,03-05]", "gpu9"),
        ("login,gpu[03-05]", "login"),
        ("rack2-n[7]", "rack2-n7"),
        ("n[001-128].cluster.org", "n001.cluster.org"),
        ("rack[1-2]node[04,06]", "rack1node04"),
        ("", ""),
    ],
)
def test_the_first_machine_of_a_list_of_slurm(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("4", [4]),
        ("4(x2),3", [4, 4, 3]),
        ("1,2(x3),12(x1)", [1, 2, 2, 2, 12]),
        ("16(x2)", [16, 16]),
        ("", []),
    ],
)
def test_the_processes_of_each_machine(text, counts):
    assert tasks_per_node(text) == counts


# --------------------------------------------------------------------------------- how processes meet


def told_each_other():
    rank = collectives.world().rank
    collectives.barrier()
    tensors = [torch.full((2,), float(rank)), torch.tensor(rank)]
    collectives.broadcast_tensors(tensors)
    means = [torch.full((2, 2), 3.0 * rank), torch.tensor(1.0 + rank)]
    collectives.all_reduce_mean(means)
    with collectives.main_first():
        pass
    return {
        "gather": collectives.all_gather({"rank": rank}),
        "gather_on_main": collectives.gather(rank),
        "broadcast": collectives.broadcast(f"of {rank}"),
        "most": collectives.all_reduce_max(rank, -rank),
        "any_of": [collectives.on_any_rank(rank == 1), collectives.on_any_rank(False)],
        "all_true": [collectives.all_reduce_and(torch.tensor(rank < limit)).item() for limit in (1, 9)],
        "spread": [tensor.tolist() for tensor in tensors],
        "average": [tensor.tolist() for tensor in means],
    }


def test_what_processes_tell_each_other():
    first, *others = in_processes(3, told_each_other)
    together = {
        "gather": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
        "broadcast": "of 0",
        "most": [2, 0],
        "any_of": [True, False],
        "all_true": [False, True],
        "spread": [[0.0, 0.0], 0],
        "average": [[[3.0, 3.0], [3.0, 3.0]], 2.0],
    }
    assert first == together | {"gather_on_main": [0, 1, 2]}
    assert others == [together | {"gather_on_main": []}] * 2


def test_alone_a_process_tells_itself():
    told = told_each_other()
    assert (told["gather"], told["gather_on_main"], told["broadcast"]) == ([{"rank": 0}], [0], "of 0")
    assert (told["most"], told["average"]) == ([0, 0], [[[0.0, 0.0], [0.0, 0.0]], 1.0])


def test_who_tells_of_an_error_first_tells_alone():
    def first_to_fail():
        return [collectives.is_first_to_fail(2), collectives.is_first_to_fail(2)]

    answers = in_processes(3, first_to_fail)
    assert sorted(answers) == [[False, False], [False, False], [True, True]]


def test_the_loss_of_another_process_is_a_message():
    def lost():
        if collectives.world().rank == 1:
            raise SystemExit
        collectives.all_gather("…")

    with pytest.raises(AssertionError, match="PeerError: process 0 of 2: another process is gone"):
        in_processes(2, lost)


def test_processes_may_leave_at_once():
    for _ in range(5):
        assert in_processes(3, lambda: None) == [None] * 3
