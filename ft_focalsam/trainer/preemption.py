"""Signals that end a training in good order: at the end of a step, on all processes, with a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from transformers import TrainerCallback

# A launcher passes on to its processes what the terminal has sent them already; within so many seconds that is once.
REPEAT_SECONDS = 0.5


class TrainingTerminated(SystemExit):
    """Training was stopped by SIGTERM, after a checkpoint: the process is to exit with 143 = 128 + 15.

    Args:
        message (`str`): What to tell the user.
    """

    def __init__(self, message: str):
        super().__init__(128 + signal.SIGTERM)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopOnSignal(TrainerCallback):
    """Ends training at the end of the step in which some process got SIGTERM or SIGINT, with a checkpoint.

    A second SIGINT interrupts at once. Handlers of the user's own stay in place, and then nothing changes.

    Attributes:
        received (`int`): The signal that this process got; 0 for none.
        agreed (`int`): The signal at which all processes stop; 0 for none.
    """

    def __init__(self):
        self.received = self.agreed = 0
        self._since = 0.0
        self._pid = os.getpid()

    @contextmanager
    def listening(self, *, says: bool = True) -> Iterator[None]:
        """Handle both signals while the block runs.

        Args:
            says (`bool`): Whether to write to stderr that the signal arrived.
        """
        self._says = says
        usual = {signal.SIGTERM: (signal.SIG_DFL,), signal.SIGINT: (signal.default_int_handler, signal.SIG_DFL)}
        replaced = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            replaced = {number: signal.getsignal(number) for number, known in usual.items()}
            replaced = {number: handler for number, handler in replaced.items() if handler in usual[number]}
        for number in replaced:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in replaced.items():
                signal.signal(number, handler)

    def on_step_end(self, args, state, control, **kwargs):
        self.agreed = self.received
        if args.world_size > 1 and dist.is_initialized():
            number = torch.tensor(self.received, device=args.device)
            dist.all_reduce(number, op=dist.ReduceOp.MAX)
            self.agreed = int(number)
        if self.agreed:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # there may be no time for it

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.agreed:  # the epoch is not over
            control.should_save = control.should_evaluate = control.should_log = False

    def _handle(self, number: int, frame) -> None:
        if os.getpid() != self._pid:  # a process that was forked meanwhile
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self.received == number == signal.SIGINT and now - self._since > REPEAT_SECONDS:
            raise KeyboardInterrupt
        if not self.received:
            self._since = now
            if self._says:
                hint = " (once more stops at once)" if number == signal.SIGINT else ""
                name = signal.Signals(number).name
                os.write(2, f"\n{name}: finishing the step and saving a checkpoint{hint}.\n".encode())
        self.received = max(self.received, number)


class ShieldedWorker:
    """A worker of a DataLoader goes on when the whole process group is signalled: its batches are still needed.

    Args:
        start (`Callable`, *optional*): What else to do at its start.
    """

    def __init__(self, start: Callable[[int], None] | None):
        self.start = start

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.start is not None:
            self.start(worker)
