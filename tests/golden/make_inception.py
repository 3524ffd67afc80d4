"""Makes `tests/golden/inception.npz`: features of FID's Inception-v3 by pytorch-fid, with weights drawn by name.

python tests/golden/make_inception.py           (with torch, torchvision and pytorch-fid)

The weights are 24 million numbers: both sides draw them with `weights`, and the file holds pictures and features only.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parent / "inception.npz"


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Tensors of these names and shapes, such that features neither vanish nor grow."""
    tensors = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("conv.weight"):
            value = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        else:
            low, high = {"bias": (-0.2, 0.2), "running_mean": (-0.2, 0.2)}.get(name.rsplit(".", 1)[1], (0.8, 1.2))
            value = rng.uniform(low, high, shape)
        tensors[name] = value.astype(np.float32)
    return tensors


def main() -> None:
    import torch
    from pytorch_fid import inception

    def drawn(*args, **kwargs):
        net = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
        patch(net)
        shapes = {k: tuple(v.shape) for k, v in net.state_dict().items() if v.ndim}
        state = {k: torch.from_numpy(v) for k, v in weights(shapes).items()}
        return state | {k: v for k, v in net.state_dict().items() if not v.ndim}

    def patch(net):
        for name, block in {
            "Mixed_5b": inception.FIDInceptionA(192, 32), "Mixed_5c": inception.FIDInceptionA(256, 64),
            "Mixed_5d": inception.FIDInceptionA(288, 64), "Mixed_6b": inception.FIDInceptionC(768, 128),
            "Mixed_6c": inception.FIDInceptionC(768, 160), "Mixed_6d": inception.FIDInceptionC(768, 160),
            "Mixed_6e": inception.FIDInceptionC(768, 192), "Mixed_7b": inception.FIDInceptionE_1(1280),
            "Mixed_7c": inception.FIDInceptionE_2(2048),
        }.items():  # fmt: skip
            setattr(net, name, block)

    inception.load_state_dict_from_url = drawn  # instead of the download
    net = inception.InceptionV3([3], resize_input=True, normalize_input=True).eval()
    images = np.random.default_rng(1).random((2, 20, 27, 3)).astype(np.float32)
    with torch.no_grad():
        (features,) = net(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    np.savez_compressed(OUT, images=images, features=features[:, :, 0, 0].numpy())


if __name__ == "__main__":
    main()
