"""From named sources to batches on devices: `sources` -> `images`, `text` -> `pipeline`."""
