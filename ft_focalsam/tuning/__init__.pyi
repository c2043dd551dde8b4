from .methods import (
    TUNING_METHODS as TUNING_METHODS,
)
from .methods import (
    CommonOptions as CommonOptions,
)
from .methods import (
    apply_tuning as apply_tuning,
)
from .methods import (
    check_keeps_backbone as check_keeps_backbone,
)
from .methods import (
    choose_methods as choose_methods,
)
from .methods import (
    describe_methods as describe_methods,
)
from .methods import (
    describe_parameters as describe_parameters,
)
from .methods import (
    find_layers as find_layers,
)
from .methods import (
    register_tuning as register_tuning,
)
from .options import TuningOptions as TuningOptions
