"""``resnest-d2 check-data`` as a user runs it."""

import json
import shutil

import pytest
from commands import ROOT, run_command

NUCLEI = ROOT / "examples/nuclei"


@pytest.fixture
def nuclei(tmp_path):
    """A copy of the example that a test can damage."""
    shutil.copytree(NUCLEI, tmp_path / "nuclei")
    return tmp_path / "nuclei"


def check(folder, *options):
    files = ("--json", folder / "val.json", "--images", folder / "images")
    return run_command("check-data", *files, *options)


def test_a_good_data_set():
    result = check(NUCLEI)
    assert result.returncode == 0, result.stderr
    assert "| nucleus |           351 |        8 |" in result.stdout
    assert result.stdout.endswith("0 of 8 images cannot be read\n")


def test_images_that_cannot_be_read_are_all_named(nuclei):
    files = [nuclei / "images" / i["file_name"] for i in json.loads(val(nuclei))["images"][:2]]
    for file, length in zip(files, (5000, 0), strict=True):
        file.write_bytes(file.read_bytes()[:length])
    result = check(nuclei)
    assert result.returncode == 1
    assert all(f"{file} cannot be read as a picture: " in result.stdout for file in files)
    assert result.stdout.endswith("2 of 8 images cannot be read\n")


def test_everything_that_is_wrong_is_listed(nuclei):
    """All errors with their ids, and after them all pictures that cannot be read."""
    data = json.loads(val(nuclei))
    for annotation in data["annotations"][:30]:
        annotation["bbox"] = annotation["bbox"][:3]
    data["images"][7]["width"] += 50
    broken = nuclei / "images" / data["images"][0]["file_name"]
    broken.write_bytes(b"<html>")
    (nuclei / "val.json").write_text(json.dumps(data))
    result = check(nuclei, "--output", nuclei / "repaired.json")
    assert result.returncode == 2, result.stderr
    lines = result.stdout.splitlines()
    for start in (
        f"{nuclei / 'val.json'}: 31 errors in 30 of 351 annotations",
        *(f"annotation {a['id']}: 'bbox' must be four numbers" for a in data["annotations"][:30]),
        f"image {data['images'][7]['id']} is said to be",
        f"{broken} cannot be read as a picture: ",
    ):
        assert sum(line.startswith(start) for line in lines) == 1
    assert not (nuclei / "repaired.json").exists()


def val(folder):
    return (folder / "val.json").read_text()


def test_what_was_repaired_is_written(nuclei):
    data = json.loads(val(nuclei))
    for annotation in data["annotations"]:
        annotation["id"] = "7"
        annotation["image_id"] = str(annotation["image_id"])
        del annotation["bbox"]
    (nuclei / "val.json").write_text(json.dumps(data))
    refused = check(nuclei, "--output", nuclei / "val.json")
    assert (refused.returncode, json.loads(val(nuclei))) == (2, data)
    assert "val.json is --json's file" in refused.stderr
    result = check(nuclei, "--output", nuclei / "repaired.json")
    assert result.returncode == 0, result.stderr
    assert "351 boxes were computed from their masks" in result.stdout
    names = {
        image["file_name"] for image in json.loads((nuclei / "repaired.json").read_text())["images"]
    }
    assert names == {image["file_name"] for image in data["images"]}  # relative to the folder
    (nuclei / "repaired.json").rename(nuclei / "val.json")
    result = check(nuclei)
    assert "WARNING" not in result.stdout
    assert "| nucleus |           351 |        8 |" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "{tmp}/folder.json"], "cannot write {tmp}/folder.json: it is a folder"),
        (["--images", "absent"], "there is no folder of images absent"),
    ],
)
def test_wrong_options_end_in_one_line(tmp_path, options, message):
    """Before any picture is read."""
    (tmp_path / "folder.json").mkdir()
    result = check(NUCLEI, *(option.replace("{tmp}", str(tmp_path)) for option in options))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert message.replace("{tmp}", str(tmp_path)) in line
