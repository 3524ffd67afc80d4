"""Sentences for labels: templates such as `a photo of a {}.`, given one by one or as the lines of a file."""

from collections.abc import Sequence

from train_jax.arguments import lines


def read_templates(templates: Sequence[str]) -> list[str]:
    """Sentences with `{}` for a label; `@FILE` stands for the lines of a file.

    Raises ValueError if there are none, or one has no `{}`; OSError for a file that cannot be opened.
    """
    found = lines(templates, "a template")
    if not found:
        raise ValueError("there are no templates; write sentences such as 'a photo of a {}.'")
    for template in found:
        if "{}" not in template:
            raise ValueError(
                f"template {template!r} has no {{}}: write where the label goes, as in 'a photo of a {{}}.'"
            )
    return found


def sentences(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every label in every template, the templates of one label together."""
    return [template.replace("{}", label) for label in labels for template in templates]
