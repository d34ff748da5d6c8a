"""Provide the update rules by name, their registry, and :mod:`fastmomentum.rules.stages`."""

from fastmomentum.rules import stages as stages
from fastmomentum.rules.base import Rule as Rule
from fastmomentum.rules.momentum import classical as classical
from fastmomentum.rules.momentum import classical_nesterov as classical_nesterov
from fastmomentum.rules.momentum import ema as ema
from fastmomentum.rules.momentum import ema_nesterov as ema_nesterov
from fastmomentum.rules.momentum import heavy_ball as heavy_ball
from fastmomentum.rules.momentum import nesterov_positions as nesterov_positions
from fastmomentum.rules.momentum import pytorch as pytorch
from fastmomentum.rules.momentum import pytorch_nesterov as pytorch_nesterov
from fastmomentum.rules.momentum import sgd as sgd
from fastmomentum.rules.registry import find as find
from fastmomentum.rules.registry import names as names
from fastmomentum.rules.registry import register as register
from fastmomentum.rules.variants import aggmo as aggmo
from fastmomentum.rules.variants import aggregated as aggregated
from fastmomentum.rules.variants import ema_corrected as ema_corrected
from fastmomentum.rules.variants import lion as lion
from fastmomentum.rules.variants import quasi_hyperbolic as quasi_hyperbolic
from fastmomentum.rules.variants import signum as signum
