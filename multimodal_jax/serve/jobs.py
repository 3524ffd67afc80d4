"""Jobs: a function that runs in a thread, shows what it has so far, and can be stopped."""

import dataclasses
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from multimodal_jax.serve.device import DEVICE


@dataclasses.dataclass(frozen=True)
class Result:
    """What is shown of a job, at its end or before.

    Attributes:
      pictures: files with captions. They may be deleted when the next result is asked for.
      shares: label -> probability.
      text: what was found or done.
    """

    pictures: Sequence[tuple[Path, str]] = ()
    shares: Mapping[str, float] | None = None
    text: str = ""


class _JobStopped(BaseException):  # no `except Exception` of a library shall catch it
    """Stop of a job by its user."""


class Job:
    """A running job.

    Attributes:
      folder: temporary folder for its files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._results: queue.SimpleQueue[Result | BaseException | None] = queue.SimpleQueue()
        self._is_stopped, self._count = threading.Event(), 0

    def show(self, text: str, images: Sequence[np.ndarray] | np.ndarray = ()) -> None:
        """Shows unfinished images, uint8 [H, W, 3]. Ends the job here if it was stopped."""
        if self._is_stopped.is_set():
            raise _JobStopped
        pictures = []
        for image in images:
            self._count += 1
            file = self.folder / f"preview-{self._count:05d}.png"
            Image.fromarray(image).save(file)
            pictures.append((file, ""))
        self._results.put(Result(pictures, text=text))

    def run(self, function: Callable[["Job"], Result], is_shared: bool = False) -> None:
        """Runs the function, in the thread of the job; see `run` below."""

        def compute(_=None) -> list[Result]:
            self.show("working …")
            return [function(self)]

        try:
            [result] = compute() if is_shared else [DEVICE.compute(compute, None)]
            self._results.put(result)
        except _JobStopped:
            pass
        except BaseException as error:  # is raised where the results are read
            self._results.put(error)
        finally:
            self._results.put(None)

    def results(self) -> Iterator[Result]:
        """Yields results as they come. Raises the error of the function."""
        while (item := self._results.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        """Asks the job to stop, which it does when it shows something."""
        self._is_stopped.set()


def run(function: Callable[[Job], Result], is_shared: bool = False) -> Iterator[Result]:
    """Runs a function as a job, and yields what it shows and then its result. Closing the iterator stops the job.

    Args:
      is_shared: whether jobs run side by side, as far as their models let them; else the job waits for the device, which it
        has for itself.
    """
    with tempfile.TemporaryDirectory(prefix="multimodal-jax-", ignore_cleanup_errors=True) as folder:
        job = Job(Path(folder))
        threading.Thread(target=job.run, args=(function, is_shared), daemon=True).start()
        try:
            yield from job.results()
        finally:
            job.stop()
