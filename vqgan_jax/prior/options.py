"""Options of the second stage of images, of a class or of none."""

import dataclasses

from train_jax.options import option
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.stage2.model import CodeTransformerOptions


@dataclasses.dataclass(frozen=True)
class PriorOptions(CodeTransformerOptions):
    """The transformer and its classes."""

    classes: int = option(0, "labels 0 to classes - 1; 0: images without labels", least=0)

    def condition(self, condition_dropout: float) -> ClassCondition:
        """What its codes are conditioned on; without labels, images are their own guidance."""
        return ClassCondition(self.classes, droppable=not self.classes or condition_dropout > 0)
