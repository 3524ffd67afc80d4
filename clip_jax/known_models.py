"""Well-known CLIPs by short name.

Sources: parameters by open_clip's docs/model_profile.csv, of SigLIP 2 counted (a ViT-B/16 of 93 M and a text tower of 282 M
with 256,000 tokens); licences by the repositories' model cards. OpenAI's cards name none: theirs is that of
github.com/openai/CLIP.
"""

from train_jax.weights import known_models
from train_jax.weights.known_models import KnownModel

MODELS = {
    "vit-b-32-openai": KnownModel("hf:openai/clip-vit-base-patch32", "151 M", "MIT", "OpenAI's ViT-B/32, 224 pixels"),
    "vit-b-16-openai": KnownModel("hf:openai/clip-vit-base-patch16", "150 M", "MIT", "OpenAI's ViT-B/16, 224 pixels"),
    "vit-l-14-openai": KnownModel("hf:openai/clip-vit-large-patch14", "428 M", "MIT", "OpenAI's ViT-L/14, 224 pixels"),
    "vit-b-32-laion2b": KnownModel(
        "hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "151 M", "MIT", "ViT-B/32 by open_clip on LAION-2B"
    ),
    "vit-l-14-laion2b": KnownModel(
        "hf:laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "428 M", "MIT", "ViT-L/14 by open_clip on LAION-2B"
    ),
    "eva02-l-14": KnownModel(
        "hf:timm/eva02_large_patch14_clip_224.merged2b_s4b_b131k", "428 M", "MIT", "EVA-02's ViT-L/14, 224 pixels"
    ),
    "siglip-b16-224": KnownModel("hf:google/siglip-base-patch16-224", "203 M", "Apache-2.0", "SigLIP's ViT-B/16"),
    "siglip2-b16-224": KnownModel(
        "hf:google/siglip2-base-patch16-224", "375 M", "Apache-2.0", "SigLIP 2's ViT-B/16, many languages"
    ),
}
known_models.register("clip", MODELS)
