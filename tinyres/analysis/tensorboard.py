"""TensorBoard event files of a run, written by tensorboardX (the extra "tensorboard"): its columns, a value an epoch.

See them with `tensorboard --logdir runs`, where TensorBoard is installed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyres.files import PathLike


class EventWriter:
    """Writes rows of a log as scalars; each is on the disk when `write` returns. Made by event_writer."""

    def __init__(self, events: Any):
        self._events = events

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row at its epoch: loss/train, accuracy/validation and so on; lr, seconds ... under their own names.

        Raises OSError when the disk is full.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in row.items():
            if name != "epoch":
                summary = scalar(_tag(name), float(value))
                self._events.write_event(Event(wall_time=time.time(), step=int(row["epoch"]), summary=summary))
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def event_writer(folder: PathLike, purge_epoch: int | None = None) -> EventWriter:
    """A writer into a new event file in `folder`, which is made if it is not there; the older files stay.

    purge_epoch: for a run that goes on, the first epoch that it trains again. TensorBoard then drops what the older
    files say about that epoch and later ones. Raises ModuleNotFoundError without tensorboardX.
    """
    try:
        # Not SummaryWriter: it hands events to a thread, where those of the last seconds are lost in a kill, and where
        # nobody hears of a full disk.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
    except ImportError as error:
        raise ModuleNotFoundError(f"TensorBoard event files need tensorboardX ({error}): "
                                  'pip install "tinyres[tensorboard]"', name="tensorboardX") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A name is made of the second and the host; without the number, a run that goes on at once would overwrite a file.
    number = sum(1 for _ in folder.glob("events.out.tfevents.*"))
    events = EventsWriter(str(folder / "events"), f".{number:04d}")
    if purge_epoch is not None:
        start = SessionLog(status=SessionLog.START)
        events.write_event(Event(wall_time=time.time(), step=purge_epoch, session_log=start))
        events.flush()
    return EventWriter(events)


def _tag(column: str) -> str:
    """train_loss -> loss/train: TensorBoard shows in one group what has the first part in common."""
    part, _, quantity = column.partition("_")
    return f"{quantity}/{part}" if part in ("train", "validation") else column
