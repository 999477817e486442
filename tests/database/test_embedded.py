"""The embedded server against what happens to servers: crashes, reboots, full disks, several starters."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest

from ruvllm.database.account import binaries_for, service_account
from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.errors import DatabaseError
from ruvllm.process import alive, wait_gone
from ruvllm.settings import load_settings

FAST = {"fsync": "off", "shared_buffers": "16MB", "io_method": "sync"}


def server_in(state_dir: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(load_settings({}, state_dir=state_dir), FAST)


@pytest.fixture(scope="module")
def shared_server(open_dir: Path) -> Iterator[EmbeddedPostgres]:
    """One cluster, in a path longer than a socket's may be."""
    server = server_in(open_dir / ("long-" * 30))
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: EmbeddedPostgres) -> EmbeddedPostgres:
    """It runs, and holds one committed row more."""
    shared_server.ensure()
    with psycopg.connect(shared_server.ensure()) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        connection.execute("INSERT INTO kept VALUES (1)")
    return shared_server


def rows(server: EmbeddedPostgres) -> int:
    with psycopg.connect(server.ensure()) as connection:
        (count,) = connection.execute("SELECT count(*) FROM kept").fetchone() or (0,)
    return int(count)


def pid_of(server: EmbeddedPostgres) -> int:
    pid = server.status().pid
    assert pid is not None
    return pid


def processes(server: EmbeddedPostgres) -> list[psutil.Process]:
    postmaster = psutil.Process(pid_of(server))
    return [postmaster, *postmaster.children()]


def ensure_in_child(state_dir: Path, prelude: str = "") -> subprocess.CompletedProcess[str]:
    """`ensure` in a process of its own, which then ends; prints the postmaster's pid."""
    code = f"""
from pathlib import Path
from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.settings import load_settings
{prelude}
server = EmbeddedPostgres(load_settings({{}}, state_dir=Path({str(state_dir)!r})), {FAST!r})
server.ensure()
print(server.status().pid)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_is_found_again_and_closed_to_others(server: EmbeddedPostgres) -> None:
    before = pid_of(server)
    dsn = server.ensure()
    status = server.status()
    assert (status.running, status.pid, status.version) == (True, before, "18")
    password = psycopg.conninfo.conninfo_to_dict(dsn)["password"]
    assert password
    assert str(password) not in status.dsn
    state = server.log.parents[2]
    assert stat.S_IMODE((state / "postgres" / "password").stat().st_mode) == 0o600
    with psycopg.connect(dsn) as connection:
        (socket_dir, addresses, checksums) = connection.execute(
            "SELECT current_setting('unix_socket_directories'), current_setting('listen_addresses'), "
            "current_setting('data_checksums')"
        ).fetchone() or ("", "", "")
    assert (addresses, checksums) == ("", "on")
    assert stat.S_IMODE(Path(socket_dir).stat().st_mode) == 0o700
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(dsn.replace(str(password), "wrong"))


def test_two_starters_make_one_server_that_outlives_them(open_dir: Path) -> None:
    state = open_dir / "race"
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ensure_in_child, (state, state))
    try:
        assert first.returncode == second.returncode == 0, first.stderr + second.stderr
        assert first.stdout == second.stdout
        assert alive(psutil.Process(int(first.stdout)))
    finally:
        server_in(state).stop()


@pytest.mark.parametrize("everything", [False, True])
def test_survives_kill_9(server: EmbeddedPostgres, everything: bool) -> None:
    before, victims = rows(server), processes(server)
    for victim in victims if everything else victims[:1]:
        victim.kill()
    wait_gone(victims[:1], 5)
    assert rows(server) == before


def test_survives_an_orphan_that_holds_the_shared_memory(server: EmbeddedPostgres) -> None:
    before = rows(server)
    with psycopg.connect(server.ensure()) as connection:
        orphan = psutil.Process(connection.info.backend_pid)
        postmaster = psutil.Process(pid_of(server))
        orphan.suspend()
        postmaster.kill()
        wait_gone([postmaster], 5)
        assert rows(server) == before
        assert not alive(orphan)


def test_survives_a_reboot_that_gave_the_pid_to_another(server: EmbeddedPostgres) -> None:
    before, data = rows(server), server.status().data_dir
    stale = (data / "postmaster.pid").read_text().split("\n", 1)[1]
    server.stop()
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{stale}")  # this very process, alive and not Postgres
    assert not server.status().running
    server.stop()  # and is not killed
    assert rows(server) == before


def test_survives_a_zombie_postmaster(server: EmbeddedPostgres, open_dir: Path) -> None:
    """Killed, and never reaped by the process that started it: its pid still answers to a signal."""
    before, data = rows(server), server.status().data_dir
    server.stop()
    socket_dir = open_dir / "zombie-socket"
    socket_dir.mkdir(mode=0o700)
    server._account.own(socket_dir)
    program = binaries_for(server._account, data.parent) / "postgres"
    command = [str(program), "-D", str(data.resolve()), "-c", f"unix_socket_directories={socket_dir}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd="/", **server._account.popen)  # type: ignore[call-overload]
    try:
        while not server.status().running:
            assert process.poll() is None
        process.kill()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            pass
        os.kill(process.pid, 0)  # Postgres itself takes it for alive
        assert not server.status().running
        assert rows(server) == before
    finally:
        process.wait()


@pytest.mark.parametrize("content", ["", "nonsense", "-1\n", "999999999\n/elsewhere\n"])
def test_survives_a_pid_file_that_says_nothing(server: EmbeddedPostgres, content: str) -> None:
    before, data = rows(server), server.status().data_dir
    server.stop()
    (data / "postmaster.pid").write_text(content)
    assert not server.status().running
    assert rows(server) == before


def test_waits_for_a_slow_recovery(server: EmbeddedPostgres, open_dir: Path) -> None:
    """Recovery from an archive that answers when it is let; meanwhile no starter gives up or starts another."""
    before, state, data = rows(server), server.log.parents[2], server.status().data_dir
    server.stop()
    hold = open_dir / "archive-is-slow"
    hold.touch()
    (data / "recovery.signal").touch()
    server._account.own(data / "recovery.signal")
    slow = EmbeddedPostgres(
        load_settings({}, state_dir=state),
        {**FAST, "restore_command": f"while [ -e {hold} ]; do sleep 0.05; done; false"},
    )
    with ThreadPoolExecutor(3) as pool:
        starting = pool.submit(slow.ensure)
        while "starting" not in _pid_file(data):
            assert not starting.done()
        dsn = slow._dsn(slow._password(), "ruvllm")
        with pytest.raises(psycopg.OperationalError, match=r"starting up|not yet accepting"):
            _refused(dsn)
        reviving = pool.submit(slow.revive)
        again = pool.submit(slow.ensure)
        assert not any(each.done() for each in (starting, reviving, again))
        hold.unlink()
        assert starting.result(timeout=60) == again.result(timeout=60)
        assert reviving.result(timeout=60)
    assert rows(slow) == before
    server.stop()


def _pid_file(data: Path) -> str:
    try:
        return (data / "postmaster.pid").read_text()
    except FileNotFoundError:
        return ""


def _refused(dsn: str) -> None:
    """Connect as soon as there is a socket to connect to."""
    while True:
        try:
            psycopg.connect(dsn, connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            if "No such file" not in str(error):
                raise


def test_its_settings_are_for_memory_and_win_over_the_defaults(server: EmbeddedPostgres) -> None:
    names = ("data_checksums", "synchronous_commit", "fsync", "full_page_writes", "jit", "wal_compression", "io_method")
    with psycopg.connect(server.ensure()) as connection:
        got = {name: connection.execute(f"SHOW {name}").fetchone() for name in names}
        sizes = connection.execute(
            "SELECT current_setting('autovacuum_work_mem'), current_setting('maintenance_work_mem'),"
            " current_setting('max_parallel_maintenance_workers')::int, current_setting('shared_preload_libraries')"
        ).fetchone()
    assert got == {name: ("on",) for name in names} | {
        "fsync": ("off",),  # ours, of these tests
        "jit": ("off",),
        "wal_compression": ("pglz",),
        "io_method": ("sync",),
    }
    assert sizes is not None
    assert sizes[:2] == ("64MB", "256MB")
    assert sizes[2] < (os.cpu_count() or 1)
    assert sizes[3] == ""


def test_survives_the_loss_of_its_socket_directory(server: EmbeddedPostgres) -> None:
    before = rows(server)
    host = psycopg.conninfo.conninfo_to_dict(server.ensure())["host"]
    shutil.rmtree(str(host))
    assert rows(server) == before


def test_refuses_a_socket_directory_that_others_can_enter(server: EmbeddedPostgres) -> None:
    folder = Path(str(psycopg.conninfo.conninfo_to_dict(server.ensure())["host"]))
    server.stop()
    folder.mkdir(mode=0o755)
    try:
        with pytest.raises(DatabaseError, match="mode 0700"):
            server.ensure()
    finally:
        folder.rmdir()


def test_stops_while_a_client_is_connected(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.ensure()):
        server.stop()
        server.stop()
    assert not server.status().running


def test_says_what_is_wrong_with_the_settings(server: EmbeddedPostgres) -> None:
    state = server.log.parents[2]
    server.stop()
    with pytest.raises(DatabaseError, match="no_such_setting"):
        EmbeddedPostgres(load_settings({}, state_dir=state), {"no_such_setting": "1"}).ensure()


def test_refuses_data_of_another_version(server: EmbeddedPostgres) -> None:
    server.stop()
    label = server.status().data_dir / "PG_VERSION"
    kept = label.read_text()
    try:
        label.write_text("14\n")
        with pytest.raises(DatabaseError, match=r"made by version 14, .* is 18"):
            server.ensure()
    finally:
        label.write_text(kept)


def test_a_full_disk_leaves_nothing_half_made(open_dir: Path) -> None:
    state = open_dir / "full"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, resource.RLIM_INFINITY))"
    failed = ensure_in_child(state, limit)
    assert failed.returncode == 1
    assert "DatabaseError" in failed.stderr
    assert "initdb" in failed.stderr
    assert sorted(path.name for path in state.rglob("*") if path.is_file()) == ["postgres.lock"]
    worked = ensure_in_child(state)
    server_in(state).stop()
    assert worked.returncode == 0, worked.stderr


def test_a_state_directory_that_cannot_be(open_dir: Path) -> None:
    (open_dir / "a-file").write_text("")
    with pytest.raises(DatabaseError, match="RUVLLM_STATE_DIR"):
        server_in(open_dir / "a-file" / "state").ensure()


def test_a_lost_password_is_named(server: EmbeddedPostgres) -> None:
    file = server.log.parents[2] / "postgres" / "password"
    kept = file.read_text()
    file.unlink()
    try:
        with pytest.raises(DatabaseError, match="password is missing"):
            server.ensure()
    finally:
        file.write_text(kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user can enter its own directories")
def test_root_in_a_closed_directory(tmp_path: Path) -> None:
    """Like /root: the data lies outside, the server runs as another user, and a deleted state directory begins anew."""
    tmp_path.chmod(0o700)
    state = tmp_path / "state"
    server = server_in(state)
    try:
        with psycopg.connect(server.ensure(), autocommit=True) as connection:
            connection.execute("CREATE TABLE old ()")
        home = server.status().data_dir.parent
        assert home.parent == Path("/var/lib/ruvllm")
        assert psutil.Process(pid_of(server)).uids().real == service_account().uid
        server.stop()
        shutil.rmtree(state)
        with psycopg.connect(server.ensure()) as connection:
            assert connection.execute("SELECT to_regclass('old')").fetchone() == (None,)
        assert len(list(home.glob("data-abandoned-*"))) == 1
    finally:
        server.stop()
        shutil.rmtree(server.status().data_dir.parent)


def test_databases_are_made_once(server: EmbeddedPostgres) -> None:
    dsn = server.create_database("odd name's", ("pg_trgm",))
    assert server.create_database("odd name's", ("pg_trgm",)) == dsn
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT similarity('a', 'a')").fetchone() == (1.0,)


def test_interrupt_leaves_the_lock_free(server: EmbeddedPostgres) -> None:
    state = server.log.parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time\nf = open(sys.argv[1], 'a')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
         "print('held', flush=True)\ntime.sleep(60)", str(state / "postgres.lock")], stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGKILL)
    assert server.ensure()
