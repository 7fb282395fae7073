import socket

import pytest

from dailies.canonical import write_atomically
from dailies.scenarios.leaks import no_files, no_ports
from dailies.scenarios.processes import free_port, port_in_use

pytestmark = pytest.mark.unit


def test_a_folder_with_finished_files_is_clean(tmp_path):
    write_atomically(tmp_path / "deep" / "file.json", [b"{}"])
    assert no_files(tmp_path).passed


def test_a_half_written_file_is_found_wherever_it_is(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".file.json.0a1b.tmp").touch()
    check = no_files(tmp_path)
    assert not check.passed
    assert check.actual == ["deep/.file.json.0a1b.tmp"]
    assert no_files(tmp_path, allowed=["deep/.file*"]).passed
    assert not no_files(tmp_path, allowed=["other/*"]).passed


def test_a_folder_that_is_not_there_is_not_clean(tmp_path):
    assert not no_files(tmp_path / "elsewhere").passed


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_listening_port_is_found_until_it_is_closed(family):
    port = free_port()
    with socket.socket(family) as server:
        server.bind(("::1" if family is socket.AF_INET6 else "127.0.0.1", port))
        server.listen()
        check = no_ports([port])
        assert not check.passed
        assert check.actual == [port]
    assert no_ports([port]).passed
    assert not port_in_use(port)
