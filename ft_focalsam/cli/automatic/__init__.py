"""What `ft-focalsam train FOLDER` does without further settings: find the images, and choose all else."""

from .choose import Choice, choose
from .command_line import as_words, given_keys, settings_of_folder
from .layout import Layout, find_layout

__all__ = ["Choice", "Layout", "as_words", "choose", "find_layout", "given_keys", "settings_of_folder"]
