"""The ranks of tests: what fails is told, and only a segmentation fault is tried once more."""

import os
import signal

import pytest
from rank_jobs import end, fail_on_the_last, square
from ranks import Ranks


@pytest.fixture(scope="module")
def pair():
    made = Ranks(2)
    yield made
    made.close()


def test_answers_come_by_rank_and_jobs_in_order(pair):
    pair.start(square)
    pair.start(square, 1, offset=3)
    assert pair.results() == [0, 1]
    assert pair.results() == [9]


def test_an_error_names_its_rank_and_the_next_job_runs(pair):
    with pytest.raises(AssertionError, match=r"^rank 1: Traceback (.|\n)*ValueError: no rank 1\n$"):
        pair(fail_on_the_last)
    assert pair(square) == [0, 1]


def test_a_job_is_done_once_more_after_a_segmentation_fault_and_the_next_is_not_lost(pair, tmp_path):
    pair.start(end, signum=signal.SIGSEGV, folder=tmp_path, times=1)
    pair.start(square)
    with pytest.warns(UserWarning, match=r"^rank 1 died, exit code -11: the job is done once more$"):
        assert pair.results() == [0, 1]
    assert pair.results() == [0, 1]


@pytest.mark.filterwarnings("ignore:rank 1 died")
@pytest.mark.parametrize(("signum", "calls"), [(signal.SIGSEGV, 2), (signal.SIGKILL, 1), (signal.SIGABRT, 1)])
def test_a_second_one_or_any_other_death_is_a_failure(pair, tmp_path, signum, calls):
    with pytest.raises(AssertionError, match=rf"^rank 1 died, exit code {-signum}$"):
        pair(end, signum=signum, folder=tmp_path, times=9)
    assert len(os.listdir(tmp_path)) == calls
    assert pair(square) == [0, 1]
