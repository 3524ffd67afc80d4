"""Reference implementation of VQGAN+CLIP in PyTorch, like the original notebooks: one step at a time, cuts in a loop.

Written from the description in arXiv 2204.08583; needs the `peers` extra.
"""

import torch
from torch.nn import functional


class ClampWithGradient(torch.autograd.Function):
    """Clamp to [0, 1]; gradients outside pass only if a descent step moves the value towards the interval."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(context, g):
        (x,) = context.saved_tensors
        return g * (g * (x - x.clamp(0, 1)) >= 0)


class Painter:
    """Optimiser of latents of `model` (a `textbook_vqgan.VQGAN`) towards a target feature of `perceptor`.

    Args:
      perceptor: normalised pixels [n, 3, R, R] -> features [n, d].
      target: unit vector [d].
      codes: initial codes [h, w].
    """

    def __init__(self, model, perceptor, size: int, mean, std, target, codes, cuts: int, lr: float, noise: float):
        self.model, self.perceptor, self.size, self.cuts, self.noise = model, perceptor, size, cuts, noise
        self.target = target
        self.mean, self.std = (torch.tensor(x, device=target.device)[None, :, None, None] for x in (mean, std))
        points = model.quantize.embedding.weight
        self.low, self.high = (x[None, :, None, None] for x in (points.min(0).values, points.max(0).values))
        self.z = points[codes].permute(2, 0, 1)[None].detach().clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.z], lr)

    def decode_image(self):
        """Renders the picture [1, 3, H, W] in [0, 1]."""
        z = self.z.permute(0, 2, 3, 1)
        points = self.model.quantize.embedding.weight
        flat = z.reshape(-1, z.shape[-1])
        distances = (flat**2).sum(1, keepdim=True) + (points**2).sum(1) - 2 * flat @ points.T
        nearest = points[distances.argmin(1)].reshape(z.shape)
        quantized = z + (nearest - z).detach()
        decoded = self.model.decoder(self.model.post_quant_conv(quantized.permute(0, 3, 1, 2)))
        return ClampWithGradient.apply((decoded + 1) / 2)

    def features(self, x):
        """Computes normalised features of pixels in [0, 1]."""
        return functional.normalize(self.perceptor((x - self.mean) / self.std), dim=-1)

    def make_cutouts(self, x):
        height, width = x.shape[2:]
        largest, smallest = min(height, width), min(height, width, self.size)
        crops = []
        for _ in range(self.cuts):
            side = int(torch.rand(()) * (largest - smallest) + smallest)
            left = int(torch.randint(0, width - side + 1, ()))
            top = int(torch.randint(0, height - side + 1, ()))
            crop = functional.adaptive_avg_pool2d(x[:, :, top : top + side, left : left + side], self.size)
            crops.append(crop.flip(3) if torch.rand(()) < 0.5 else crop)
        cuts = torch.cat(crops)
        strength = cuts.new_empty(self.cuts, 1, 1, 1).uniform_(0, self.noise)
        return cuts + strength * torch.randn_like(cuts)

    def step(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        u = self.features(self.make_cutouts(self.decode_image()))
        loss = ((u - self.target[None]).norm(dim=-1) / 2).arcsin().pow(2).mul(2).mean()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.project()
        return float(loss)

    def project(self):
        """Clips latents to the range of the codebook."""
        self.z.copy_(self.z.maximum(self.low).minimum(self.high))


class DrawerPainter(Painter):
    """Optimiser of the parameters of a drawer.

    Args:
      render: parameters -> picture [1, 3, H, W], nominally in [0, 1].
      z: initial parameters.
      others: as of `Painter`.
    """

    def __init__(self, render, z, perceptor, size: int, mean, std, target, cuts: int, lr: float, noise: float):
        self.render, self.perceptor, self.size, self.cuts, self.noise = render, perceptor, size, cuts, noise
        self.target = target
        self.mean, self.std = (torch.tensor(x, device=target.device)[None, :, None, None] for x in (mean, std))
        self.z = z.clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.z], lr)

    def decode_image(self):
        return ClampWithGradient.apply(self.render(self.z))

    def project(self):
        """Does nothing: all parameters are allowed."""


def render_pixels(z):
    """Renders logits [H, W, 3] of pixels."""
    return z.sigmoid().permute(2, 0, 1)[None]


def render_cells(z, cells):
    """Renders logits [n, 3] of the colours of cells. `cells` [H, W] are the indices of the pixels' cells."""
    return z.sigmoid()[cells].permute(2, 0, 1)[None]


def render_fourier(z, scale, correlation):
    """Renders coefficients [H, W, 3] of a Hartley transform, times their amplitudes `scale`, of decorrelated colours."""
    transformed = torch.fft.fft2(z * scale, dim=(0, 1), norm="ortho")
    return ((transformed.real - transformed.imag) @ correlation.T).sigmoid().permute(2, 0, 1)[None]
