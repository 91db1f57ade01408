import json

import pytest

from agentvision.errors import RunError
from agentvision.train.checkpoint import Checkpoints


def writer(text):
    def write(folder):
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(text)

    return write


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def test_the_newest_comes_back_with_its_state(checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(step, {"cursor": step * 10}, writer(str(step)))
    found = checkpoints.newest()
    assert found.step == 3 and found.state == {"cursor": 30}
    assert (found.model / "weights").read_text() == "3"


def test_older_ones_are_pruned_only_to_the_number_kept(checkpoints):
    for step in range(5):
        checkpoints.save(step, {}, writer(""))
    assert sorted(p.name for p in checkpoints.directory.iterdir()) == ["step-000003", "step-000004"]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "no checksums", "rubbish state"])
def test_a_corrupt_newest_is_set_aside_and_the_one_before_is_used(checkpoints, damage):
    checkpoints.save(1, {}, writer("one"))
    path = checkpoints.save(2, {}, writer("two"))
    match damage:
        case "flip":
            (path / "model" / "weights").write_text("twO")
        case "cut":
            (path / "model" / "weights").write_text("tw")
        case "missing":
            (path / "model" / "weights").unlink()
        case "no checksums":
            (path / "checksums.json").unlink()
        case "rubbish state":
            (path / "state.json").write_text("{")
    assert checkpoints.newest().step == 1
    assert not path.exists() and path.with_suffix(".corrupt").is_dir()


def test_a_write_that_fails_leaves_what_was_there(checkpoints):
    checkpoints.save(1, {}, writer("one"))

    def full_disk(folder):
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"No space left.*last whole checkpoint is step-000001"):
        checkpoints.save(2, {}, full_disk)
    assert [p.name for p in checkpoints.directory.iterdir()] == ["step-000001"]
    assert checkpoints.newest().step == 1


def test_a_process_killed_while_writing_leaves_nothing_that_counts(checkpoints):
    checkpoints.save(1, {}, writer("one"))
    part = checkpoints.directory / "step-000002.part"
    part.mkdir()
    (part / "state.json").write_text("{}")
    assert checkpoints.newest().step == 1
    checkpoints.save(2, {}, writer("two"))
    assert checkpoints.newest().step == 2


def test_the_same_step_can_be_saved_again_and_a_kill_between_the_renames_loses_nothing(checkpoints):
    checkpoints.save(1, {"try": 1}, writer("one"))
    path = checkpoints.save(1, {"try": 2}, writer("two"))
    assert checkpoints.newest().state == {"try": 2}
    path.rename(path.with_suffix(".old"))  # as if killed before the second rename
    assert checkpoints.newest().state == {"try": 2}


def test_no_checkpoint_is_none(checkpoints):
    assert checkpoints.newest() is None


def test_the_state_is_readable_json(checkpoints):
    path = checkpoints.save(7, {"cursor": 1}, writer(""))
    assert json.loads((path / "state.json").read_text()) == {"cursor": 1}
