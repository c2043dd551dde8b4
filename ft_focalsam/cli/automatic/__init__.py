"""What `ft-focalsam train FOLDER` does without further settings: find the images, and choose all else."""

from .choose import Choice, choose
from .layout import Layout, find_layout

__all__ = ["Choice", "Layout", "choose", "find_layout"]
