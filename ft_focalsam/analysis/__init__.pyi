from .agreement import (
    change_by_group as change_by_group,
)
from .agreement import (
    changes_with_accuracy as changes_with_accuracy,
)
from .agreement import (
    rank_correlation as rank_correlation,
)
from .agreement import (
    with_accuracy as with_accuracy,
)
from .ascent import (
    Sharpness as Sharpness,
)
from .ascent import (
    measure_sharpness as measure_sharpness,
)
from .class_loss import (
    ClassLoss as ClassLoss,
)
from .hessian import (
    largest_eigenvalue as largest_eigenvalue,
)
from .hessian import (
    standard_error as standard_error,
)
from .hessian import (
    trace_probes as trace_probes,
)
from .landscape import (
    filter_normalised as filter_normalised,
)
from .landscape import (
    line as line,
)
from .landscape import (
    plane as plane,
)
from .landscape import (
    weight_norm as weight_norm,
)
from .measure import (
    MEASURES as MEASURES,
)
from .measure import (
    Measurement as Measurement,
)
from .measure import (
    MeasureOptions as MeasureOptions,
)
from .measure import (
    measure as measure,
)
from .page import (
    write_analysis as write_analysis,
)
from .runs import (
    ImageOptions as ImageOptions,
)
from .runs import (
    RunLosses as RunLosses,
)
from .runs import (
    SavedRun as SavedRun,
)
from .runs import (
    read_runs as read_runs,
)
