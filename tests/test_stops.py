"""Trainings that are stopped, killed and started again, as commands."""

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import ClassVar

import pytest
import short_training
import torch
from commands import ROOT
from detectron2.data import build_detection_train_loader
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from short_training import At, make

from resnest_d2.commands import train
from resnest_d2.engine import Trainer, launch
from resnest_d2.files import hold_folder

# The command, where a checkpoint takes until the file "go" is beside its folder.
SLOW = """
import os, runpy, sys, time, torch
save, go = torch.save, sys.argv.pop(1)
def slow(*args, **options):
    print("saving slowly", flush=True)
    while not os.path.exists(go):
        time.sleep(0.05)
    save(*args, **options)
torch.save = slow
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


LIMIT = 400  # seconds that nothing takes, however busy the machine is


def wait_until(is_so):
    until = time.monotonic() + LIMIT
    while not (found := is_so()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


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
        config = ROOT / "configs/mask_resnest14_digits.yaml"
        command = [*launcher, ROOT / "tools/train_net.py", *options, "--config-file", config]
        self.process = subprocess.Popen(
            [*command, *short_training.options(SHORT), "OUTPUT_DIR", folder, *keys],
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            start_new_session=True,
        )
        self.started.append(self)

    def wait_for(self, text):
        """Wait until the command has said something since it was started."""

        def is_said():
            assert self.process.poll() is None, self.output()
            return re.search(text, self.output())

        wait_until(is_said)
        return self

    def wait_for_checkpoint(self, iteration):
        """Wait until there is a checkpoint of this iteration, or of a later one."""
        tag = self.folder / "last_checkpoint"
        name = f"model_{iteration:07d}.pth"
        wait_until(lambda: tag.is_file() and tag.read_text() >= name)
        return self

    def output(self):
        return self.log.read_text()

    def end(self):
        """The exit code."""
        return self.process.wait(LIMIT)

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


def last(folder):
    return torch.load(folder / (folder / "last_checkpoint").read_text(), weights_only=True)


def torchrun(*options, number=2):
    run = "torch.distributed.run"
    return (sys.executable, "-m", run, "--nproc_per_node", str(number), *options)


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


SHORT = {"SOLVER.CHECKPOINT_PERIOD": "5"}
LONG = ("SOLVER.MAX_ITER", "5000", "DATALOADER.NUM_WORKERS", "2")


def test_a_signal_while_a_checkpoint_takes_long(tmp_path, registered_digits):
    """The process and its loaders get it twice, as launchers send it; the run then goes on."""
    folder, go = tmp_path / "out", tmp_path / "go"
    launcher = (sys.executable, "-c", SLOW, go)
    training = Training(folder, registered_digits, launcher, keys=LONG).wait_for("saving slowly")
    for _ in range(2):
        os.killpg(training.process.pid, signal.SIGTERM)
    go.touch()
    assert training.end() == 128 + signal.SIGTERM, training.output()
    stopped = "SIGTERM: training stopped after iteration 4; the same command with --resume goes on"
    assert stopped in training.output()
    assert "Traceback" not in training.output()
    assert last(folder)["iteration"] == 4
    assert not list(folder.glob(".*.part"))
    assert make(folder, resume=True, keys={"SOLVER.MAX_ITER": "5000"}).start_iter == 5


@pytest.fixture
def heeded():
    """Signals do what they do in a terminal, also if nohup or a shell's & has started the tests."""
    numbers = (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class Send(HookBase):
    """Sends this process signals in an iteration, before or after the weights are updated."""

    def __init__(self, number, when, times=1):
        self.number, self.when, self.times = number, when, times

    def _send(self, when):
        if self.when == when and self.trainer.iter == 2:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    def before_step(self):
        self._send("before")

    def after_step(self):
        self._send("after")


@pytest.mark.parametrize(
    ("number", "when"),
    [(signal.SIGINT, "before"), (signal.SIGUSR1, "after"), (signal.SIGHUP, "before")],
)
def test_other_signals_and_moments(tmp_path, registered_digits, heeded, number, when):
    before = signal.getsignal(number)
    trainer = make(tmp_path, keys={"SOLVER.MAX_ITER": "6"})
    trainer.register_hooks([Send(number, when)])
    with pytest.raises(SystemExit) as raised:
        trainer.train()
    assert raised.value.code == 128 + number
    assert last(tmp_path)["iteration"] == (2 if when == "before" else 3)
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_leaves_at_once(tmp_path, registered_digits, heeded, monkeypatch):
    monkeypatch.setattr("resnest_d2.engine.hooks.AGAIN", 0)
    trainer = make(tmp_path, keys={"SOLVER.MAX_ITER": "6"})
    trainer.register_hooks([Send(signal.SIGINT, "before", times=2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


EVALUATED = {"SOLVER.MAX_ITER": "4", "TEST.EVAL_PERIOD": "1", "DATASETS.TEST": "('digits_val',)"}


def test_a_signal_in_an_evaluation(tmp_path, registered_digits):
    """Which ends at once: what was trained before it is saved."""
    trainer = make(tmp_path, keys=EVALUATED)
    seen = []

    def send(model, inputs):
        if not model.training:
            seen.append(trainer.iter)
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.model.register_forward_pre_hook(send)
    with pytest.raises(SystemExit) as raised:
        trainer.train()
    assert raised.value.code == 128 + signal.SIGTERM
    assert seen == [0]
    assert last(tmp_path)["iteration"] == 0
    assert make(tmp_path, resume=True, keys=EVALUATED).start_iter == 1


class Own(Trainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg)


def signal_loaders():
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGINT)


@pytest.mark.parametrize(("kind", "fails"), [(Own, False), (Trainer, True)])
def test_loaders_ignore_signals_and_end_with_the_training(
    tmp_path, registered_digits, heeded, kind, fails
):
    trainer = make(tmp_path, keys={"DATALOADER.NUM_WORKERS": "2"}, kind=kind)
    trainer.register_hooks([At(0, signal_loaders), EvalHook(2, lambda: 1 / 0 if fails else {})])
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        trainer.train()
    assert trainer.iter == (1 if fails else 4)
    for child in multiprocessing.active_children():  # as at the end of this process
        child.terminate()
        child.join(5)
    assert not multiprocessing.active_children()


def test_a_signal_before_processes_are_started(monkeypatch):
    """It ends the launcher."""
    monkeypatch.setattr(launch, "launch", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as raised:
        launch.start_processes(print, (), 2)
    assert raised.value.code == 128 + signal.SIGTERM


def test_a_second_training_in_a_folder(tmp_path, registered_digits, monkeypatch, capsys):
    """Is refused while the first one runs, and removes no files but torn checkpoints."""
    monkeypatch.setattr("resnest_d2.engine.launch.WAIT", 0)
    folder = tmp_path / "out"
    folder.mkdir()
    torn = [folder / f".{name}.part" for name in ("model_0000004.pth.0a1b2c3d", "video.mp4")]
    for file in torn:
        file.touch()
    config = str(ROOT / "configs/mask_resnest14_digits.yaml")
    opts = short_training.options({"SOLVER.MAX_ITER": "1"})
    command = ["--config-file", config, *opts, "OUTPUT_DIR", str(folder)]
    with hold_folder(folder), pytest.raises(SystemExit) as raised:
        train.main(command)
    assert raised.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: another training writes to {folder}\n")
    assert all(file.exists() for file in torn)
    assert train.main(command) == 0
    assert [file.exists() for file in torn] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_a_signal_to_the_launcher(tmp_path, tiny_digits, launcher):
    """It hands the signal on; the processes save together."""
    folder = tmp_path / "out"
    how = {"launcher": torchrun("--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1")}
    if launcher == "own":
        how = {"options": ["--num-processes", "2"]}
    training = Training(folder, tiny_digits, keys=LONG, **how).wait_for_checkpoint(4)
    number = signal.SIGTERM if launcher == "own" else signal.SIGUSR1
    training.process.send_signal(number)
    assert training.end() == (128 + number if launcher == "own" else 1)
    assert "training stopped after iteration" in training.output()
    assert "Exception during training" not in training.output()


@pytest.mark.slow
def test_a_signal_to_all_of_two_processes(tmp_path, tiny_digits, heeded):
    """And to their loaders, as of a terminal."""
    folder, options = tmp_path / "out", ["--num-processes", "2"]
    training = Training(folder, tiny_digits, options=options, keys=LONG).wait_for_checkpoint(4)
    os.killpg(training.process.pid, signal.SIGINT)
    assert training.end() in (128 + signal.SIGINT, 143), training.output()
    assert "training stopped after iteration" in training.output()
    assert "Traceback" not in training.output()


@pytest.mark.slow
@pytest.mark.parametrize("agents", [1, 2])
def test_torchrun_starts_them_again(tmp_path, tiny_digits, monkeypatch, agents):
    """A worker is killed; without --resume on the command line they go on where they were."""
    folder, keys, restarts = tmp_path / "out", ("SOLVER.MAX_ITER", "40"), ("--max-restarts", "3")
    launchers = [torchrun(*restarts)]
    if agents == 2:  # as of two machines, which count their restarts on their own
        monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # as docs/train.md says
        place = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}")
        launchers = 2 * [torchrun(*restarts, "--nnodes", "2", "--rdzv-id", "1", *place, number=1)]
    trainings = [
        Training(folder, tiny_digits, launcher, keys=keys, log=f"{number}.log")
        for number, launcher in enumerate(launchers)
    ]
    trainings[0].wait_for_checkpoint(9)
    os.kill(trainings[-1].workers()[-1], signal.SIGKILL)
    for training in trainings:
        assert training.end() == 0, training.output()
    log = (folder / "log.txt").read_text()
    starts = [int(n) for n in re.findall(r"training from iteration (\d+)", log)]
    assert starts[0] == 0
    assert starts[-1] >= 10
    assert last(folder)["iteration"] == 39


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "seconds"), [("launcher", 0.5), ("worker", 1.5), ("both", 3)])
def test_killed_at_any_moment(tmp_path, tiny_digits, heeded, victim, seconds):
    """Then --resume goes on from a whole checkpoint, to the end."""
    folder, options = tmp_path / "out", ["--num-processes", "2", "--resume", "--keep-last", "2"]
    keys = ("SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.MAX_ITER")
    training = Training(folder, tiny_digits, options=options, keys=(*keys, "100000"))
    training.wait_for_checkpoint(2)
    time.sleep(seconds)
    workers = training.workers()
    victims = {"worker": workers[:1], "both": workers, "launcher": [training.process.pid]}
    for pid in victims[victim]:
        os.kill(pid, signal.SIGKILL)
    training.end()
    hold_folder(folder, LIMIT).close()  # workers without their launcher save and end
    reached = last(folder)["iteration"] + 1
    training = Training(folder, tiny_digits, options=options, keys=(*keys, str(reached + 12)))
    assert training.end() == 0, training.output()
    assert f"Starting training from iteration {reached}" in (folder / "log.txt").read_text()
    assert last(folder)["iteration"] == reached + 11
    assert not list(folder.glob(".model_*.part"))


@pytest.mark.slow
def test_two_machines(tmp_path, tiny_digits):
    """Detectron2's options; the machines share a folder."""
    folder = tmp_path / "out"
    place = f"tcp://localhost:{free_port()}"
    trainings = []
    for rank in "01":
        options = ["--num-machines", "2", "--machine-rank", rank, "--dist-url", place]
        keys = ("SOLVER.MAX_ITER", "4")
        training = Training(folder, tiny_digits, options=options, keys=keys, log=f"{rank}.log")
        trainings.append(training)
    for training in trainings:
        assert training.end() == 0, training.output()
    assert last(folder)["iteration"] == 3
    assert "Rank of current process: 0. World size: 2" in (folder / "log.txt").read_text()
