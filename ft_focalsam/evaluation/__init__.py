"""How good a model is on each part of a long-tailed data set, as numbers, as tables, as drawings and as a page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
