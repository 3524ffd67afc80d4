"""Well-known VQGANs by short name.

Sources: licences by the repositories' model cards; parameters by the authors' READMEs (LlamaGen; Kandinsky 2.1), of the
others a quarter of the bytes of their float32 weights. The cards of the two conversions from taming-transformers name no
licence.
"""

from train_jax.weights import known_models
from train_jax.weights.known_models import KnownModel

MODELS = {
    "imagenet-f16-1024": KnownModel(
        "hf:valhalla/vqgan-imagenet-f16-1024", "72 M", "not stated", "taming-transformers' on ImageNet, 1,024 codes"
    ),
    "imagenet-f16-16384": KnownModel(
        "hf:dalle-mini/vqgan_imagenet_f16_16384", "76 M", "not stated", "the same with 16,384 codes; that of dalle-mini"
    ),
    "celebahq-f4": KnownModel(
        "hf:CompVis/ldm-celebahq-256/vqvae", "55 M", "Apache-2.0", "latent diffusion's vq-f4, faces, 8,192 codes"
    ),
    "llamagen-ds16": KnownModel(
        "hf:FoundationVision/LlamaGen/vq_ds16_c2i.pt", "72 M", "MIT", "LlamaGen's on ImageNet, 16,384 codes of unit norm"
    ),
    "llamagen-ds8": KnownModel(
        "hf:FoundationVision/LlamaGen/vq_ds8_c2i.pt", "70 M", "MIT", "the same at half the reduction, 8 pixels a code"
    ),
    "amused": KnownModel("hf:amused/amused-256/vqvae", "146 M", "openrail++", "aMUSEd's, 16 pixels a code"),
    "kandinsky-2-1": KnownModel(
        "hf:kandinsky-community/kandinsky-2-1/movq", "67 M", "Apache-2.0", "Kandinsky 2.1's MoVQ, 8 pixels a code"
    ),
}
known_models.register("vqgan", MODELS)
