"""Well-known DALL-Es and unCLIPs by short name, and priors for karlo's decoder.

Sources: licences by the repositories' model cards; parameters of dalle-mini a quarter of the bytes of its float32 weights,
of karlo (prior, decoder and super resolution, without CLIP) by github.com/kakaobrain/karlo, of the other priors by the
authors' model cards (Kandinsky: ai-forever/Kandinsky_2.1).
"""

from train_jax.weights import known_models
from train_jax.weights.known_models import KnownModel

DALLE = {
    "mini": KnownModel(
        "hf:dalle-mini/dalle-mini", "437 M", "Apache-2.0", "dalle-mini, for the codes of vqgan:imagenet-f16-16384"
    ),
}
UNCLIP = {
    "karlo": KnownModel("hf:kakaobrain/karlo-v1-alpha", "3.3 B", "CreativeML Open RAIL-M", "karlo, 256 pixels"),
    "eclipse-prior": KnownModel(
        "hf:ECLIPSE-Community/ECLIPSE_Karlo_Prior", "33 M", "openrail++", "a prior of one step, in place of karlo's"
    ),
    "kandinsky-2-1-prior": KnownModel(
        "hf:kandinsky-community/kandinsky-2-1-prior", "1 B", "Apache-2.0", "Kandinsky's prior, in place of karlo's"
    ),
}
known_models.register("dalle", DALLE)
known_models.register("unclip", UNCLIP)
