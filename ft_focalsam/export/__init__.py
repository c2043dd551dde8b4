"""Export of a tuned classifier to other programs: one file a format, each checked against the classifier.

`merge` folds what was tuned into plain weights; `FORMATS` has the function of each format by its name.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
