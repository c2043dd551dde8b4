from .card import (
    make_card as make_card,
)
from .card import (
    write_card as write_card,
)
from .files import (
    files_to_push as files_to_push,
)
from .push import (
    check_push as check_push,
)
from .push import (
    push_folder as push_folder,
)
from .run_file import (
    describe_run as describe_run,
)
from .run_file import (
    read_run as read_run,
)
from .run_file import (
    write_run as write_run,
)
from .space import (
    push_space as push_space,
)
from .trainer_push import (
    HubMixin as HubMixin,
)
