"""Predictions in the background: order, filling a batch, errors that stay with their photo."""

import threading

import pytest

from fathom.runtime.submission import Submissions


def test_what_waits_goes_together_and_errors_stay_alone():
    gate, sizes, submissions = threading.Event(), [], Submissions(1, 20)

    def work(some):
        gate.wait()
        sizes.append(len(some))
        if 5 in some:
            raise ValueError("five")
        return [2 * one for one in some]

    futures = [submissions.submit(work, "kind", 4, number) for number in range(10)]
    others = [submissions.submit(work, "another kind", 4, number) for number in (10, 11)]
    gate.set()
    assert [future.result(5) for number, future in enumerate(futures) if number != 5] == [2 * number for number in range(10) if number != 5]
    with pytest.raises(ValueError, match="five"):
        futures[5].result(5)
    assert [future.result(5) for future in others] == [20, 22]
    assert sizes[0] <= 4 and sum(sizes) == 12 + max(sizes) and max(sizes) == 4  # the group with 5 in it came again, one by one
    submissions.close()
    with pytest.raises(ValueError, match="closed"):
        submissions.submit(work, "kind", 4, 1)


def test_closing_drops_what_waits():
    gate, began, submissions = threading.Event(), threading.Event(), Submissions(1, 20)

    def work(some):
        began.set()
        gate.wait()
        return some

    first, second = submissions.submit(work, 0, 1, 1), submissions.submit(work, 0, 1, 2)
    began.wait()
    threading.Timer(0.05, gate.set).start()
    submissions.close()
    assert first.result(5) == 1 and second.cancelled()


def test_submitting_blocks_while_enough_wait():
    gate, submissions, done = threading.Event(), Submissions(1, 2), []
    work = lambda some: gate.wait() and some  # noqa: E731
    thread = threading.Thread(target=lambda: done.extend(submissions.submit(work, 0, 1, number) for number in range(5)))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive() and len(done) == 3
    gate.set()
    thread.join(5)
    assert [future.result(5) for future in done] == [[number] for number in range(5)] or len(done) == 5
    submissions.close()
