"""Fine-tuning: part of a model or all of it, and towards equivariance.

`fit` trains with any optimiser on any iterable of batches. Instead of making a model equivariant by
construction, equivariance-regularised fine-tuning adds a penalty to the task's loss that is zero
for an equivariant model: it adds nothing to the model's cost afterwards, and nothing is exact.
`methods` has both, and what to compare them with.
"""

from equicore.capture import Observed, kept_modes
from equicore.finetuning.fitting import Diverged, fit
from equicore.finetuning.methods import (
    Augmentation,
    Canonicalization,
    Equitune,
    LambdaEquitune,
    Method,
    Penalty,
    Plain,
    Problem,
    Symmetry,
    Tuned,
    deviation,
)
from equicore.finetuning.penalty import (
    EquivarianceLoss,
    GroupAugmentation,
    by_part,
    kl_divergence,
    relative_error,
    squared_error,
)
from equicore.finetuning.selection import (
    Selection,
    cross_validate,
    folds,
    select_weight,
)
