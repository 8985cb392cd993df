"""TensorBoard event files, read back: by the records themselves, and as TensorBoard does where it is installed."""

import struct
import sys

import pytest

from tinyres.analysis.tensorboard import event_writer

ROWS = [{"epoch": epoch, "lr": 0.1 / epoch, "train_loss": 1.0 / epoch, "train_accuracy": 0.9, "validation_loss": 2.0,
         "validation_accuracy": 0.5, "seconds": 1.5, "images_per_second": 100.0} for epoch in range(1, 6)]
TAGS = {"lr", "loss/train", "accuracy/train", "loss/validation", "accuracy/validation", "seconds", "images_per_second"}


@pytest.fixture
def records():
    """records(folder) -> the events of all its files, in the order of their names."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="pip install tensorboardX to run this test")

    def read(folder):
        events = []
        for path in sorted(folder.iterdir()):
            content, at = path.read_bytes(), 0
            while at < len(content):  # length (8 bytes), its checksum (4), the event, its checksum (4)
                size, = struct.unpack("<Q", content[at:at + 8])
                events.append(event_pb2.Event.FromString(content[at + 12:at + 12 + size]))
                at += size + 16
        return events

    return read


def scalars(events):
    """tag -> {epoch: value}"""
    found = {}
    for event in events:
        for value in event.summary.value:
            number = value.simple_value if value.HasField("simple_value") else value.tensor.float_val[0]
            found.setdefault(value.tag, {})[event.step] = number
    return found


def test_each_row_is_on_the_disk_when_it_is_written(records, tmp_path):
    writer = event_writer(tmp_path / "new" / "tensorboard")
    for count, row in enumerate(ROWS[:3], 1):
        writer.write(row)
        found = scalars(records(tmp_path / "new" / "tensorboard"))  # not closed yet: a kill loses nothing
        assert found.keys() == TAGS and all(list(steps) == list(range(1, count + 1)) for steps in found.values())
    assert found["loss/train"] == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3)}
    assert found["accuracy/validation"][2] == 0.5 and found["lr"][1] == pytest.approx(0.1)
    writer.close()


def test_a_run_that_goes_on_writes_a_file_of_its_own_and_says_what_to_drop(records, tmp_path):
    for number, (rows, purge) in enumerate([(ROWS[:4], None), (ROWS[2:], 3)], 1):
        writer = event_writer(tmp_path, purge)  # within one second, which names the files
        for row in rows:
            writer.write(row)
        writer.close()
        assert len(list(tmp_path.iterdir())) == number
    starts = [event for event in records(tmp_path) if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in starts] == [(3, 1)]


def test_tensorboard_shows_each_epoch_once(tmp_path):
    pytest.importorskip("tensorboardX", reason="pip install tensorboardX to run this test")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                      reason="pip install tensorboard to run this test")
    for rows, purge, loss in ((ROWS[:4], 1, 7.0), (ROWS[2:4], 3, 8.0)):
        writer = event_writer(tmp_path, purge)
        for row in rows:
            writer.write(row | {"train_loss": loss})
        writer.close()
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == TAGS
    assert [(event.step, event.value) for event in events.Scalars("loss/train")] == [(1, 7), (2, 7), (3, 8), (4, 8)]


def test_without_tensorboardx_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(ModuleNotFoundError, match=r'tensorboardX .*: pip install "tinyres\[tensorboard\]"'):
        event_writer(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
