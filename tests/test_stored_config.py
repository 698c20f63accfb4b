"""A checkpoint holds its config: it counts alone, and an explicit file counts over it."""

import pytest
import torch
from detectron2.config import get_cfg

from resnest_d2 import model_zoo
from resnest_d2.config import ConfigError, InputError
from resnest_d2.config.load import load_config
from resnest_d2.weights import open_weights
from resnest_d2.weights.stored_config import config_text, config_to_use, describe_changes

DIGITS = model_zoo.get_config_file("mask_resnest14_digits")
# Other than the file's.
OTHER = [
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]"),
    *("INPUT.MIN_SIZE_TEST", "96", "TEST.DETECTIONS_PER_IMAGE", "7"),
]


def save(file, text):
    torch.save({"model": {"a": torch.zeros(1)}, "config": text}, file)
    return open_weights(file)


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of a run with other settings than the file's."""
    machine = ["OUTPUT_DIR", "/elsewhere", "MODEL.DEVICE", "cuda:3", "MODEL.WEIGHTS", "first.pth"]
    return save(tmp_path / "trained.pth", config_text(load_config(DIGITS, [*OTHER, *machine])))


def of_interest(cfg):
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES[0]
    return sizes, cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.DETECTIONS_PER_IMAGE


def test_without_a_file_the_checkpoints_own_counts(trained, caplog):
    cfg = config_to_use("", [], trained)
    assert of_interest(cfg) == ([8], 96, 7)
    # What is of another machine is not taken over.
    assert (cfg.OUTPUT_DIR, cfg.MODEL.DEVICE) == ("./output", get_cfg().MODEL.DEVICE)
    assert cfg.MODEL.WEIGHTS == trained.name
    assert not caplog.messages


def test_an_explicit_file_counts_and_one_warning_lists_what_differs(trained, caplog):
    cfg = config_to_use(DIGITS, [], trained)
    assert cfg == load_config(DIGITS)
    (message,) = caplog.messages
    assert message.startswith(f"{trained.name} was trained with other settings than those of ")
    for part in (
        "MODEL.ANCHOR_GENERATOR.SIZES [[8], [16], [32], [64], [128]] -> [[16], [32], [64], ",
        "INPUT.MIN_SIZE_TEST 96 -> 128",
        "TEST.DETECTIONS_PER_IMAGE 7 -> 20",
    ):
        assert part in message
    assert not any(key in message for key in ("SOLVER", "OUTPUT_DIR", "MODEL.WEIGHTS", "DEVICE"))
    caplog.clear()
    config_to_use(DIGITS, OTHER, trained)  # the same settings: nothing to say
    assert not caplog.messages


def test_an_option_counts_over_both(trained, caplog):
    options = [*("INPUT.MIN_SIZE_TEST", "64", "OUTPUT_DIR", "o"), *("MODEL.DEVICE", "cpu")]
    for file in ("", DIGITS):
        cfg = config_to_use(file, [*options, "MODEL.WEIGHTS", "mine.pth"], trained)
        assert (cfg.INPUT.MIN_SIZE_TEST, cfg.OUTPUT_DIR, cfg.MODEL.DEVICE) == (64, "o", "cpu")
        assert cfg.MODEL.WEIGHTS == "mine.pth"
    assert "INPUT.MIN_SIZE_TEST" not in caplog.text


def test_without_a_config_anywhere(tmp_path):
    other = save(tmp_path / "x.pth", "configs/mine.yaml")
    with pytest.raises(InputError, match="--config-file is needed, .*x.pth holds no config"):
        config_to_use("", [], other)
    assert config_to_use(DIGITS, [], other) == load_config(DIGITS)
    with pytest.raises(InputError, match="--config-file is needed, because no weights are given"):
        config_to_use("", [], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "MODEL: !!python/object/apply:os.system ['touch ran']",
            "could not determine a constructor for the tag",
        ),
        ("MODEL: {}\nmodel: {_target_: os.system, command: touch ran}", "config key: model"),
        ("MODEL: {}\n_BASE_: /etc/passwd", "key '_BASE_' can only be used in files"),
        ("MODEL: [", "while parsing a flow node"),
        ("MODEL: &x {RESNETS: *x}", "nested without end"),
        ("MODEL: {RESNETS: {RADUX: 2}}", "MODEL.RESNETS.RADUX"),
    ],
)
def test_a_strangers_config_is_not_run(text, message, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    strange = save("strange.pth", text)
    with pytest.raises(ConfigError) as error:
        config_to_use("", [], strange)
    assert str(error.value).startswith("the config in strange.pth")
    assert message in str(error.value)
    # Beside a file it is not needed.
    assert config_to_use(DIGITS, [], strange) == load_config(DIGITS)
    is_unreadable = message.startswith(("could not", "while parsing", "nested"))
    assert ("Settings are not compared" in caplog.text) == is_unreadable
    assert not (tmp_path / "ran").exists()


def test_changes_between_two_runs(caplog):
    """A text that cannot be read, of another version's, is no reason not to resume."""
    before, after = (config_text(load_config(DIGITS, o)) for o in ([], ["SOLVER.BASE_LR", "0.5"]))
    assert describe_changes(before, after) == {"SOLVER.BASE_LR": "0.12 -> 0.5"}
    assert describe_changes(before, before) == describe_changes("", after) == {}
    assert describe_changes(before + "\nNEW: 1\n", before) == {"NEW": "1 -> None"}
    assert describe_changes("MODEL: [", after) == describe_changes("text", after) == {}
    assert "Settings are not compared: the stored config: " in caplog.text
