"""Prompt templates such as `a photo of a {}.` for zero-shot classification."""

from collections.abc import Sequence

from train_jax.arguments import lines


def read_templates(templates: Sequence[str]) -> list[str]:
    """Reads prompt templates with `{}` for the label. `@FILE` stands for the lines of a file.

    Raises ValueError if there are no templates or a template has no `{}`, and OSError if a file cannot be opened.
    """
    templates = lines(templates, "a template")
    if not templates:
        raise ValueError("there are no templates; pass templates such as 'a photo of a {}.'")
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f"template {template!r} has no {{}}: write where the label goes, as in 'a photo of a {{}}.'"
            )
    return templates


def fill_templates(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Fills every template with every label. The prompts of one label are adjacent."""
    return [template.replace("{}", label) for label in labels for template in templates]
