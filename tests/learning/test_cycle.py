"""A night is opened once, taken up again where it stopped, and never done twice."""

import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import LearningError
from ruvllm.learning import cycle as cycles


def test_an_unfinished_night_is_taken_up_again_and_a_finished_one_followed_by_the_next(database):
    first = cycles.open_cycle(database)
    again = cycles.open_cycle(database)
    assert (again.id, again.night, again.resumed) == (first.id, 1, True)
    cycles.finish_cycle(database, first.id)
    second = cycles.open_cycle(database)
    assert second.id != first.id
    assert (second.night, second.resumed) == (2, False)


def test_a_step_is_worked_out_once_and_its_result_kept(database):
    cycle = cycles.open_cycle(database)
    calls = []
    for _ in range(2):
        result = cycles.once(database, cycle.id, "train", lambda: calls.append(1) or {"rows": 7})
        assert result == {"rows": 7}
    assert calls == [1]


def test_a_step_that_failed_is_tried_again(database):
    cycle = cycles.open_cycle(database)

    def broken():
        raise LearningError("snapshot: only 3 rows")

    with pytest.raises(LearningError):
        cycles.once(database, cycle.id, "train", broken)
    assert cycles.once(database, cycle.id, "train", lambda: {"rows": 9}) == {"rows": 9}


def test_the_last_finished_night_is_found_and_an_unfinished_one_is_named(database):
    cycle = cycles.open_cycle(database)
    with pytest.raises(LearningError, match="no night is finished"):
        cycles.finished_cycle(database)
    cycles.finish_cycle(database, cycle.id)
    assert cycles.finished_cycle(database).id == cycle.id
    with pytest.raises(LearningError, match="night 2"):
        cycles.finished_cycle(database, 2)


def test_an_unknown_cycle_is_named(database):
    with pytest.raises(LearningError, match="night-9999"):
        cycles.find_cycle(database, "night-9999")


def test_two_nights_never_run_at_once(database, database_url):
    """Whichever machine the second one begins on; when the first ends, however it ends, the next may begin."""
    other, another = Database(database_url), Database(database_url, "another-tenant")
    with cycles.alone(database):
        with pytest.raises(LearningError, match="tenant default runs already"), cycles.alone(other):
            pass
        with cycles.alone(another):
            pass
    with cycles.alone(other):
        pass
    other.close()
    another.close()


def test_a_night_whose_turn_the_server_forgot_takes_it_again_or_stops(database, database_url):
    """A restarted server holds no lock; what is left of the first night may not go on beside a second one."""
    other = Database(database_url)

    def forget():
        with database.owner() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )

    with cycles.alone(database) as still_alone:
        still_alone()
        forget()
        still_alone()
        with pytest.raises(LearningError, match="runs already"), cycles.alone(other):
            pass
        forget()
        with cycles.alone(other), pytest.raises(LearningError, match="runs already"):
            still_alone()
    other.close()


def test_a_night_is_taken_up_by_its_id_unless_it_is_finished(database):
    cycle = cycles.open_cycle(database)
    assert cycles.resume_cycle(database, cycle.id).night == cycle.night
    cycles.finish_cycle(database, cycle.id)
    with pytest.raises(LearningError, match="is finished"):
        cycles.resume_cycle(database, cycle.id)
