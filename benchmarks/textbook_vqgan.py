"""Reference implementation of VQGAN training in PyTorch, with the names of taming-transformers and two passes per update.

Written from the description in arXiv 2012.09841 and the published parameter names; needs the `peers` extra.
"""

import torch
from torch import nn
from torch.nn import functional


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = (f(y).reshape(b, 1, c, h * w).transpose(2, 3) for f in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, h, w)
        return x + self.proj_out(y)


class Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, has_attention: bool):
        super().__init__()
        self.block = nn.ModuleList(Residual(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(outputs) for _ in range(blocks if has_attention else 0))

    def forward(self, x):
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        return x


class Conv(nn.Module):
    """A module with one convolution, named `conv`."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=0 if stride == 2 else 1)


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1, self.attn_1 = Residual(channels, channels), Attention(channels)
        self.block_2 = Residual(channels, channels)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, m):
        super().__init__()
        widths = [m.channels * k for k in m.multipliers]
        self.conv_in = nn.Conv2d(3, m.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[i - 1] if i else m.channels
            level = Level(before, width, m.blocks, (m.resolution >> i) in m.attention)
            if i < len(widths) - 1:
                level.downsample = Conv(width, 2)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = _norm(widths[-1]), nn.Conv2d(widths[-1], m.z_channels, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample.conv(functional.pad(x, (0, 1, 0, 1)))
        return self.conv_out(functional.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, m):
        super().__init__()
        widths = [m.channels * k for k in m.multipliers]
        self.conv_in = nn.Conv2d(m.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[min(i + 1, len(widths) - 1)]
            level = Level(before, width, m.blocks + 1, (m.resolution >> i) in m.attention)
            if i:
                level.upsample = Conv(width, 1)
            self.up.append(level)
        self.norm_out, self.conv_out = _norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z):
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(functional.silu(self.norm_out(x)))


class Codebook(nn.Module):
    def __init__(self, size: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(size, dim)


class VQGAN(nn.Module):
    """The autoencoder, from our model options `m`."""

    def __init__(self, m):
        super().__init__()
        self.encoder, self.decoder = Encoder(m), Decoder(m)
        self.quantize = Codebook(m.quantizer.size, m.quantizer.dim)
        self.quant_conv = nn.Conv2d(m.z_channels, m.quantizer.dim, 1)
        self.post_quant_conv = nn.Conv2d(m.quantizer.dim, m.z_channels, 1)
        self.beta = m.quantizer.beta

    def forward(self, x):
        """Returns reconstructions and the codebook loss."""
        z = self.quant_conv(self.encoder(x)).permute(0, 2, 3, 1)
        points = self.quantize.embedding.weight
        flat = z.reshape(-1, z.shape[-1])
        distances = (flat**2).sum(1, keepdim=True) + (points**2).sum(1) - 2 * flat @ points.T
        q = points[distances.argmin(1)].reshape(z.shape)
        loss = ((q - z.detach()) ** 2).mean() + self.beta * ((q.detach() - z) ** 2).mean()
        q = z + (q - z).detach()
        return self.decoder(self.post_quant_conv(q.permute(0, 3, 1, 2))), loss


def discriminator(channels: int, layers: int) -> nn.Sequential:
    """Builds a PatchGAN discriminator with group norms, like ours."""
    modules = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
    before = channels
    for i in range(1, layers + 1):
        width = channels * min(2**i, 8)
        stride = 2 if i < layers else 1
        modules += [nn.Conv2d(before, width, 4, stride, 1), nn.GroupNorm(32, width), nn.LeakyReLU(0.2)]
        before = width
    return nn.Sequential(*modules, nn.Conv2d(before, 1, 4, 1, 1))


class Trainer:
    """Trainer of generator (with two gradients at the last layer for the adaptive weight) and discriminator."""

    def __init__(self, model: VQGAN, discriminator: nn.Sequential, lr: float, weight: float):
        self.model, self.discriminator, self.weight = model, discriminator, weight
        self.generator_optimizer = torch.optim.Adam(model.parameters(), lr, betas=(0.5, 0.9))
        self.discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr, betas=(0.5, 0.9))

    def update(self, x: torch.Tensor) -> torch.Tensor:
        reconstruction, codebook_loss = self.model(x)
        nll_loss = (x - reconstruction).abs().mean()
        g_loss = -self.discriminator(reconstruction).mean()
        last_layer = self.model.decoder.conv_out.weight
        nll_norm, g_norm = (
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (nll_loss, g_loss)
        )
        adaptive_weight = (nll_norm / (g_norm + 1e-4)).clamp(0, 1e4).detach()
        loss = nll_loss + self.weight * adaptive_weight * g_loss + codebook_loss
        self.generator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.generator_optimizer.step()

        # Lightning runs the generator again for the second optimiser, here without gradient.
        with torch.no_grad():
            reconstruction, _ = self.model(x)
        real, fake = self.discriminator(x), self.discriminator(reconstruction)
        loss = 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.discriminator_optimizer.step()
        return loss.detach()
