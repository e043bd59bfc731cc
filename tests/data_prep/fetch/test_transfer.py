import socket
from types import SimpleNamespace

import pycurl

from diptych_shards.fetch import transfer as transfer_module
from diptych_shards.fetch.answer import Wanted
from diptych_shards.fetch.outcome import FetchReason
from diptych_shards.fetch.transfer import BodyMemory, Limits, Transfer
from diptych_shards.fetch.url import parse_url


def test_a_pause_for_memory_while_the_caller_is_away_counts_once(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(transfer_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    limits = Limits(
        connect_seconds=1.0, header_seconds=1000.0, window_seconds=1000.0, min_bytes_per_second=1.0, ca_file=None
    )
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as opened:
        transfer = Transfer(limits, "agent", BodyMemory(), lambda address: opened)
        url = parse_url(f"http://127.0.0.1:{silent.getsockname()[1]}/a.jpg")
        transfer.begin(url, None, Wanted(lambda status, headers: True, 1000), seconds=10.0, now=clock.now)
        multi = pycurl.CurlMulti()
        multi.add_handle(transfer.handle)
        multi.perform()  # only a transfer that has started can be paused

        transfer.pause()
        clock.now += 5.0
        transfer.excuse(5.0)
        clock.now += 1.0
        transfer.resume()
        assert transfer.overdue(115.9) is None
        assert transfer.overdue(116.0) == (FetchReason.TIMEOUT, "timed out")
        multi.remove_handle(transfer.handle)
        multi.close()
