"""Scalars and pictures for TensorBoard, written at once: a full disk is an error here, not in a writer's thread."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class TensorBoard:
    """One event file in a folder; TensorBoard reads all files of a run as one."""

    def __init__(self, folder: Path, start_step: int) -> None:
        """Start a file.

        Args:
            folder: Made if need be.
            start_step: Steps that are done: what an earlier, killed run wrote of later ones is not shown.

        Raises:
            OSError: it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        if start_step > 0:
            self._write(Event(step=start_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one number per curve."""
        self._write(
            Event(
                step=step,
                summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]),
            )
        )

    def image(self, step: int, tag: str, image: Image.Image) -> None:
        """Add a picture."""
        encoded = io.BytesIO()
        image.save(encoded, format="PNG")
        shown = Summary.Image(
            height=image.height,
            width=image.width,
            colorspace=len(image.getbands()),
            encoded_image_string=encoded.getvalue(),
        )
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=shown)])))

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()
