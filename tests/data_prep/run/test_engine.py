"""Engines: where they do work, and the errors if they cannot."""

import os
import socket

import pytest

from diptych.errors import UserError
from diptych_shards.cli import main
from diptych_shards.run.engine import LocalEngine, RayEngine


def die(number):
    os._exit(11)


def own_process(number):
    return os.getpid()


def give_up(number):
    return f"gave up {number}"


def test_a_task_that_kills_its_process_is_given_up_even_with_one_process():
    assert list(LocalEngine(1).map(die, [1], lost=give_up, may_crash=True)) == ["gave up 1"]
    assert list(LocalEngine(4).map(die, [1], lost=give_up, may_crash=True)) == ["gave up 1"]


def test_one_process_means_this_process_unless_the_work_may_crash():
    assert list(LocalEngine(1).map(own_process, [1, 2])) == [os.getpid()] * 2
    assert list(LocalEngine(1).map(own_process, [])) == []


def test_an_address_where_no_ray_cluster_listens_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=rf"no Ray cluster at 127\.0\.0\.1:{port}: .*refused"):
        list(RayEngine(f"127.0.0.1:{port}").map(own_process, [1]))


def test_an_address_of_ray_without_ray_is_refused(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a red car")
    words = [str(tmp_path / "a.txt"), str(tmp_path / "out"), "--ray-address", "head:6379"]
    assert main(["queries", *words]) == 2
    assert "--ray-address head:6379 is for --engine ray" in capsys.readouterr().err
