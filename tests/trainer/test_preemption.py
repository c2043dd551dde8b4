"""What a signal does to this very process; whole runs are in test_resumable.py."""

import os
import signal
import threading
import time

import pytest
from transformers import TrainerControl

from ft_focalsam.trainer.preemption import REPEAT_SECONDS, StopOnSignal, TrainingTerminated


class OneProcess:
    world_size = 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_training_at_the_end_of_the_step(number, capfd):
    before = signal.getsignal(number)
    stop, control = StopOnSignal(), TrainerControl(should_evaluate=True)
    with stop.listening():
        stop.on_step_end(OneProcess, None, control)
        assert not control.should_training_stop and control.should_evaluate
        os.kill(os.getpid(), number)
        stop.on_step_end(OneProcess, None, control)
    assert (control.should_training_stop, control.should_save, control.should_evaluate) == (True, True, False)
    assert stop.agreed == number and signal.getsignal(number) is before
    assert f"{signal.Signals(number).name}: finishing the step and saving a checkpoint" in capfd.readouterr().err


def test_a_second_interrupt_stops_at_once_unless_a_launcher_passes_on_the_first():
    stop = StopOnSignal()
    with stop.listening(says=False):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(REPEAT_SECONDS + 0.1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_of_the_users_own_stay_in_place():
    got, before = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        stop = StopOnSignal()
        with stop.listening(says=False):
            os.kill(os.getpid(), signal.SIGTERM)
        assert (got, stop.received) == ([signal.SIGTERM], 0)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_beside_the_main_thread_nothing_is_handled():
    seen = []

    def run():
        with StopOnSignal().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_forked_process_dies_of_the_signal_as_it_would_without_us():
    with StopOnSignal().listening(says=False):
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_left_alone_the_exception_exits_with_143():
    error = TrainingTerminated("Stopped.")
    assert isinstance(error, SystemExit) and error.code == 143 and str(error) == "Stopped."
