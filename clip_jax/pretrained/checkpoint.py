"""Format-independent checkpoint: model options, tokenizer, preprocessing, and a function that reads the weights."""

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import model as model_lib
from clip_jax.options import CLIPCompute
from clip_jax.vision import resize_positions
from train_jax.data.images import Preprocess
from train_jax.data.text import AnyTokenizer
from train_jax.errors import LoadError
from train_jax.weights.layout import STATS, unflatten


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Opened checkpoint whose weights are not read yet.

    Attributes:
      name: source, for messages.
      kind: format, for messages.
      model: model options, as in `clip_jax.options.CLIPOptions`; missing options have their defaults.
      tokenizer: tokenizer of the texts.
      preprocess: preprocessing of the images.
      read: function that reads the weights. It returns unrolled names (see `train_jax.weights.layout`) -> float32
        arrays, and a name of the weights for messages.
      files: files that are read, for messages.
      compute: compute options of the training run.
    """

    name: str
    kind: str
    model: Mapping
    tokenizer: AnyTokenizer
    preprocess: Preprocess
    read: Callable[[], tuple[dict[str, np.ndarray], str]]
    files: str
    compute: CLIPCompute = CLIPCompute()

    def module(self, size: int | None = None, scan: bool | None = None) -> model_lib.CLIP:
        """Builds the Flax module.

        Args:
          size: side of the input images in pixels; None: as trained.
          scan: whether the blocks are stacked; None: as trained (stacked for formats that do not record it).

        Raises LoadError if the options are inconsistent.
        """
        # What only training uses is left out: in float8, an embedding would depend on the other examples of its batch.
        inference = {"remat": "none", "float8": False, "micro_batch": 0, "text_lengths": ()}
        compute = dataclasses.replace(self.compute, **inference, **({} if scan is None else {"scan": scan}))
        try:
            options = self.model if size is None else {**self.model, "image": {**self.model["image"], "size": size}}
            return model_lib.build(options, self.tokenizer.vocab_size, self.tokenizer.eos_id, compute)
        except (ValueError, AttributeError, TypeError, ZeroDivisionError) as error:
            raise LoadError(f"{self.name} has invalid model options: {error}") from error

    def variables(self, module: model_lib.CLIP) -> tuple[dict, str]:
        """Reads the variables of `module` (`params`, and `batch_stats` for a ResNet) and a name of the weights.

        Interpolates position embeddings to the image size. Raises LoadError if names or shapes do not match.
        """
        arrays, name = self.read()
        expected = abstract_variables(module)
        shapes = _list_shapes(expected["params"])
        positions = next((p for p in ("vision/positions", "vision/pool/positions") if p in arrays), "")
        if positions in shapes:
            num_prefix = int("vision/cls" in arrays or positions == "vision/pool/positions")
            arrays[positions] = resize_positions(arrays[positions], shapes[positions][0] - num_prefix, num_prefix)
        scan = any("/blocks/" in path for path in shapes)
        params = unflatten({name: x for name, x in arrays.items() if not name.startswith(STATS)}, scan)
        stats = unflatten({name.removeprefix(STATS): x for name, x in arrays.items() if name.startswith(STATS)}, False)
        variables = {"params": params} | ({"batch_stats": stats} if stats else {})
        check_shapes(variables, expected, self.name)
        return variables, name


def join_towers(image: Mapping, text: Mapping, **options) -> dict:
    """Joins the options of two towers, each with its `activation` and `eps`, to those of a `CLIPOptions`.

    Those of the image tower become the model's; the text tower keeps what differs from them.
    """
    shared = {name: image[name] for name in ("activation", "eps")}
    image = {name: value for name, value in image.items() if name not in shared}
    text = {name: value for name, value in text.items() if name not in shared or value != shared[name]}
    return {"image": image, "text": text, **shared, **options}


def abstract_variables(module: model_lib.CLIP) -> dict:
    """Infers the shapes and dtypes of the variables of a module, without Flax's metadata boxes."""
    size = module.options.image.size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, module.options.text.context_length), jnp.int32)
    return nn.unbox(jax.eval_shape(module.init, jax.random.key(0), images, ids))


def check_shapes(variables: Mapping, expected: Mapping, source: str) -> None:
    """Raises LoadError if names or shapes of the variables differ from the expected variables."""
    expected_shapes, saved_shapes = _list_shapes(expected), _list_shapes(variables)
    for path in sorted(expected_shapes.keys() | saved_shapes.keys()):
        if expected_shapes.get(path) != saved_shapes.get(path):
            raise LoadError(
                f"{source}: {path} has shape {expected_shapes.get(path, 'absent')} in the configuration and "
                f"{saved_shapes.get(path, 'absent')} in the weights; they belong to different models"
            )


def _list_shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
