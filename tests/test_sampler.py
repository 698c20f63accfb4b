"""The order of training images after a stop: none twice in an epoch, none left out."""

import itertools
from collections import Counter

import numpy as np
import pytest
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler

from resnest_d2.data.sampler import ResumableSampler, Run

SIZE = 23


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [
        {"number": i, "width": int(w), "height": int(h)}
        for i, (w, h) in enumerate(generator.integers(1, 9, (SIZE, 2)))
    ]


def loader(images, sampler, rank, run, grouped):
    """Detectron2's own, of one process of several."""
    sampler._rank, sampler._world_size = rank, run.world_size
    return build_detection_train_loader(
        images,
        mapper=lambda image: image,
        sampler=sampler,
        total_batch_size=run.batch_size,
        aspect_ratio_grouping=grouped,
        num_workers=run.num_workers,
    )


def make(images, grouped, earlier=()):
    sampler = ResumableSampler(images if grouped else None, SIZE, seed=3)
    sampler.earlier = list(earlier)
    return sampler


def trained(images, run, grouped, earlier=()):
    """The batches of each process."""
    return [
        [
            [image["number"] for image in batch]
            for batch in itertools.islice(
                loader(images, make(images, grouped, earlier), rank, run, grouped), run.iterations
            )
        ]
        for rank in range(run.world_size)
    ]


def flat(batches):
    return [number for process in batches for batch in process for number in batch]


@pytest.mark.parametrize("grouped", [True, False])
def test_without_a_stop_the_order_is_detectron2s(images, grouped):
    run = Run(iterations=30, world_size=1, batch_size=3, num_workers=0)
    plain = loader(images, TrainingSampler(SIZE, seed=3), 0, run, grouped)
    expected = [[i["number"] for i in b] for b in itertools.islice(plain, run.iterations)]
    assert trained(images, run, grouped) == [expected]


@pytest.mark.parametrize("grouped", [True, False])
def test_a_run_that_was_cut_goes_on_with_the_same_batches(images, grouped):
    (uncut,) = trained(images, Run(20, 1, 3, 0), grouped)
    for cut in (1, 7, 19):
        first, second = Run(cut, 1, 3, 0), Run(20 - cut, 1, 3, 0)
        (begun,), (rest,) = (
            trained(images, run, grouped, earlier)
            for run, earlier in ((first, []), (second, [first]))
        )
        assert begun + rest == uncut


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("worlds", [(1, 1, 1), (2, 2, 2), (2, 1, 2), (1, 3, 1)])
def test_no_image_twice_and_none_left_out(images, grouped, workers, worlds):
    """Three runs, stopped anywhere, with any numbers of processes, images and workers."""
    runs = [
        Run(iterations=n, world_size=w, batch_size=b, num_workers=workers)
        for n, w, b in zip((3, 4, 40), worlds, (2, 3, 1), strict=True)
    ]
    seen = Counter()
    for index, run in enumerate(runs):
        seen.update(flat(trained(images, run, grouped, runs[:index])))
    # Single images wait for nothing: the last run trains on all that were held back before.
    total = sum(r.iterations * r.world_size * r.batch_size for r in runs)
    assert sum(seen.values()) == total
    assert min(seen.values()) == total // SIZE
    assert max(seen.values()) <= total // SIZE + 1


def test_the_state(images, caplog):
    first, second = Run(5, 2, 3, 0), Run(2, 1, 3, 0)
    state = make(images, True, [first]).state_dict(second)
    sampler = ResumableSampler(None, SIZE)  # a random seed
    sampler.load_state_dict(state)
    assert (sampler._seed, sampler.earlier) == (3, [first, second])
    other = ResumableSampler(None, SIZE + 1)
    other.load_state_dict(state)
    assert other.earlier == []
    assert "The data have 24 images, those of the run that is resumed had 23" in caplog.text
