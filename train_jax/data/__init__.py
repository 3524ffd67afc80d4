"""Data pipeline from named sources to batches of arrays: `sources` -> `images`, `text` -> `stream`."""
