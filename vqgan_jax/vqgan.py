"""A VQGAN for inference: encodes, decodes and reconstructs images; functions to load and save models and to export them."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, UInt8
from ml_collections import ConfigDict
from PIL import Image

from nn_jax.mixed_precision import round_weights
from train_jax import inference, model_card, upload
from train_jax.compute import Compute, inference_dtype
from train_jax.data.images import Preprocess
from train_jax.errors import LoadError
from train_jax.weights import single_file
from train_jax.weights.layout import flatten, hash_arrays, to_peer
from vqgan_jax import card
from vqgan_jax import model as model_lib
from vqgan_jax.model import VQGANOptions
from vqgan_jax.pretrained import Checkpoint, diffusers, open_checkpoint, taming
from vqgan_jax.pretrained import single_file as vqgan_file

__all__ = ["LoadError", "Vqgan", "load", "push", "save", "save_diffusers", "save_taming", "to_bytes"]

ImageInput = Image.Image | np.ndarray | str | Path
ImageInputs = Sequence[ImageInput] | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Vqgan:
    """A VQGAN for inference, created by `load` or `Vqgan.assemble`.

    Attributes:
      module: Flax module, see `vqgan_jax.model`.
      variables: weights on the devices of this host.
      options: model options.
      compute: precision of computations.
      fingerprint: SHA-256 of weights and options, which identifies the meaning of codes.
      name: source of the weights, for messages.
    """

    module: model_lib.Autoencoder
    variables: Any
    options: VQGANOptions
    compute: Compute
    fingerprint: str
    name: str

    @classmethod
    def assemble(
        cls,
        options: VQGANOptions | Mapping | ConfigDict,
        variables: Any,
        name: str,
        compute: Compute | None = None,
        dtype: str | None = None,
    ) -> "Vqgan":
        """Builds a model from options and weights, and copies the weights to the devices of this host.

        Args:
          dtype: precision to which weights are rounded, and in which the model computes; None: that of `compute`, with the
            weights as they are.
        """
        options = options if isinstance(options, VQGANOptions) else VQGANOptions.parse(options, "model")
        # Rematerialisation is for training; painting has its own.
        compute, fingerprint = dataclasses.replace(compute or Compute(), remat="none"), _fingerprint(options, variables)
        if dtype is not None:
            compute = dataclasses.replace(compute, dtype=dtype)
            variables = round_weights(variables, compute.array_dtype)
        module = model_lib.build(options, compute)
        return cls(module, inference.on_devices(variables), options, compute, fingerprint, name)

    @property
    def size(self) -> int:
        """Side of the training images in pixels. Lists of images are resized and cropped to this size."""
        return self.options.resolution

    @property
    def num_codes(self) -> int:
        """Number of codes in the codebook."""
        return self.module.quantizer.size

    @property
    def factor(self) -> int:
        """Downsampling factor: side of a code in pixels."""
        return self.module.factor

    def encode(self, images: ImageInputs, batch_size: int = 32) -> Int32[np.ndarray, "n h w"]:
        """Encodes images to codes.

        Args:
          images: one array [n, H, W, 3], uint8 or float in [0, 1], with H and W divisible by `factor`; or a list of PIL
            images, paths and uint8 arrays of any sizes, which are resized and cropped to `size` x `size`.

        Raises ValueError for other arrays and BrokenSample for an unreadable image.
        """
        return self._run_batched(self._programs.encode, self.preprocess(images), batch_size)

    def decode(self, codes: Int32[np.ndarray, "n h w"], batch_size: int = 32) -> Float32[np.ndarray, "n H W 3"]:
        """Decodes codes to images in [0, 1]. Raises ValueError for codes outside of the codebook."""
        return self._run_batched(self._programs.decode, self._check_codes(codes), batch_size)

    def decode_uint8(self, codes: Int32[np.ndarray, "n h w"], batch_size: int = 32) -> UInt8[np.ndarray, "n H W 3"]:
        """Decodes codes to uint8 images. Rounding on the device needs a quarter of the memory of `decode`."""
        return self._run_batched(self._programs.decode_uint8, self._check_codes(codes), batch_size)

    def reconstruct(self, images: ImageInputs, batch_size: int = 32) -> Float32[np.ndarray, "n H W 3"]:
        """Encodes and decodes `images`, which are as in `encode`; returns images in [0, 1]."""
        return self._run_batched(self._programs.reconstruct, self.preprocess(images), batch_size)

    def encode_with(self, variables: Any, images: jax.Array) -> jax.Array:
        """Encodes images uint8 [n, H, W, 3] to codes int32 [n, h, w] with the given variables, as a pure function.

        `variables` have the structure of `self.variables` and may be on any devices.
        """
        return self._programs.encode(variables, images)

    @functools.cached_property
    def _programs(self) -> "Programs":
        return compile_programs(self.module)

    def _run_batched(self, program: Callable, values: np.ndarray, batch_size: int) -> np.ndarray:
        return inference.batched(
            program,
            self.variables,
            lambda a, b: values[a:b],
            len(values),
            jax.ShapeDtypeStruct(values.shape[1:], values.dtype),
            batch_size,
        )

    def _check_codes(self, codes: np.ndarray) -> Int32[np.ndarray, "n h w"]:
        codes = np.asarray(codes, np.int32)
        if codes.ndim != 3:
            raise ValueError(f"codes must be [n, h, w], not {list(codes.shape)}")
        if codes.size and not (codes.min() >= 0 and codes.max() < self.num_codes):
            raise ValueError(f"codes {codes.min()} to {codes.max()}: this model has 0 to {self.num_codes - 1}")
        return codes

    def preprocess(self, images: ImageInputs) -> np.ndarray:
        """Converts images to the input array of `encode`: uint8 or float32 [n, H, W, 3]."""
        if isinstance(images, str | Path | Image.Image):
            raise TypeError(f"images must be a list, not one {type(images).__name__}: write [value]")
        if not isinstance(images, np.ndarray):
            return Preprocess(self.size).batch(images)
        if images.ndim != 4 or images.shape[-1] != 3 or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
            raise ValueError(
                f"images must be [n, H, W, 3], uint8 or float in [0, 1], not {images.dtype} {list(images.shape)}"
            )
        if any(side % self.factor for side in images.shape[1:3]):
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels: both sides must be divisible by {self.factor}"
            )
        if images.dtype.kind == "f":
            if images.size and (images.min() < 0 or images.max() > 1):
                raise ValueError(
                    f"float images must be in [0, 1]; these range from {images.min()} to {images.max()}"
                )
            return images.astype(np.float32)
        return images


class Programs(NamedTuple):
    """Compiled functions `(variables, batch) -> array`."""

    encode: Callable
    decode: Callable
    decode_uint8: Callable
    reconstruct: Callable


def compile_programs(module: model_lib.Autoencoder) -> Programs:
    """Jits the functions of `Programs` for a model."""

    def to_signed(images):
        x = images.astype(jnp.float32)
        return 2 * (x / 255 if images.dtype == jnp.uint8 else x) - 1

    def to_unit(pixels):
        return jnp.clip((pixels + 1) / 2, 0, 1)

    def encode(variables, images):
        return module.apply(variables, to_signed(images), method="encode")

    def decode(variables, codes):
        return to_unit(module.apply(variables, codes, method="decode"))

    def decode_uint8(variables, codes):
        return jnp.round(255 * decode(variables, codes)).astype(jnp.uint8)

    def reconstruct(variables, images):
        return decode(variables, encode(variables, images))

    return Programs(*map(jax.jit, (encode, decode, decode_uint8, reconstruct)))


def _fingerprint(options: VQGANOptions, variables: Mapping) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps(options.identity(), sort_keys=True).encode())
    # Scalars count as vectors of one number.
    leaves = {f"{kind}/{name}": np.atleast_1d(x) for kind, tree in variables.items() for name, x in flatten(tree).items()}
    hash_arrays(digest, leaves)
    return digest.hexdigest()


def load(path: str | Path, step: int | None = None, *, dtype: str | None = "auto") -> Vqgan:
    """Loads a VQGAN from any supported format.

    Args:
      path: a run directory of `train-jax` (averaged weights if the run has them), a `.safetensors` file of `save`, a
        directory of diffusers' VQModel (or of a pipeline that contains a VQModel), of dalle-mini's VQGAN or of OpenAI's
        dVAE, a checkpoint of taming-transformers, latent diffusion, Kandinsky, Open-MAGVIT2 or IBQ with its `.yaml` in the
        same folder (from a second stage's checkpoint, the first stage is loaded), a `.pt` of LlamaGen, a file of MaskGIT's
        tokenizer, or "hf:org/name".
      step: checkpoint step of a run directory; None for the newest readable checkpoint.
      dtype: precision, "float32" or "bfloat16"; "auto": bfloat16 on accelerators that have it, float32 on a CPU; None: the
        precision of the training, with float32 weights. In bfloat16, kernels need half the memory, and latents near the
        border of two codes may get the other one; distances to codes, and pixels, are computed in float32.

    Raises LoadError for unknown formats, for damaged files, and if weights and configuration are inconsistent.
    """
    dtype = dtype and inference_dtype(dtype)
    return assemble_checkpoint(open_checkpoint(path, step), dtype)


def assemble_checkpoint(checkpoint: Checkpoint, dtype: str | None) -> Vqgan:
    """Reads the weights of an opened checkpoint and builds the model; `dtype` is as in `Vqgan.assemble`."""
    variables, name = checkpoint.variables(checkpoint.module())
    return Vqgan.assemble(checkpoint.model, variables, name, checkpoint.compute, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def to_bytes(vq: Vqgan) -> bytes:
    """Serialises weights and options as the content of a `.safetensors` file that `load` opens.

    Raises ValueError for a model whose weights were rounded when it was loaded.
    """
    return vqgan_file.to_bytes(vq.options, vq.compute, _exact_variables(vq))


def _exact_variables(vq: Vqgan) -> dict[str, Any]:
    return single_file.exact_variables(vq.variables, vq.name, vq.compute.dtype)


def save(vq: Vqgan, path: str | Path) -> None:
    """Writes the model to a `.safetensors` file that `load` opens.

    Raises ValueError for another suffix, and FileExistsError if the file exists.
    """
    single_file.write(path, lambda: to_bytes(vq))


def push(model: Any, repository: str, **options: Any) -> str:
    """Uploads a VQGAN, or the run directory of a second stage, to the Hugging Face Hub, with a card. Returns its address.

    Args:
      model: a loaded VQGAN, which becomes one file of `save`; or the path of a run directory, or of a folder of
        `save_diffusers`.
      repository, options: see `train_jax.upload.push`: "org/name"; `private`, `revision`, `licence`, `step`.
    """
    if isinstance(model, Vqgan):
        return upload.push_model(model, repository, save=save, kind=card.VQGAN, **options)
    return upload.push(model, repository, **options)


def save_diffusers(vq: Vqgan, directory: str | Path, *, licence: str | None = None) -> None:
    """Exports the model to a directory that diffusers' VQModel opens, with the same codes and reconstructions.

    A card, README.md, tells how to load the model and, if its weights are a run's, of their training and evaluation
    (`train_jax.model_card`).

    Args:
      licence: licence of the weights by the hub's name, such as "apache-2.0", for the card; None: not stated.

    Raises ValueError if VQModel does not support the model (such as its quantiser), and FileExistsError if the directory is
    not empty.
    """
    import safetensors.numpy

    directory = Path(directory)
    model, params = _fold_codebook(vq, "diffusers", layouts=("taming", "movq"))
    text = model_card.make(
        card.VQGAN, vq.name, code=(card.DIFFUSERS, card.VQGAN.code), library="diffusers", licence=licence
    )
    if directory.is_dir() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty; name a new directory")
    weights = to_peer(params, diffusers.build_entries(model))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(diffusers.export_config(model), indent=2) + "\n", "utf-8")
    arrays = {name: np.array(x, np.float32, order="C") for name, x in weights.items()}
    model_card.write(directory, text)
    # Weights are written last: a directory with weights is complete.
    safetensors.numpy.save_file(arrays, directory / f"{diffusers.WEIGHTS}.safetensors", metadata={"format": "pt"})


def save_taming(vq: Vqgan, path: str | Path) -> None:
    """Exports the model as a state dict of taming-transformers (`.safetensors`), with a `.yaml` in the same folder.

    Raises ValueError if taming does not support the model or for another suffix, and FileExistsError if the file exists.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path}: name the file as NAME.safetensors; PyTorch opens it with safetensors.torch.load_file"
        )
    model, params = _fold_codebook(vq, "taming", gumbel=True)
    if model["groups"] != 32:
        raise ValueError(
            f"taming's group norms have 32 groups, this model's {model['groups']}: save_taming cannot write it"
        )
    if not model["middle_attention"]:
        raise ValueError("taming's models have middle attention, this model has none: save_taming cannot write it")
    if path.exists():
        raise FileExistsError(f"{path} already exists")
    taming.save(model, to_peer(params, taming.build_entries(model)), path)


def _fold_codebook(
    vq: Vqgan, peer: str, *, gumbel: bool = False, layouts: Sequence[str] = ("taming",)
) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns options and parameters of the same model with a plain codebook, as other libraries require."""
    model = vq.options.to_dict()
    kind = model["quantizer"]["type"]
    if kind not in ("nearest", "ema", *(["gumbel"] if gumbel else [])):
        raise ValueError(f"{peer} has no quantiser of type {kind!r}: this model cannot be written for it")
    if model["architecture"] != "vqgan":
        raise ValueError(f"{peer} has no {model['architecture']}: this model cannot be written for it")
    if model["layout"] not in layouts:
        raise ValueError(f"{peer} has no layout {model['layout']!r}: this model cannot be written for it")
    if model["layout"] == "movq" and model["groups"] != 32:
        raise ValueError(f"{peer}'s spatial norms have 32 groups, this model's {model['groups']}: it cannot be written")
    if model["pixels"] != "signed":
        raise ValueError(
            f"{peer} does not support model.pixels = {model['pixels']!r}: this model cannot be written for it"
        )
    variables = _exact_variables(vq)
    params = flatten(variables["params"])
    if kind == "ema":
        params["quantizer/codebook"] = variables["codebook"]["quantizer"]["points"]
        model["quantizer"]["type"] = "nearest"
    elif model["quantizer"]["unit"]:
        # The nearest point of unit norm does not depend on the latent's norm: normalising the codebook is sufficient.
        points = params["quantizer/codebook"]
        params["quantizer/codebook"] = points / np.linalg.norm(points, axis=1, keepdims=True)
    return model, params
