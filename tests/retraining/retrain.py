"""`ft-focalsam retrain`, as a script."""

from accelerate import PartialState

from ft_focalsam.cli.retrain import main
from ft_focalsam.errors import told_in_one_sentence

with told_in_one_sentence():
    main()
PartialState().destroy_process_group()
