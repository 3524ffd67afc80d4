"""Prompt templates such as `a photo of a {}.`, and the sentences they make of labels."""

from collections.abc import Sequence

from train_jax.arguments import lines


def read_templates(templates: Sequence[str]) -> list[str]:
    """Reads templates, sentences with `{}` in place of the label; `@FILE` stands for the lines of a file.

    Raises ValueError if there are none, or one has no `{}`; OSError for a file that cannot be opened.
    """
    templates = lines(templates, "a template")
    if not templates:
        raise ValueError("there are no templates; write sentences such as 'a photo of a {}.'")
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f"template {template!r} has no {{}}: write where the label goes, as in 'a photo of a {{}}.'"
            )
    return templates


def sentences(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Fills every template with every label; the sentences of one label are adjacent."""
    return [template.replace("{}", label) for label in labels for template in templates]
