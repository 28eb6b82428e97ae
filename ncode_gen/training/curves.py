"""Curves and pictures for TensorBoard, written at once, so that a full disk is an error here and not in a thread."""

import os
import socket
import time
from pathlib import Path
from typing import Any

from torch import Tensor


class Curves:
    """An event file of TensorBoard.

    Args:
        folder: where it goes; made if absent.
        step: step at which training starts; later steps of older files in the folder are discarded.

    Raises:
        OSError: the file cannot be written (so does every method).
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._writer, self._event = RecordWriter(self._file), Event
        self._write(file_version="brain.Event:2")
        if step:
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self._file.flush()

    def _write(self, **what: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **what).SerializeToString())

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Write numbers by name."""
        from torch.utils.tensorboard.summary import scalar

        for name, value in values.items():
            self._write(step=step, summary=scalar(name, float(value)))
        self._file.flush()

    def picture(self, step: int, name: str, pixels: Tensor) -> None:
        """Write a picture (C, H, W) in [0, 1]."""
        from torch.utils.tensorboard.summary import image

        self._write(step=step, summary=image(name, pixels, dataformats="CHW"))
        self._file.flush()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()
