"""Options of the class-conditional or unconditional prior."""

import dataclasses

from train_jax.options import option
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.stage2.model import CodeTransformerOptions


@dataclasses.dataclass(frozen=True)
class PriorOptions(CodeTransformerOptions):
    """Options of the transformer and its classes."""

    classes: int = option(0, "number of class labels; 0: images without labels", least=0)

    def condition(self, condition_dropout: float) -> ClassCondition:
        """Builds the class condition. Without labels the condition is always droppable."""
        return ClassCondition(self.classes, droppable=not self.classes or condition_dropout > 0)
