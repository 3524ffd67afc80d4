"""Prompt templates such as `a photo of a {}.` for zero-shot classification, and published lists of them by name."""

from collections.abc import Mapping, Sequence

from train_jax.arguments import lines

# The lists published with CLIP (github.com/openai/CLIP, MIT licence): `openai-imagenet` and its subset of seven in
# notebooks/Prompt_Engineering_for_ImageNet.ipynb, the others in data/prompts.md. `openai-cifar` is that of CIFAR-10 and
# CIFAR-100. KITTI's and PASCAL VOC's are left out: the labels are the prompts of one, and the other's is openai-simple.
LISTS: Mapping[str, tuple[str, ...]] = {
    "openai-imagenet": (
        "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}.",
        "a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}.",
        "a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
        "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}.",
        "a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}.",
        "a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}.", "a painting of a {}.",
        "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
        "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.", "a blurry photo of the {}.",
        "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.", "a {} in a video game.",
        "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}.", "a photo of a {}.", "the origami {}.",
        "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}.", "a origami {}.",
        "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.", "a photo of the clean {}.",
        "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
        "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.", "a embroidered {}.",
        "a pixelated photo of a {}.", "itap of the {}.", "a jpeg corrupted photo of the {}.", "a good photo of a {}.",
        "a plushie {}.", "a photo of the nice {}.", "a photo of the small {}.", "a photo of the weird {}.",
        "the cartoon {}.", "art of the {}.", "a drawing of the {}.", "a photo of the large {}.",
        "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.", "itap of a {}.",
        "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.", "a photo of a small {}.",
        "a tattoo of the {}.",
    ),
    "openai-imagenet-7": (
        "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
        "art of the {}.", "a photo of the small {}.",
    ),
    "openai-simple": ("a photo of a {}.",),
    "openai-birdsnap": ("a photo of a {}, a type of bird.",),
    "openai-cifar": (
        "a photo of a {}.", "a blurry photo of a {}.", "a black and white photo of a {}.", "a low contrast photo of a {}.",
        "a high contrast photo of a {}.", "a bad photo of a {}.", "a good photo of a {}.", "a photo of a small {}.",
        "a photo of a big {}.", "a photo of the {}.", "a blurry photo of the {}.", "a black and white photo of the {}.",
        "a low contrast photo of the {}.", "a high contrast photo of the {}.", "a bad photo of the {}.",
        "a good photo of the {}.", "a photo of the small {}.", "a photo of the big {}.",
    ),
    "openai-caltech101": (
        "a photo of a {}.", "a painting of a {}.", "a plastic {}.", "a sculpture of a {}.", "a sketch of a {}.",
        "a tattoo of a {}.", "a toy {}.", "a rendition of a {}.", "a embroidered {}.", "a cartoon {}.",
        "a {} in a video game.", "a plushie {}.", "a origami {}.", "art of a {}.", "graffiti of a {}.",
        "a drawing of a {}.", "a doodle of a {}.", "a photo of the {}.", "a painting of the {}.", "the plastic {}.",
        "a sculpture of the {}.", "a sketch of the {}.", "a tattoo of the {}.", "the toy {}.", "a rendition of the {}.",
        "the embroidered {}.", "the cartoon {}.", "the {} in a video game.", "the plushie {}.", "the origami {}.",
        "art of the {}.", "graffiti of the {}.", "a drawing of the {}.", "a doodle of the {}.",
    ),
    "openai-clevr-counts": ("a photo of {} objects.",),
    "openai-country211": (
        "a photo i took in {}.", "a photo i took while visiting {}.", "a photo from my home country of {}.",
        "a photo from my visit to {}.", "a photo showing the country of {}.",
    ),
    "openai-dtd": (
        "a photo of a {} texture.", "a photo of a {} pattern.", "a photo of a {} thing.", "a photo of a {} object.",
        "a photo of the {} texture.", "a photo of the {} pattern.", "a photo of the {} thing.", "a photo of the {} object.",
    ),
    "openai-eurosat": (
        "a centered satellite photo of {}.", "a centered satellite photo of a {}.", "a centered satellite photo of the {}.",
    ),
    "openai-fgvc-aircraft": ("a photo of a {}, a type of aircraft.", "a photo of the {}, a type of aircraft.",),
    "openai-fer2013": (
        "a photo of a {} looking face.", "a photo of a face showing the emotion: {}.", "a photo of a face looking {}.",
        "a face that looks {}.", "they look {}.", "look at how {} they are.",
    ),
    "openai-flowers102": ("a photo of a {}, a type of flower.",),
    "openai-food101": ("a photo of {}, a type of food.",),
    "openai-gtsrb": (
        'a zoomed in photo of a "{}" traffic sign.', 'a centered photo of a "{}" traffic sign.',
        'a close up photo of a "{}" traffic sign.',
    ),
    "openai-hateful-memes": ("a {}.",),
    "openai-kinetics700": (
        "a photo of {}.", "a photo of a person {}.", "a photo of a person using {}.", "a photo of a person doing {}.",
        "a photo of a person during {}.", "a photo of a person performing {}.", "a photo of a person practicing {}.",
        "a video of {}.", "a video of a person {}.", "a video of a person using {}.", "a video of a person doing {}.",
        "a video of a person during {}.", "a video of a person performing {}.", "a video of a person practicing {}.",
        "a example of {}.", "a example of a person {}.", "a example of a person using {}.",
        "a example of a person doing {}.", "a example of a person during {}.", "a example of a person performing {}.",
        "a example of a person practicing {}.", "a demonstration of {}.", "a demonstration of a person {}.",
        "a demonstration of a person using {}.", "a demonstration of a person doing {}.",
        "a demonstration of a person during {}.", "a demonstration of a person performing {}.",
        "a demonstration of a person practicing {}.",
    ),
    "openai-mnist": ('a photo of the number: "{}".',),
    "openai-oxford-pets": ("a photo of a {}, a type of pet.",),
    "openai-patch-camelyon": ("this is a photo of {}",),
    "openai-resisc45": (
        "satellite imagery of {}.", "aerial imagery of {}.", "satellite photo of {}.", "aerial photo of {}.",
        "satellite view of {}.", "aerial view of {}.", "satellite imagery of a {}.", "aerial imagery of a {}.",
        "satellite photo of a {}.", "aerial photo of a {}.", "satellite view of a {}.", "aerial view of a {}.",
        "satellite imagery of the {}.", "aerial imagery of the {}.", "satellite photo of the {}.",
        "aerial photo of the {}.", "satellite view of the {}.", "aerial view of the {}.",
    ),
    "openai-rendered-sst2": ("a {} review of a movie.",),
    "openai-stl10": ("a photo of a {}.", "a photo of the {}.",),
    "openai-stanford-cars": (
        "a photo of a {}.", "a photo of the {}.", "a photo of my {}.", "i love my {}!", "a photo of my dirty {}.",
        "a photo of my clean {}.", "a photo of my new {}.", "a photo of my old {}.",
    ),
    "openai-sun397": ("a photo of a {}.", "a photo of the {}.",),
    "openai-ucf101": (
        "a photo of a person {}.", "a video of a person {}.", "a example of a person {}.",
        "a demonstration of a person {}.", "a photo of the person {}.", "a video of the person {}.",
        "a example of the person {}.", "a demonstration of the person {}.", "a photo of a person using {}.",
        "a video of a person using {}.", "a example of a person using {}.", "a demonstration of a person using {}.",
        "a photo of the person using {}.", "a video of the person using {}.", "a example of the person using {}.",
        "a demonstration of the person using {}.", "a photo of a person doing {}.", "a video of a person doing {}.",
        "a example of a person doing {}.", "a demonstration of a person doing {}.", "a photo of the person doing {}.",
        "a video of the person doing {}.", "a example of the person doing {}.", "a demonstration of the person doing {}.",
        "a photo of a person during {}.", "a video of a person during {}.", "a example of a person during {}.",
        "a demonstration of a person during {}.", "a photo of the person during {}.", "a video of the person during {}.",
        "a example of the person during {}.", "a demonstration of the person during {}.",
        "a photo of a person performing {}.", "a video of a person performing {}.", "a example of a person performing {}.",
        "a demonstration of a person performing {}.", "a photo of the person performing {}.",
        "a video of the person performing {}.", "a example of the person performing {}.",
        "a demonstration of the person performing {}.", "a photo of a person practicing {}.",
        "a video of a person practicing {}.", "a example of a person practicing {}.",
        "a demonstration of a person practicing {}.", "a photo of the person practicing {}.",
        "a video of the person practicing {}.", "a example of the person practicing {}.",
        "a demonstration of the person practicing {}.",
    ),
}  # fmt: skip


def read_templates(templates: Sequence[str]) -> list[str]:
    """Reads prompt templates with `{}` for the label.

    `@FILE` stands for the lines of a file, and a name of LISTS, such as openai-imagenet, for the templates of the list.
    Raises ValueError if there are no templates or a template has no `{}`, and OSError if a file cannot be opened.
    """
    templates = [template for text in lines(templates, "a template") for template in LISTS.get(text, (text,))]
    if not templates:
        raise ValueError("there are no templates; pass templates such as 'a photo of a {}.'")
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f"template {template!r} has no {{}}: write where the label goes, as in 'a photo of a {{}}.', or name a "
                f"list: {', '.join(LISTS)}"
            )
    return templates


def fill_templates(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Fills every template with every label. The prompts of one label are adjacent."""
    return [template.replace("{}", label) for label in labels for template in templates]
