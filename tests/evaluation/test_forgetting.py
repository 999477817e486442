"""Transfer over a sequence of tasks, against matrices computed by hand."""

import numpy as np
import pytest

from ruvllm.errors import InputError
from ruvllm.evaluation.forgetting import transfer

UNREAD = np.nan


def test_average_backward_transfer_and_maximum_drop_by_hand():
    got = transfer(np.array([[0.8, UNREAD, UNREAD], [0.9, 0.7, UNREAD], [0.6, 0.75, 0.5]]))
    assert got.average_accuracy == pytest.approx((0.6 + 0.75 + 0.5) / 3)
    assert got.backward_transfer == pytest.approx((-0.2 + 0.05) / 2)
    assert got.maximum_drop == pytest.approx(0.3)  # from 0.9 after the second task, not from 0.8


def test_nothing_forgotten_is_no_drop():
    got = transfer(np.array([[0.5, 0.0], [0.6, 0.7]]))
    assert got.maximum_drop == 0
    assert got.backward_transfer == pytest.approx(0.1)


@pytest.mark.parametrize("bad", [
    np.ones((1, 1)), np.ones((2, 3)), np.array([[1.2, 0], [1, 1]]), np.array([[UNREAD, 0], [1, 1]]),
])  # fmt: skip
def test_what_is_no_matrix_of_accuracies_is_refused(bad):
    with pytest.raises(InputError, match="accuracies"):
        transfer(bad)
