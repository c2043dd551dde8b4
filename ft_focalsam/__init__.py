"""Fine-tune vision foundation models on long-tailed images with Focal-SAM.

Names and sub-packages are imported when they are first used, so that `ft_focalsam.sharpness` needs torch alone.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
