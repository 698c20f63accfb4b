"""Trainings that are stopped, killed and started again, as commands."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import ClassVar

import pytest
import torch
from commands import ROOT
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from short_training import make

from resnest_d2.config import FileError
from resnest_d2.engine import launch
from resnest_d2.files import hold_folder

# How often a training is killed; docs/reliability.md has figures of 7 for each victim.
KILLS = int(os.getenv("KILLS", "1"))
VICTIMS = ["launcher", "worker", "workers"][: 1 if KILLS == 1 else 3]
# The command, where a checkpoint takes some seconds.
SLOW = """
import runpy, sys, time, torch
save = torch.save
def slow(*args, **options):
    print("saving slowly", flush=True)
    time.sleep({seconds})
    save(*args, **options)
torch.save = slow
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


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


LONG = ("SOLVER.MAX_ITER", "500", "SOLVER.CHECKPOINT_PERIOD", "500", "DATALOADER.NUM_WORKERS", "2")


def test_a_signal_saves_and_stops(tmp_path, tiny_digits):
    """Sent twice to the process and its loaders, as launchers do; which then goes on."""
    folder, number = tmp_path / "out", signal.SIGTERM
    training = Training(folder, tiny_digits, keys=LONG).wait_for("iter: 19 ")
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


@pytest.mark.parametrize(
    ("number", "seconds"),
    [
        (signal.SIGTERM, 5),
        pytest.param(signal.SIGINT, 20, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 40, marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_a_checkpoint_takes_long(tmp_path, tiny_digits, heeded, number, seconds):
    """The whole group gets it, as from a terminal or a batch system."""
    folder, launcher = tmp_path / "out", (sys.executable, "-c", SLOW.format(seconds=seconds))
    keys = (*LONG, "SOLVER.CHECKPOINT_PERIOD", "5")
    training = Training(folder, tiny_digits, launcher, keys=keys).wait_for("saving slowly")
    time.sleep(1)
    os.killpg(training.process.pid, number)
    assert training.end(seconds + 60) == 128 + number, training.output()
    assert "Traceback" not in training.output()
    assert last(folder)["iteration"] == 4
    assert not list(folder.glob(".*.part"))


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

    def __init__(self, number, when, pauses=(0.1,)):
        self.number, self.when, self.pauses = number, when, pauses

    def _send(self, when):
        if self.when == when and self.trainer.iter == 2:
            for pause in self.pauses:
                os.kill(os.getpid(), self.number)
                time.sleep(pause)

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


def test_a_second_ctrl_c_leaves_at_once(tmp_path, registered_digits, heeded):
    trainer = make(tmp_path, keys={"SOLVER.MAX_ITER": "6"})
    trainer.register_hooks([Send(signal.SIGINT, "before", (1.2, 0.1))])
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


def test_no_evaluation_follows_a_signal_in_the_last_iteration(tmp_path, registered_digits, caplog):
    caplog.set_level("INFO")
    trainer = make(tmp_path, keys={"SOLVER.MAX_ITER": "3"})
    trainer.register_hooks([Send(signal.SIGTERM, "before"), EvalHook(0, lambda: 1 / 0)])
    with pytest.raises(SystemExit) as raised:
        trainer.train()
    assert raised.value.code == 128 + signal.SIGTERM
    assert "SIGTERM: training stopped after iteration 2" in caplog.text
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_signals_in_the_evaluation_at_the_end_do_what_they_did_before(tmp_path, registered_digits):
    class Ended(Exception):
        pass

    def end(*_):
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        trainer = make(tmp_path)
        trainer.register_hooks([EvalHook(0, lambda: os.kill(os.getpid(), signal.SIGTERM))])
        with pytest.raises(Ended):
            trainer.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert last(tmp_path)["iteration"] == 3


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


def test_a_signal_before_processes_are_started_ends_the_launcher(monkeypatch):
    def begin(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("resnest_d2.engine.launch.launch", begin)
    with pytest.raises(SystemExit) as raised:
        launch.start_processes(print, (), 2)
    assert raised.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_folder_in_use_is_refused(tmp_path):
    """By another process and by this one; the hold ends with the process or the file."""
    code = (
        "from pathlib import Path; from resnest_d2.files import hold_folder; "
        f"held = hold_folder(Path({str(tmp_path)!r})); print(1, flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    with pytest.raises(FileError, match=f"another training writes to {tmp_path}"):
        hold_folder(tmp_path, 0.3)
    holder.kill()
    holder.wait()
    with hold_folder(tmp_path), pytest.raises(FileError, match="another training writes to"):
        hold_folder(tmp_path)
    hold_folder(tmp_path).close()


def test_a_second_training_in_a_folder(tmp_path, tiny_digits):
    """Is refused while the first one runs, and removes no files but those that were torn."""
    folder = tmp_path / "out"
    folder.mkdir()
    torn = [folder / name for name in (".model_0000004.pth.0a1b2c3d.part", ".video.mp4.part")]
    for file in torn:
        file.touch()
    with hold_folder(folder):
        training = Training(folder, tiny_digits)
        assert training.end() == 2
    assert f"error: another training writes to {folder}" in training.output()
    assert "Traceback" not in training.output()
    assert all(file.exists() for file in torn)
    training = Training(folder, tiny_digits, keys=("SOLVER.MAX_ITER", "1"))
    assert training.end() == 0, training.output()
    assert [file.exists() for file in torn] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_a_signal_to_the_launcher(tmp_path, tiny_digits, launcher):
    """It hands the signal on; the processes save together."""
    folder = tmp_path / "out"
    how = {"launcher": torchrun("--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1")}
    if launcher == "own":
        how = {"options": ["--num-processes", "2"]}
    training = Training(folder, tiny_digits, keys=LONG, **how).wait_for("iter: 19 ")
    number = signal.SIGTERM if launcher == "own" else signal.SIGUSR1
    training.process.send_signal(number)
    assert training.end(60) == (128 + number if launcher == "own" else 1)
    assert last(folder)["iteration"] >= 19
    assert "Exception during training" not in training.output()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_of_two_processes(tmp_path, tiny_digits, heeded, number):
    """And to their loaders, as of a terminal; while a checkpoint takes long."""
    folder, launcher = tmp_path / "out", (sys.executable, "-c", SLOW.format(seconds=8))
    options = ["--num-processes", "2"]
    training = Training(folder, tiny_digits, launcher, options, LONG).wait_for("iter: 19 ")
    os.killpg(training.process.pid, number)
    assert training.end(90) in (128 + number, 143), training.output()
    assert last(folder)["iteration"] >= 19
    assert "Traceback" not in training.output()


@pytest.mark.slow
def test_torchrun_starts_them_again(tmp_path, tiny_digits):
    """A worker is killed; without --resume on the command line they go on where they were."""
    folder = tmp_path / "out"
    keys = ("SOLVER.MAX_ITER", "40")
    launcher = torchrun("--max-restarts", "3")
    training = Training(folder, tiny_digits, launcher, keys=keys).wait_for("model_0000009.pth")
    time.sleep(1)
    os.kill(training.workers()[1], signal.SIGKILL)
    assert training.end(240) == 0, training.output()
    starts = [int(n) for n in re.findall(r"training from iteration (\d+)", training.output())]
    assert starts[0] == 0
    assert starts[-1] >= 10
    assert last(folder)["iteration"] == 39
    # Where the others fail before they are killed, Detectron2 writes what it had by then.
    assert iterations(folder)[-2:] == [19, 39]


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_at_any_moment(tmp_path, tiny_digits, victim):
    """Then --resume goes on from a whole checkpoint, to the end."""
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
    assert last(folder)["iteration"] == reached + 11
    assert not list(folder.glob(".*.part"))


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
    assert last(folder)["iteration"] == 3
    assert "Rank of current process: 0. World size: 2" in (folder / "log.txt").read_text()
