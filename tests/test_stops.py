"""Trainings that are stopped, killed and started again, as commands."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import ClassVar
from unittest.mock import patch

import pytest
import torch
from commands import ROOT
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from short_training import make
from torch.distributed.elastic.multiprocessing.api import SignalException

from resnest_d2 import model_zoo
from resnest_d2.config import InputError
from resnest_d2.config.settings import Settings
from resnest_d2.engine import load_config
from resnest_d2.engine.launch import hold_output
from resnest_d2.processes import start_processes

# How often a training is killed; docs/reliability.md has figures of 20.
KILLS = int(os.getenv("KILLS", "1"))
VICTIMS = ["launcher", "worker", "workers"][: 1 if KILLS == 1 else 3]


class Training:
    """A running command that trains on a few digits.

    Args:
        folder: its output folder.
        datasets: the root of data sets.
        launcher: what stands before tools/train_net.py.
        options: of the command, before the keys of its config.
        keys: pairs of the config.
        log: where its output goes, beside the folder.
    """

    started: ClassVar[list] = []

    def __init__(
        self, folder, datasets, launcher=(sys.executable,), options=(), keys=(), log="out.log"
    ):
        self.folder, self.log = folder, folder.parent / log
        short = "SOLVER.IMS_PER_BATCH 2 SOLVER.CHECKPOINT_PERIOD 5 MODEL.DEVICE cpu"
        self.process = subprocess.Popen(
            [
                *launcher,
                *(ROOT / "tools/train_net.py", *options),
                *("--config-file", ROOT / "configs/mask_resnest14_digits.yaml"),
                *(
                    *short.split(),
                    "TEST.EVAL_PERIOD",
                    "0",
                    "DATASETS.TEST",
                    "()",
                    "INPUT.MIN_SIZE_TRAIN",
                    "(64,)",
                ),
                *("OUTPUT_DIR", folder, *keys),
            ],
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            start_new_session=True,
        )
        self.started.append(self)

    def wait_for(self, text, seconds=120):
        """Wait until the command has said something since it was started."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if re.search(text, self.output()):
                return self
            assert self.process.poll() is None, self.output()
            time.sleep(0.05)
        raise TimeoutError(f"{text!r} is not in {self.output()}")

    def output(self):
        return self.log.read_text()

    def end(self, seconds=120):
        """The exit code."""
        return self.process.wait(seconds)

    def workers(self):
        """The processes that train, which the launcher has started."""
        command = ["pgrep", "-f", "-P", str(self.process.pid), "spawn_main|train_net.py"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    for training in Training.started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(training.process.pid, signal.SIGKILL)
        training.process.wait()
    Training.started.clear()


def iterations(folder):
    """What metrics.json has, in its order."""
    lines = (folder / "metrics.json").read_text().splitlines()
    return [json.loads(line)["iteration"] for line in lines]


def last(folder):
    return torch.load(folder / (folder / "last_checkpoint").read_text(), weights_only=True)


def torchrun(*options):
    return (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *options)


def test_a_signal_saves_and_stops(tmp_path, tiny_digits):
    """Sent twice to the process and its loaders, as launchers do; which then goes on."""
    folder, number = tmp_path / "out", signal.SIGTERM
    keys = ("SOLVER.MAX_ITER", "500", "SOLVER.CHECKPOINT_PERIOD", "500")
    keys += ("DATALOADER.NUM_WORKERS", "2")
    training = Training(folder, tiny_digits, keys=keys).wait_for("iter: 19 ")
    start = time.monotonic()
    for _ in range(2):
        os.killpg(training.process.pid, number)
        time.sleep(0.05)
    assert training.end() == 128 + number
    assert time.monotonic() - start < 30
    output = training.output()
    done = last(folder)["iteration"]
    assert done >= 19
    stopped = f"{number.name}: training stopped after iteration {done}; the same command with"
    assert stopped in output
    assert "Traceback" not in output
    keys = ("SOLVER.MAX_ITER", str(done + 3))
    training = Training(folder, tiny_digits, options=["--resume"], keys=keys)
    assert training.end() == 0, training.output()
    assert f"Starting training from iteration {done + 1}" in training.output()
    assert len(set(iterations(folder))) == len(iterations(folder))


@pytest.fixture
def heeded():
    """Signals do what they do in a terminal, also if nohup or a shell's & has started the tests."""
    numbers = (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class Send(HookBase):
    """Sends this process a signal in an iteration, before or after the weights are updated."""

    def __init__(self, number, when):
        self.number, self.when = number, when

    def _send(self, when):
        if self.when == when and self.trainer.iter == 2:
            os.kill(os.getpid(), self.number)
            time.sleep(0.1)

    def before_step(self):
        self._send("before")

    def after_step(self):
        self._send("after")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
@pytest.mark.parametrize("when", ["before", "after"])
def test_other_signals_and_moments(tmp_path, registered_digits, heeded, number, when):
    before = signal.getsignal(number)
    trainer = make(tmp_path, keys={"SOLVER.MAX_ITER": "6"})
    trainer.register_hooks([Send(number, when)])
    with pytest.raises(SystemExit) as raised:
        trainer.train()
    assert raised.value.code == 128 + number
    assert last(tmp_path)["iteration"] == (2 if when == "before" else 3)
    assert signal.getsignal(number) == before


def test_what_takes_too_long_is_cut_short(tmp_path, registered_digits, monkeypatch):
    """An iteration that hangs: the checkpoint is that of the last one that is done."""
    monkeypatch.setattr("resnest_d2.engine.stopping.PATIENCE", 1)
    trainer = make(tmp_path, keys={"SOLVER.MAX_ITER": "6"})
    inner = trainer._trainer

    def hang(model, inputs):
        if inner.iter == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    trainer.model.register_forward_pre_hook(hang)
    start = time.monotonic()
    with pytest.raises(SystemExit):
        trainer.train()
    assert time.monotonic() - start < 30
    content = last(tmp_path)
    assert content["iteration"] == 2
    assert content["trainer"]["iteration"] == 2
    assert content["sampler"]["runs"][0]["iterations"] == 3
    assert make(tmp_path, resume=True).start_iter == 3


def test_an_update_is_not_cut_short(tmp_path, registered_digits, monkeypatch):
    """Weights, momentum and schedule stay of one iteration."""
    monkeypatch.setattr("resnest_d2.engine.stopping.PATIENCE", 1)
    trainer = make(tmp_path, keys={"SOLVER.MAX_ITER": "6"})

    def take_long(optimizer, *args):
        if trainer.iter == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            until = time.monotonic() + 2.5
            while time.monotonic() < until:
                time.sleep(0.1)

    trainer.optimizer.register_step_post_hook(take_long)
    with pytest.raises(SystemExit):
        trainer.train()
    content = last(tmp_path)
    assert content["iteration"] == content["trainer"]["iteration"] == 3


def test_precise_bn_of_the_end_is_cut_short(tmp_path, registered_digits, monkeypatch):
    """The final checkpoint is there, with the statistics of training."""
    monkeypatch.setattr("resnest_d2.engine.stopping.PATIENCE", 1)
    keys = {"SOLVER.MAX_ITER": "2", "TEST.PRECISE_BN.ENABLED": "True"}
    trainer = make(tmp_path, keys={**keys, "TEST.PRECISE_BN.NUM_ITER": "2"})
    expected = {}

    def hang(model, inputs):
        if not torch.is_grad_enabled():
            norms = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
            expected.update(expected or norms)
            if expected is not norms and any(not norms[k].equal(v) for k, v in expected.items()):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)

    trainer.model.register_forward_pre_hook(hang)
    with pytest.raises(SystemExit):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    content = last(tmp_path)
    assert content["iteration"] == 1
    assert all(content["model"][key].equal(value) for key, value in expected.items())


@pytest.mark.parametrize("fails", [False, True])
def test_processes_of_loaders_end_with_the_training(tmp_path, registered_digits, fails):
    trainer = make(tmp_path, keys={"DATALOADER.NUM_WORKERS": "2"})
    if fails:
        trainer.register_hooks([EvalHook(2, lambda: 1 / 0)])
        with pytest.raises(ZeroDivisionError):
            trainer.train()
    else:
        trainer.train()
    for child in multiprocessing.active_children():  # as at the end of this process
        child.terminate()
        child.join(5)
    assert not multiprocessing.active_children()


def test_the_launchers_signals(monkeypatch):
    """It leaves handlers behind, and says by an exception of its own that it got a signal."""
    before = signal.getsignal(signal.SIGINT)

    def launch(config, entry):
        def run(*args):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise SignalException("stopped", signal.SIGTERM)

        return run

    monkeypatch.setattr("resnest_d2.processes.elastic_launch", launch)
    with pytest.raises(SystemExit) as raised:  # which ends `reproduce`, too
        start_processes(print, (), "cpu", num_processes=2)
    assert raised.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("when", ["in the last iteration", "in the evaluation"])
def test_a_signal_when_training_is_done(tmp_path, registered_digits, caplog, when):
    caplog.set_level("INFO")
    before = signal.getsignal(signal.SIGTERM)
    trainer = make(tmp_path, keys={"SOLVER.MAX_ITER": "3"})
    send = Send(signal.SIGTERM, "after")
    if when == "in the evaluation":
        send = EvalHook(0, lambda: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60))
    trainer.register_hooks([send])
    start = time.monotonic()
    with pytest.raises(SystemExit) as raised:
        trainer.train()
    assert time.monotonic() - start < 30
    assert raised.value.code == 128 + signal.SIGTERM
    assert "SIGTERM: training is done and saved, evaluation is cut short; --eval" in caplog.text
    assert last(tmp_path)["iteration"] == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_folder_in_use_is_refused(tmp_path, registered_digits):
    """By another process; a lock of this one would let it in."""
    code = (
        "from pathlib import Path; from resnest_d2.files import hold_folder; "
        f"held = hold_folder(Path({str(tmp_path)!r})); print(1, flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    settings = Settings.of(load_config(model_zoo.get_config_file("mask_resnest14_digits")))
    settings.output_dir = str(tmp_path)
    message = f"{tmp_path}: process {holder.pid} on .* is working in it; wait .* OUTPUT_DIR"
    refused = pytest.raises(InputError, match=message)
    with patch("resnest_d2.engine.launch.WAIT", 0.5), refused:
        hold_output(settings)
    holder.kill()
    holder.wait()
    assert hold_output(settings)  # it died with its process


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_a_signal_to_the_launcher(tmp_path, tiny_digits, launcher):
    """It hands Slurm's signal on; the processes save together."""
    folder = tmp_path / "out"
    keys = ("SOLVER.MAX_ITER", "500", "SOLVER.CHECKPOINT_PERIOD", "500")
    how = {"launcher": torchrun("--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1")}
    if launcher == "own":
        how = {"options": ["--num-processes", "2"]}
    training = Training(folder, tiny_digits, keys=keys, **how).wait_for("iter: 19 ")
    training.process.send_signal(signal.SIGUSR1)
    code = training.end(40)
    assert code == (138 if launcher == "own" else 1)
    assert last(folder)["iteration"] >= 19
    (run,) = last(folder)["sampler"]["runs"]
    assert run == {
        "iterations": last(folder)["iteration"] + 1,
        "world_size": 2,
        "batch_size": 1,
        "num_workers": 0,
    }


@pytest.mark.slow
def test_torchrun_starts_them_again(tmp_path, tiny_digits):
    """A worker is killed; without --resume on the command line they go on where they were."""
    folder = tmp_path / "out"
    keys = ("SOLVER.MAX_ITER", "40")
    launcher = torchrun("--max-restarts", "3")
    training = Training(folder, tiny_digits, launcher, keys=keys).wait_for("model_0000009.pth")
    time.sleep(1)
    os.kill(training.workers()[1], signal.SIGKILL)
    assert training.end() == 0, training.output()
    output = training.output()
    assert "going on from the last checkpoint" in output
    assert "by torchrun, restart 1, over gloo" in output
    starts = [int(n) for n in re.findall(r"Starting training from iteration (\d+)", output)]
    assert starts[0] == 0
    assert starts[-1] >= 10
    assert iterations(folder) == [19, 39]
    assert sum(run["iterations"] for run in last(folder)["sampler"]["runs"]) == 40


@pytest.mark.slow
def test_machines_come_and_go(tmp_path, tiny_digits, monkeypatch):
    """An elastic run: a second torchrun joins the first one, and is killed."""
    # Else PyTorch 2.14's first torchrun does not tell one that joins later where its store is.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3"]
    place += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "x"]
    launcher = (sys.executable, "-m", "torch.distributed.run", *place)
    launcher += ("--rdzv-conf", "last_call_timeout=2")
    folder, keys = tmp_path / "out", ("SOLVER.MAX_ITER", "90")
    first = Training(folder, tiny_digits, launcher, keys=keys).wait_for("model_0000009.pth")
    second = Training(folder, tiny_digits, launcher, keys=keys, log="second.log")
    first.wait_for("Started as 2 processes, 1 on this machine, by torchrun")
    first.wait_for("(?s)Started as 2 processes.*Saving checkpoint")
    os.killpg(second.process.pid, signal.SIGKILL)
    for pid in second.workers():
        os.kill(pid, signal.SIGKILL)
    assert first.end() == 0, first.output()
    runs = last(folder)["sampler"]["runs"]
    assert [run["world_size"] for run in runs] == [1, 2, 1]
    assert sum(run["iterations"] for run in runs) == 90
    starts = [int(n) for n in re.findall(r"Starting training from iteration (\d+)", first.output())]
    assert starts == sorted(starts)
    assert len(set(iterations(folder))) == len(iterations(folder))


@pytest.mark.slow
def test_a_new_run_in_a_used_folder_begins_anew(tmp_path, tiny_digits):
    """Torchrun's restarts aside, going on is for --resume."""
    folder = tmp_path / "out"
    for _ in range(2):
        training = Training(folder, tiny_digits, torchrun(), keys=("SOLVER.MAX_ITER", "2"))
        assert training.end() == 0
    assert training.output().count("Starting training from iteration 0") == 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_at_any_moment(tmp_path, tiny_digits, victim):
    """Then --resume goes on from a whole checkpoint, and no image is used twice in an epoch."""
    folder = tmp_path / "out"
    moments = random.Random(victim)
    keys = ("SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "3")
    reached = 0
    for kill in range(KILLS):
        options = ["--num-processes", "2", "--resume", "--keep-last", "2"]
        training = Training(folder, tiny_digits, options=options, keys=keys)
        training.wait_for("(?s)" + "Starting training from iteration .*" * (kill + 1))
        time.sleep(moments.uniform(0.1, 4))
        workers = training.workers()
        victims = {"worker": workers[:1], "workers": workers, "launcher": [training.process.pid]}
        for pid in victims[victim]:
            os.kill(pid, signal.SIGKILL)
        training.end()
        starts = re.findall(r"Starting training from iteration (\d+)", training.output())
        assert int(starts[-1]) >= reached
        reached = int(starts[-1])
    end = (*keys[:1], str(reached + 12), *keys[2:])
    training = Training(folder, tiny_digits, options=["--resume", "--num-processes", "2"], keys=end)
    assert training.end() == 0, training.output()
    content = last(folder)
    assert content["iteration"] == reached + 11
    runs = content["sampler"]["runs"]
    assert sum(run["iterations"] for run in runs) == reached + 12
    assert not list(folder.glob(".*.part"))
    assert len(set(iterations(folder))) == len(iterations(folder))


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


@pytest.fixture
def machines():
    """Two network namespaces with a cable between them: names and addresses."""
    if shutil.which("ip") is None:
        pytest.skip("there is no command ip")
    names = [f"resnest{os.getpid()}{end}" for end in "ab"]
    addresses = ["10.213.7.1", "10.213.7.2"]
    try:
        for name in names:
            if (made := ip("netns", "add", name)).returncode:
                pytest.skip(f"no network namespaces: {made.stderr.strip()}")
        cable = [name[-12:] for name in names]
        if (made := ip("link", "add", cable[0], "type", "veth", "peer", cable[1])).returncode:
            pytest.skip(f"no virtual cable: {made.stderr.strip()}")
        for name, end, address in zip(names, cable, addresses, strict=True):
            ip("link", "set", end, "netns", name)
            inside = ("-n", name)
            ip(*inside, "addr", "add", f"{address}/24", "dev", end)
            ip(*inside, "link", "set", end, "up")
            ip(*inside, "link", "set", "lo", "up")
        yield list(zip(names, addresses, cable, strict=True))
    finally:
        for name in names:
            ip("netns", "del", name)


@pytest.mark.slow
def test_two_machines(tmp_path, tiny_digits, machines):
    """Detectron2's options, over a network; the machines share a folder."""
    folder, first = tmp_path / "out", machines[0][1]
    trainings = []
    for rank, (name, _, cable) in enumerate(machines):
        inside = ("ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={cable}")
        keys = ("SOLVER.MAX_ITER", "4")
        launcher = (*inside, sys.executable)
        place = ["--num-machines", "2", "--machine-rank", str(rank)]
        options = [*place, "--dist-url", f"tcp://{first}:29411"]
        training = Training(folder, tiny_digits, launcher, options, keys, log=f"{rank}.log")
        trainings.append(training)
    for training in trainings:
        assert training.end() == 0, training.output()
    assert "Started as 2 processes, 1 on this machine, by" in trainings[0].output()
    assert last(folder)["sampler"]["runs"][0]["world_size"] == 2
