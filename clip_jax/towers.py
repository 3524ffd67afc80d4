"""The towers of CLIP in training: micro-batches, texts at their length, and frozen towers in evaluation mode."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt8

from clip_jax import buckets
from clip_jax.options import CLIPCompute
from clip_jax.text import find_ends
from train_jax import sharding
from train_jax.data.images import Preprocess

TOWERS = ("vision", "text")  # by the names of their parameters


@dataclasses.dataclass(frozen=True)
class Towers:
    """Encoders of a batch, with gradients.

    Attributes:
      module: module with the methods `encode_image` and `encode_text` of `clip_jax.model.CLIP`.
      eos_id: id of the end token.
      frozen: those of TOWERS that are not trained. They run in evaluation mode: without dropout, and running statistics are
        not updated.
    """

    module: nn.Module
    preprocess: Preprocess
    compute: CLIPCompute
    eos_id: int
    frozen: tuple[str, ...] = ()

    def encode_images(
        self, variables: dict[str, Any], pixels: UInt8[Array, "n ..."], key: jax.Array
    ) -> tuple[Float[Array, "n dim"], dict[str, Any]]:
        """Computes the embeddings of images (see `Preprocess.pack`), and the updated variables other than the parameters."""

        def encode(pixels, variables, key):
            return self._apply("vision", "encode_image", self.preprocess.normalize(pixels), variables, key)

        return _encode_microbatched(encode, pixels, variables, key, self.compute.micro_batch)

    def encode_texts(self, variables: dict[str, Any], ids: Int[Array, "n length"], key: jax.Array) -> Float[Array, "n dim"]:
        """Computes the embeddings of texts, each micro-batch at one of the lengths `compute.text_lengths`."""
        ends = functools.partial(find_ends, pool=self.module.options.text.pool, eos_id=self.eos_id)

        def encode(ids, variables, key):
            def encode_cut(ids):
                return self._apply("text", "encode_text", ids, variables, key)

            return buckets.encode_at_length(encode_cut, ids, ends(ids), self.compute.text_lengths)

        sort = unsort = lambda x: x
        if self.compute.text_lengths:
            count = _count_microbatches(len(ids), self.compute.micro_batch)
            sort, unsort = buckets.sort_by_length(ends(ids), count)
        embeddings, _ = _encode_microbatched(encode, sort(ids), variables, key, self.compute.micro_batch)
        return unsort(embeddings)

    def _apply(self, tower: str, method: str, inputs, variables, key):
        mutable_variables = {name: x for name, x in variables.items() if name != "params"}
        if tower in self.frozen:
            return jax.lax.stop_gradient(self.module.apply(variables, inputs, method=method)), mutable_variables
        mutable = list(mutable_variables)
        return self.module.apply(variables, inputs, False, method=method, rngs={"dropout": key}, mutable=mutable)


def _encode_microbatched(encode: Callable, inputs, variables, key, micro_batch: int):
    """Applies `encode(inputs, variables, key)` in micro-batches of at most `micro_batch` examples per device (0: one batch).

    The backward pass recomputes each micro-batch with the same key.
    """
    num_microbatches = _count_microbatches(len(inputs), micro_batch)
    if num_microbatches == 1:
        return encode(inputs, variables, key)

    def encode_in_turn(inputs, variables, key):
        features, updated_variables = jax.lax.map(
            lambda inputs_and_key: jax.checkpoint(encode)(inputs_and_key[0], variables, inputs_and_key[1]),
            (sharding.split_batch(inputs, num_microbatches), jax.random.split(key, num_microbatches)),
        )
        return sharding.join_batch(features), updated_variables

    return sharding.map_over_data(encode_in_turn, inputs, variables, key, (P("data"), P()))


def _count_microbatches(batch_size: int, micro_batch: int) -> int:
    """Returns the number of micro-batches of at most `micro_batch` examples per device; 1 for `micro_batch` 0."""
    rows = sharding.rows_per_device(jax.sharding.get_abstract_mesh(), batch_size)
    return sharding.parts_of(rows, micro_batch) if micro_batch else 1
