"""Processes that find each other, whoever starts them, and that are never alone unknowingly."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes_for_tests import (
    evaluate,
    fail,
    fail_in_the_first,
    take_steps,
    train_on_spoilt_proposals,
    write_rank,
)

from resnest_d2 import processes
from resnest_d2.processes import (
    ProcessError,
    join_processes,
    require_alone,
    start_processes,
)


def written(folder):
    return sorted(file.read_text() for file in folder.iterdir())


def test_processes_on_one_machine(tmp_path):
    number = 2
    start_processes(write_rank, (str(tmp_path),), "cpu", number)
    total = number * (number + 1) // 2
    assert written(tmp_path) == [f"{rank} {number} {rank} {total}" for rank in range(number)]


def test_an_error_of_the_first_process_reaches_all(tmp_path):
    start_processes(fail_in_the_first, (str(tmp_path),), "cpu", 2)
    assert written(tmp_path) == ["of 0", "of 0"]


@pytest.mark.parametrize(("named", "expected"), [({}, 1), ({"LOCAL_RANK": "0"}, 0)])
def test_a_launcher_that_names_no_local_rank(monkeypatch, named, expected):
    """The second of two machines with two GPUs each; its last process takes its last GPU."""
    group = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**group, **named}.items():
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(processes, "rendezvous", lambda address: iter([(None, 3, 4)]))
    monkeypatch.setattr(processes.dist, "init_process_group", lambda *args, **options: None)
    monkeypatch.setattr(processes.comm, "create_local_process_group", lambda number: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert join_processes("cuda")
    assert chosen == [expected]


def test_one_process_is_this_one(tmp_path):
    start_processes(tmp_path.joinpath("file").touch, (), "cpu")
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize("code", [3, -9])
def test_a_process_that_fails_ends_the_others(code):
    with pytest.raises(ProcessError) as raised:
        start_processes(fail, (1, code), "cpu", 2)
    assert raised.value.exit_code == (code if code > 0 else 128 - code)


def test_machines_need_an_address():
    with pytest.raises(ValueError, match="--dist-url must be tcp://HOST:PORT .*: auto"):
        start_processes(write_rank, ("",), "cpu", 1, 2)


@pytest.mark.parametrize("variable", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_processes_that_would_think_themselves_alone(monkeypatch, variable):
    require_alone()
    assert not join_processes("cpu")
    monkeypatch.setenv(variable, "2")
    for call in (require_alone, lambda: join_processes("cpu")):
        with pytest.raises(ValueError, match="started 2 processes that do not know of each other"):
            call()
    monkeypatch.delenv(variable)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="process 1 of 2 that torchrun started, .* alone"):
        require_alone()


SHARES = {"unequal": [[0], [1, 2]], "empty": [[0, 1, 2], []], "detector": [[0], [1]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one process with all images and two with a share leave behind, by the kind of step."""
    folder = tmp_path_factory.mktemp("steps")
    take_steps(str(folder), {kind: [[*a, *b]] for kind, (a, b) in SHARES.items()})
    start_processes(take_steps, (str(folder), SHARES), "cpu", 2)
    return folder


@pytest.mark.parametrize("kind", ["unequal", "empty"])
def test_synchronised_batch_norm_is_exact(folder, kind):
    """Outputs, gradients and statistics are those of one process with all the images."""
    compare(folder, kind, torch.cat)


def test_a_step_of_mask_rcnn_over_processes(folder):
    """One image a process; each loss is the sum over processes of its share."""
    compare(folder, "detector", sum)


def compare(folder, kind, join):
    expected = torch.load(folder / f"{kind}-1-0.pth")
    found = [torch.load(folder / f"{kind}-2-{rank}.pth") for rank in (0, 1)]
    assert found[0].keys() == expected.keys()
    assert any("running_var" in name for name in expected)
    greatest = max(v.abs().max().item() for k, v in expected.items() if k.startswith("grad"))
    for name, value in expected.items():
        if name.startswith("output"):
            torch.testing.assert_close(join([f[name] for f in found]), value, rtol=1e-4, atol=1e-4)
            continue
        # Some gradients are 0 but for rounding, such as that of a bias before a norm.
        scale = max(value.abs().max().item(), greatest / 100) if name.startswith("grad") else 1
        for one in found:
            difference = (one[name] - value).abs().max().item()
            assert difference <= 1e-4 * scale, (name, difference, scale)


@pytest.mark.slow
def test_evaluation_over_processes_gives_the_same(tmp_path, registered_digits, monkeypatch):
    """Three images: two processes have unequal numbers of them, and one of four has none."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(registered_digits))
    metrics = []
    for number in (1, 2, 4):
        folder = tmp_path / str(number)
        folder.mkdir()
        if number == 1:
            evaluate(str(folder))
        else:
            run = f"start_processes(evaluate, ({str(folder)!r},), 'cpu', {number})"
            run_in_tests(f"from processes_for_tests import evaluate\n{START}    {run}\n")
        metrics.append(json.loads((folder / "metrics.json").read_text()))
    assert 0 < metrics[0]["AP"] < 100
    assert metrics[0] == metrics[1] == metrics[2]


START = "from resnest_d2.processes import start_processes\nif __name__ == '__main__':\n"


def run_in_tests(code):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def train_in_two(folder, datasets, monkeypatch, stop=99, bad=(), resume=False):
    """The notes of both processes."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    args = (str(folder), stop, list(bad), resume)
    run = f"start_processes(train, {args}, 'cpu', 2)"
    run_in_tests(f"from processes_for_tests import train\n{START}    {run}")
    return [json.loads((folder / f"note-{rank}-{stop}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_over_a_kill_and_bad_batches(tmp_path, tiny_digits, monkeypatch):
    """Six images, two an iteration; killed after five iterations, of which four are saved.

    No image is used twice in an epoch and none left out. One process has no finite loss in two of
    the iterations: both leave the first one out, and both stop at the second.
    """
    begun = train_in_two(tmp_path, tiny_digits, monkeypatch, stop=5)
    rest = train_in_two(tmp_path, tiny_digits, monkeypatch, bad=[5, 8], resume=True)
    files = [{**b["files"], **r["files"]} for b, r in zip(begun, rest, strict=True)]
    assert [sorted(map(int, one)) for one in files] == [list(range(9))] * 2
    assert sorted(map(int, rest[0]["files"])) == list(range(4, 9))
    for epoch in range(3):
        iterations = range(3 * epoch, 3 * epoch + 3)
        seen = [file for one in files for i in iterations for file in one[str(i)]]
        assert len(seen) == len(set(seen)) == 6

    assert rest[0]["weights"] == rest[1]["weights"]
    assert rest[0]["error"] == rest[1]["error"]
    assert re.match(r"iteration 8 has no finite loss \(loss_cls nan\)", rest[0]["error"])
    reports = (tmp_path / "non_finite_losses.jsonl").read_text().splitlines()
    first, second = map(json.loads, reports)
    assert (first["iteration"], second["iteration"]) == (5, 8)
    for process, note in zip(second["processes"], rest, strict=True):
        assert process["files"] == note["files"]["8"]
        assert process["files"][0] in note["error"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000007.pth"


@pytest.mark.slow
def test_proposals_that_are_not_finite_while_others_wait(tmp_path, tiny_digits, monkeypatch):
    """The first process is in the heads' SyncBN then, and ends with the second one."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_digits))
    with pytest.raises(ProcessError):
        start_processes(train_on_spoilt_proposals, (str(tmp_path),), "cpu", 2)
    (line,) = (tmp_path / "non_finite_losses.jsonl").read_text().splitlines()
    report = json.loads(line)
    assert report["iteration"] == 2
    (process,) = report["processes"]
    assert process["process"] == 1
    assert process["losses"] == {"proposals": "nan"}
