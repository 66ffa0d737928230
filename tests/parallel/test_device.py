"""`--device` and `n_gpu` -> the device of each process, on machines with and without GPUs."""

from types import SimpleNamespace

import pytest
import torch
from runs import SIZE, done, run_folder, sever, steel_config, write_config

from sever.commands import average, train
from sever.parallel import collectives
from sever.parallel.device import check_precision, choose_device, describe, list_devices
from sever.utils.errors import DeviceError, SeveralDevices
from sever.utils.launcher_env import World


class Gpus:
    """What torch says of a machine with so many GPUs that can be seen."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.set: list[torch.device] = []
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        monkeypatch.setattr(torch.cuda, "set_device", self.set.append)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Test")
        self.are(0)

    def are(self, count, visible=None):
        self.monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        self.monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        if visible is not None:
            self.monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    def join(self, rank, processes):
        """As after `process_group` with all processes on this machine."""
        world = World(rank, processes, rank, processes)
        self.monkeypatch.setattr(collectives, "_world", world)


@pytest.fixture
def gpus(monkeypatch):
    return Gpus(monkeypatch)


def cuda(*indices):
    return [torch.device("cuda", index) for index in indices]


def refusal(text, n_gpu=1):
    with pytest.raises(DeviceError) as caught:
        choose_device(text, n_gpu)
    return str(caught.value)


def test_without_a_gpu_auto_is_the_cpu(gpus):
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto", 2) == torch.device("cpu")
    assert gpus.set == []
    message = refusal("0")
    assert "no GPU 0" in message
    assert "--device cpu" in message


def test_gpus_have_the_numbers_of_nvidia_smi(gpus):
    gpus.are(4)
    assert choose_device("2") == torch.device("cuda:2")
    assert gpus.set == cuda(2)
    assert list_devices("3,1") == cuda(3, 1)
    assert "0, 1, 2, 3" in refusal("4")


def test_a_hidden_gpu_keeps_its_number(gpus):
    gpus.are(2, visible="4,5")
    assert choose_device("5") == torch.device("cuda:1")
    assert describe(torch.device("cuda:1")) == "GPU 5, NVIDIA Test"
    assert list_devices("5,4") == cuda(1, 0)
    assert choose_device("auto") == torch.device("cuda:0")
    message = refusal("0")
    assert "no GPU 0" in message
    assert "4, 5 (CUDA_VISIBLE_DEVICES hides others)" in message


def test_gpus_that_are_named_by_their_uuids_are_counted_from_0(gpus):
    gpus.are(2, visible="GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-41b3359c-e721-56e5-8009-12e5797ed514")
    assert list_devices("0,1") == cuda(0, 1)
    assert "0, 1" in refusal("2")


def test_no_gpu_is_left_where_all_are_hidden(gpus):
    gpus.are(0, visible="")
    assert choose_device("auto") == torch.device("cpu")
    assert "none" in refusal("0")


def test_n_gpu_takes_the_first_ones(gpus, caplog):
    gpus.are(4)
    assert list_devices("auto", 1) == cuda(0)
    assert list_devices("auto", 2) == cuda(0, 1)
    assert list_devices("auto", 0) == [torch.device("cpu")]
    assert caplog.text == ""


def test_more_gpus_than_there_are_are_warned_of(gpus, caplog):
    gpus.are(2, visible="6,7")
    with caplog.at_level("WARNING", "sever.parallel.device"):
        assert list_devices("auto", 8) == cuda(0, 1)
    assert "n_gpu: 8, but this machine has 2" in caplog.text


def test_several_devices_ask_for_several_processes(gpus):
    gpus.are(4, visible="2,3,6,7")
    with pytest.raises(SeveralDevices) as caught:
        choose_device("7,2")
    assert caught.value.names == ["GPU 7", "GPU 2"]
    with pytest.raises(SeveralDevices) as caught:
        choose_device("auto", 2)
    assert caught.value.names == ["GPU 2", "GPU 3"]
    with pytest.raises(SeveralDevices) as caught:
        choose_device("cpu, cpu,cpu")
    assert caught.value.names == ["CPU"] * 3
    assert gpus.set == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,0,1", "names GPU 1 twice"),
        ("0,cpu", "GPUs alone or the CPU alone"),
        ("0,auto", "received 'auto'"),
        ("0,", "received ''"),
        ("-1", "received '-1'"),
        ("cuda:0", "received 'cuda:0'. The first GPU is -d 0"),
        ("٣", "received '٣'"),
    ],
)
def test_lists_that_name_no_devices(gpus, text, words):
    gpus.are(2)
    assert words in refusal(text)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_of_a_launcher_takes_the_device_of_its_rank(gpus, rank):
    gpus.are(3, visible="1,3,5")
    gpus.join(rank, 2)
    assert choose_device("auto", 1) == torch.device("cuda", rank)  # however many n_gpu says
    assert choose_device("5,1") == torch.device("cuda", [2, 0][rank])
    assert gpus.set == [torch.device("cuda", rank), torch.device("cuda", [2, 0][rank])]
    assert choose_device("cpu") == choose_device("cpu,cpu") == choose_device("auto", 0) == torch.device("cpu")


def test_processes_and_devices_must_be_as_many(gpus):
    gpus.are(4)
    gpus.join(0, 2)
    assert "each of the 2 processes of this machine, received 3" in refusal("0,1,2")
    assert "each of the 2 processes of this machine, received 1" in refusal("0")
    gpus.are(1)
    message = refusal("auto")
    assert "2 processes on this machine and 1 GPUs" in message
    assert "-d cpu" in message
    gpus.are(0)
    assert choose_device("auto") == torch.device("cpu")


def test_bf16_is_refused_where_it_would_be_emulated(gpus, monkeypatch):
    gpus.are(1)
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True, raising=False)
    for major, is_there in ((7, False), (8, True)):  # V100 and T4; A100
        properties = SimpleNamespace(major=major, minor=0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=properties: found)
        if is_there:
            check_precision(torch.device("cuda:0"), "bf16")
        else:
            with pytest.raises(DeviceError, match="bf16 is not there on GPU 0, NVIDIA Test; take fp16"):
                check_precision(torch.device("cuda:0"), "bf16")


def test_the_gpu_is_chosen_before_anything_is_done_on_one(gpus, monkeypatch, tmp_path):
    done("synth", tmp_path / "data", "-n", "4", "--size", *map(str, SIZE))
    config = write_config(tmp_path / "c.yml", steel_config(tmp_path / "data", tmp_path / "saved"))
    run = run_folder(done("train", "-c", config, "-s", "training.epochs=1"))

    def stop_here(*_, **__):
        raise DeviceError(f"chosen: {gpus.set}")

    gpus.are(3)
    monkeypatch.setattr(train, "training_objects", stop_here)
    assert "index=2" in sever("train", "-c", config, "--dry-run", "-d", "2").stderr
    gpus.set.clear()
    monkeypatch.setattr(average, "training_loader", stop_here)
    last = run / "checkpoint_last.pth"
    command = ("average", "-r", last, "-r", last, "--recompute-batch-norm", "-o", tmp_path / "a.pth")
    assert "index=1" in sever(*command, "-d", "1").stderr
