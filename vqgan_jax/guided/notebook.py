"""A form for notebooks: a prompt, sliders, a button, and the picture while it is painted.

    guided.form(vq, clip, "a castle", size=(128, 128))
"""

import io
from typing import Any

import numpy as np

from train_jax.data.errors import BrokenSample
from train_jax.errors import ConfigError, UserError
from train_jax.pictures import enlarged_grid
from vqgan_jax.guided.colour import over_white
from vqgan_jax.guided.options import resolve
from vqgan_jax.guided.painting import Clips, Painting, paint
from vqgan_jax.vqgan import Vqgan

# Ranges of the sliders: least, most and step; `lr` is the power of ten.
_SLIDERS = {"steps": (1, 1000, 1), "cuts": (1, 64, 1), "cut_min": (0.0, 1.0, 0.05), "save_every": (1, 100, 1)}
_LR = (-3.0, 1.0, 0.1)


class Form:
    """Widgets of a form; `form` makes it.

    Attributes:
      widget: all widgets.
      painting: the last painting.
    """

    def __init__(self, vq: Vqgan | None, clip: Clips, prompt: str, seed: int, options: dict[str, Any]):
        try:
            import ipywidgets
        except ImportError as error:
            raise ConfigError("form needs ipywidgets: pip install 'multimodal-jax[notebooks]'") from error
        self.vq, self.clip, self.options = vq, clip, options
        self.painting: Painting | None = None
        initial = resolve(options).to_flat_dict()
        self.prompt = ipywidgets.Text(value=prompt, description="prompt")
        self.seed = ipywidgets.IntText(value=seed, description="seed")
        self.sliders = {"lr": ipywidgets.FloatLogSlider(
            value=initial["lr"], min=_LR[0], max=_LR[1], step=_LR[2], description="lr"
        )}  # fmt: skip
        for name, (least, most, step) in _SLIDERS.items():
            slider = ipywidgets.FloatSlider if isinstance(least, float) else ipywidgets.IntSlider
            value = initial[name]
            most = max(most, value)
            self.sliders[name] = slider(value=value, min=least, max=most, step=step, description=name)
        self.button = ipywidgets.Button(description="Paint", button_style="primary")
        self.status, self.picture = ipywidgets.Label(), ipywidgets.Image(format="png")
        self.button.on_click(lambda _: self.paint())
        inputs = [self.prompt, self.seed, *self.sliders.values(), self.button, self.status]
        self.widget = ipywidgets.HBox([ipywidgets.VBox(inputs), self.picture])

    def _repr_mimebundle_(self, **arguments) -> Any:
        """Shows the form at the end of a cell."""
        return self.widget._repr_mimebundle_(**arguments)

    def paint(self) -> None:
        """Paints with the values of the widgets, and shows each snapshot. Errors of the user are shown as text."""
        values = self.options | {name: slider.value for name, slider in self.sliders.items()}
        self.button.disabled, self.status.value = True, "compiling …"
        try:
            self.painting = paint(
                self.vq, self.clip, self.prompt.value, seed=self.seed.value, progress=False, preview=self._show, **values
            )
            self.status.value = f"{self.painting.steps[0]} steps, loss {self.painting.losses[0, -1]:.4f}"
        except (UserError, BrokenSample, FloatingPointError, OSError) as error:
            self.status.value = str(error)
        finally:
            self.button.disabled = False

    def _show(self, step: int, images: np.ndarray, losses: np.ndarray) -> None:
        """Shows the picture after some steps."""
        data = io.BytesIO()
        enlarged_grid([list(over_white(images))]).save(data, "PNG")
        self.picture.value, self.status.value = data.getvalue(), f"step {step}, loss {losses[0, -1]:.4f}"


def form(vq: Vqgan | None, clip: Clips, prompt: str = "", seed: int = 0, **options) -> Form:
    """Makes a form for a notebook, which the cell shows whose last line it is.

    Args:
      vq, clip: as in `guided.paint`.
      prompt, seed, options: start values of the widgets; options without a slider are passed on to `guided.paint`.

    Raises ConfigError without ipywidgets.
    """
    return Form(vq, clip, prompt, seed, options)
