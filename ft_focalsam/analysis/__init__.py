"""How sharp the loss of a trained model is, class by class: sharpness, Hessian, loss landscapes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
