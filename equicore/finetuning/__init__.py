"""Fine-tuning: part of a model or all of it, and towards equivariance.

`fit` trains with any optimiser on any iterable of batches. Instead of making a model equivariant by
construction, equivariance-regularised fine-tuning adds a penalty to the task's loss that is zero
for an equivariant model: it adds nothing to the model's cost afterwards, and nothing is exact.
"""

from equicore.capture import kept_modes
from equicore.finetuning.fitting import fit
from equicore.finetuning.penalty import (
    EquivarianceLoss,
    GroupAugmentation,
    kl_divergence,
    squared_error,
)
from equicore.finetuning.selection import Selection, select_weight
