"""Users who wait are answered in one batch, each as if alone; whatever befalls one of them is not that of the others."""

import concurrent.futures
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import clip_jax
from multimodal_jax.serve.device import DEVICE, Device
from tests.multimodal.test_tabs import use
from vqgan_jax.stage2.generator import CodeGenerator


@contextlib.contextmanager
def together(device: Device, count: int) -> Iterator[Callable]:
    """Yields `submit(function, *arguments)`, for threads; at the end of the block `count` of them wait for the device."""
    free, threads = threading.Event(), concurrent.futures.ThreadPoolExecutor(16)
    holder = threads.submit(device.compute, lambda _: [free.wait(60)], None)
    try:
        yield threads.submit
        deadline = time.monotonic() + 60
        while device.waiting < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        free.set()
    assert holder.result()


def test_waiting_users_are_answered_together_and_as_if_alone(models, monkeypatch):
    requests = [
        ("Search", {"text": "picture 3"}),
        ("Draw", {"prompt": "picture 1", "seed": 3}),
        ("Classify", {"labels": "picture 1, a dog", "template": "this is {}"}),
        ("Draw", {"prompt": "picture 5", "seed": 4}),
        ("Search", {"text": "picture 5", "top": 5}),
        ("Draw", {"prompt": "picture 1", "seed": 3}),  # the same as the first, not its next pictures
        ("Draw", {"prompt": "picture 1", "seed": 3, "guidance": 1.0}),  # another program
    ]
    alone = [use(title, models, **values) for title, values in requests]
    calls = Counter()

    def count_calls(kind: type, name: str) -> None:
        method = getattr(kind, name)

        def counted(*arguments, **options):
            calls[name] += 1
            return method(*arguments, **options)

        monkeypatch.setattr(kind, name, counted)

    count_calls(clip_jax.Clip, "encode_text")
    count_calls(CodeGenerator, "draw")
    with together(DEVICE, len(requests)) as submit:
        futures = [submit(use, title, models, **values) for title, values in requests]
    for (title, _), (shown, command), future in zip(requests, alone, futures, strict=True):
        shown_together, command_together = future.result()
        assert command_together == command
        (status, shares, pictures), (one_status, one_shares, one_pictures) = shown_together[-1], shown[-1]
        assert status == one_status and "alert" not in status
        if title == "Classify":
            np.testing.assert_allclose([*shares.values()], [*one_shares.values()], rtol=1e-5)
        assert len(pictures) == len(one_pictures) == len({tuple(pixels.ravel()) for pixels, _, _ in pictures})
        for (pixels, metadata, caption), (one_pixels, one_metadata, one_caption) in zip(pictures, one_pictures, strict=True):
            # Equal codes, which are decoded in batches of another size, in which a shade may round otherwise.
            assert abs(pixels.astype(int) - one_pixels).max() <= (title == "Draw")
            assert metadata == one_metadata and caption == one_caption
        if title == "Draw":  # its own unfinished pictures, too
            previews = [len(pictures) for status, _, pictures in shown_together if "rows of codes" in status]
            assert previews == [2] * len(previews) != []
    # CLIPs encode texts also to rank drawings, once for each batch of them.
    assert calls == {"draw": 2, "encode_text": 1 + 2}


class Stopped(BaseException):
    """Stop of a drawing, as of a job of the page."""


def test_a_stopped_drawing_leaves_the_others(models):
    dalle = models.open("dalle", "runs/dalle")
    options = {"first": [0], "guidance": 1.5, "batch_size": 64}
    shown = []

    def stop_with(error):
        def stop(first, rows, images):
            raise error

        return stop

    # All are stopped: each has its own error, and nothing is drawn again for one of them.
    errors = [Stopped("first"), KeyError("second")]
    with together(DEVICE, 2) as submit:
        all_stopped = [submit(dalle.draw, ["picture 1"], 2, preview=stop_with(error), **options) for error in errors]
    assert [future.exception() for future in all_stopped] == errors

    with together(DEVICE, 2) as submit:
        stopped = submit(dalle.draw, ["picture 1"], 2, preview=stop_with(KeyError("stopped")), **options)
        other = submit(dalle.draw, ["picture 2"], 2, preview=lambda *preview: shown.append(preview), **options)
    with pytest.raises(KeyError, match="stopped"):
        stopped.result()
    alone = dalle.draw(["picture 2"], 2, **options)
    np.testing.assert_array_equal(other.result().codes, alone.codes)
    first, rows, images = shown[-1]
    assert (first, rows) == (0, dalle.grid[0])
    np.testing.assert_array_equal(images, alone.images[0])


def test_calls_of_a_key_are_computed_together_in_order_of_arrival():
    device, batches = Device(), []

    def work(arguments):
        batches.append(arguments)
        if "bad" in arguments:
            raise ValueError("one is bad")
        return [argument.upper() for argument in arguments]

    calls = [("a", "x"), ("b", "y"), ("c", "x"), ("d", None), ("e", "x"), ("f", "x"), ("bad", "y")]
    with together(device, len(calls)) as submit:
        futures = []
        for count, (argument, key) in enumerate(calls):
            futures.append(submit(device.compute, work, argument, key, 3))
            while device.waiting <= count:
                time.sleep(0.001)
    assert [future.result() for future in futures[:-1]] == list("ABCDEF")
    with pytest.raises(ValueError, match="one is bad"):
        futures[-1].result()
    assert batches == [["a", "c", "e"], ["b", "bad"], ["b"], ["bad"], ["d"], ["f"]]
    # A call from within: at once, without waiting for itself.
    assert device.compute(lambda _: [device.compute(work, "within", "x")], None) == "WITHIN"
