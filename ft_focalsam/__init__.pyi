from . import (
    analysis as analysis,
)
from . import (
    averaging as averaging,
)
from . import (
    data as data,
)
from . import (
    evaluation as evaluation,
)
from . import (
    export as export,
)
from . import (
    hub as hub,
)
from . import (
    losses as losses,
)
from . import (
    models as models,
)
from . import (
    sharpness as sharpness,
)
from . import (
    trainer as trainer,
)
from . import (
    tuning as tuning,
)
from .losses import make_loss as make_loss
from .models import ImageClassifier as ImageClassifier
from .models import LongTailClassifier as LongTailClassifier
from .models import LongTailClassifierConfig as LongTailClassifierConfig
from .sharpness import ClassConditionalSAM as ClassConditionalSAM
from .sharpness import FocalSAM as FocalSAM
from .sharpness import class_weights as class_weights
from .sharpness import scheduled_rho as scheduled_rho
from .trainer import FocalSAMTrainer as FocalSAMTrainer
from .trainer import FocalSAMTrainingArguments as FocalSAMTrainingArguments
from .tuning import TuningOptions as TuningOptions
from .tuning import apply_tuning as apply_tuning

__version__: str
