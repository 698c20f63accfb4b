"""Processes that find each other, whoever starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes_for_tests import evaluate, fail, know, take_steps

from resnest_d2.engine.launch import once, start_processes


def start(work, *args):
    return start_processes(work, args, 2)


def test_processes_on_one_machine(tmp_path, monkeypatch):
    """They share its cores, which PyTorch would give to each; the first one reads for all."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert start(know, str(tmp_path)) == 0
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    assert found == [[rank, 2, rank, 3, threads, "read by 0, of 0"] for rank in (0, 1)]
    assert once(lambda: 3) == 3


def test_one_process_is_this_one(tmp_path):
    start_processes(tmp_path.joinpath("file").touch, ())
    assert (tmp_path / "file").exists()


def test_a_process_that_fails_ends_the_others():
    assert start(fail, 1) == 128 + 9


SHARES = {"unequal": [[0], [1, 2]], "empty": [[0, 1, 2], []]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one process with all images and two with a share leave behind."""
    folder = tmp_path_factory.mktemp("steps")
    take_steps(str(folder), {kind: [[*a, *b]] for kind, (a, b) in SHARES.items()})
    assert start(take_steps, str(folder), SHARES) == 0
    return folder


@pytest.mark.parametrize("kind", SHARES)
def test_synchronised_batch_norm_is_exact(folder, kind):
    """Outputs, gradients and statistics are those of one process with all the images."""
    expected = torch.load(folder / f"{kind}-1-0.pth")
    found = [torch.load(folder / f"{kind}-2-{rank}.pth") for rank in (0, 1)]
    assert found[0].keys() == expected.keys()
    assert any("running_var" in name for name in expected)
    greatest = max(v.abs().max().item() for k, v in expected.items() if k.startswith("grad"))
    for name, value in expected.items():
        if name.startswith("output"):
            joined = torch.cat([f[name] for f in found])
            torch.testing.assert_close(joined, value, rtol=1e-4, atol=1e-4)
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
            run_in_tests("evaluate", folder, number)
        metrics.append(json.loads((folder / "metrics.json").read_text()))
    assert 0 < metrics[0]["AP"] < 100
    assert metrics[0] == metrics[1] == metrics[2]


def run_in_tests(work, folder, number):
    code = f"""
from processes_for_tests import {work}
from resnest_d2.engine.launch import start_processes
if __name__ == "__main__":
    start_processes({work}, ({str(folder)!r},), {number})
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.slow
def test_two_processes_are_one_training(tmp_path, tiny_digits, monkeypatch):
    """Equal weights, other images; nothing is gathered but Detectron2's own losses."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_digits))
    run_in_tests("train", tmp_path, 2)
    notes = [json.loads((tmp_path / f"note-{rank}.json").read_text()) for rank in (0, 1)]
    assert notes[0]["weights"] == notes[1]["weights"]
    assert all(note["gathers"] == ["one"] * 6 for note in notes)
    seen = [note["files"] for note in notes]
    assert [len(files) for files in seen] == [6, 6]
    assert len({*seen[0][:3], *seen[1][:3]}) == 6  # an epoch of six images, once each
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 5
