"""Buckets lent over the network: by whom they are fetched, and what becomes of a fetch that goes wrong."""

import asyncio
import random
import socket
import threading
import time
from contextlib import closing, suppress
from http.client import HTTPConnection

import pytest
import torch

from agentvision.engine import lend
from agentvision.engine.carry import tensors_in
from agentvision.engine.lend import ByNetwork, Listener, Network, address_of, fetched
from agentvision.engine.types import EngineError

from .faulty_network import FaultyNetwork


@pytest.fixture
def listener():
    listener = Listener("127.0.0.1", 0)
    yield listener
    listener.close()


@pytest.fixture
def bucket():
    return [("a", torch.randn(300, 400)), ("b", torch.randn(7)), ("c", torch.randn(1000, 100).to(torch.bfloat16))]


def arrives(info, bucket):
    got = tensors_in(fetched(info["lent"]), info["places"])
    return all(torch.equal(before, after) for (_, before), (_, after) in zip(bucket, got, strict=True))


def until(condition, *, within_s=10.0):
    stop = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < stop, "it did not come to pass"
        time.sleep(0.01)


# --- what arrives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [1, 3, 4])
def test_ranges_are_put_together_as_they_were(listener, bucket, monkeypatch, streams):
    monkeypatch.setattr(lend, "_LEAST_BYTES", 1000)
    monkeypatch.setattr(lend, "_PIECE", 7001)
    with ByNetwork(listener, "127.0.0.1").carry(bucket) as info:
        got = tensors_in(fetched(info["lent"], streams=streams), info["places"])
    assert all(torch.equal(before, after) for (_, before), (_, after) in zip(bucket, got, strict=True))


def test_tensors_are_sent_from_where_they_are(listener):
    """No copy of a bucket is made: what changes before it is fetched is fetched changed."""
    tensor = torch.zeros(1000)
    with ByNetwork(listener, "127.0.0.1").carry([("a", tensor)]) as info:
        tensor += 1
        assert arrives(info, [("a", torch.ones(1000))])


# --- strangers --------------------------------------------------------------------------------------------------------


def ask(port, path, **headers):
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_nothing_is_said_without_the_token(listener, bucket):
    with ByNetwork(listener, "127.0.0.1").carry(bucket) as info:
        lent = info["lent"]
        wrong = {**lent, "token": "0" * len(lent["token"])}
        with pytest.raises(EngineError, match=rf"127.0.0.1:{lent['port']} refuses .*403: this token is not"):
            fetched(wrong)
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {lent['token']}"}):
            status, body = ask(listener.port, f"/{lent['bucket']}", Range="bytes=0-9", **headers)
            assert status == 403 and len(body) < 100
        assert arrives(info, bucket)


def test_only_what_is_lent_is_given_and_only_ranges_of_it(listener, bucket):
    with ByNetwork(listener, "127.0.0.1").carry(bucket) as info:
        lent = info["lent"]
        key = {"Authorization": f"Bearer {lent['token']}"}
        for wanted in (
            "bytes=0-",
            "bytes=-5",
            f"bytes=0-{lent['bytes']}",
            "bytes=9-3",
            "bytes=0-1,4-5",
            "bytes=0-" + "9" * 400,
        ):
            assert ask(listener.port, f"/{lent['bucket']}", Range=wanted, **key)[0] == 416
        assert ask(listener.port, f"/{lent['bucket']}", **key)[0] == 416
        for path in ("/", "/etc/passwd", f"/{lent['bucket']}/.."):
            assert ask(listener.port, path, Range="bytes=0-9", **key)[0] == 404
        status, body = ask(listener.port, f"/{lent['bucket']}", Range="bytes=64-71", **key)
        assert status == 206 and body == bucket[0][1].flatten()[16:18].numpy().tobytes()
    with pytest.raises(EngineError, match="404: this bucket is not lent any more"):
        fetched(lent)


def test_strangers_who_say_nothing_are_hung_up_on_and_bounded_in_number(listener, bucket, monkeypatch):
    monkeypatch.setattr(lend, "_HELLO_S", 60.0)
    monkeypatch.setattr(lend, "_STRANGERS", 3)
    silent = [socket.create_connection(("127.0.0.1", listener.port), timeout=10) for _ in range(3)]
    until(lambda: len(listener._connections) == 3)
    with closing(socket.create_connection(("127.0.0.1", listener.port), timeout=10)) as fourth:
        assert fourth.recv(1) == b""
    monkeypatch.setattr(lend, "_HELLO_S", 0.5)
    for number, connection in enumerate(silent):
        connection.sendall(b"GET / HTTP/1.1\r\nX: "[: 5 * number])  # one at a time does not help
        assert connection.recv(1) == b""
        connection.close()
    until(lambda: not listener._connections)
    monkeypatch.setattr(lend, "_HELLO_S", 60.0)
    with ByNetwork(listener, "127.0.0.1").carry(bucket) as info:
        assert arrives(info, bucket)


def test_rubbish_is_survived(listener, bucket):
    draw = random.Random(0)
    for _ in range(50):
        with closing(socket.create_connection(("127.0.0.1", listener.port), timeout=10)) as connection:
            words = [
                b"GET /x HTTP/1.1\r\n",
                b"POST / HTTP/1.1\r\n",
                b"Range: bytes=0-1\r\n",
                b"\r\n",
                b"\x00\xff",
                draw.randbytes(99),
            ]
            connection.sendall(b"".join(draw.choices(words, k=draw.randrange(1, 9))))
    with ByNetwork(listener, "127.0.0.1").carry(bucket) as info:
        assert arrives(info, bucket)
    until(lambda: not listener._connections)


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("refused", ""),
        ("broken", "broke off after"),
        ("truncated", "broke off after"),
        ("stalled", "sent nothing for 1 s, after"),
    ],
)
def test_a_network_that_fails_is_an_error_and_the_next_fetch_is_whole(listener, bucket, monkeypatch, fault, says):
    with FaultyNetwork(seed=1) as network, ByNetwork(listener, "127.0.0.1").carry(bucket) as info:
        there = network.detour(info)
        for _ in range(5):
            for _ in range(3):  # a machine that is away for as long as a stall lasts is not the fault
                network.spoil(fault)
                began = time.monotonic()
                with monkeypatch.context() as patch:
                    patch.setattr(lend, "STALL_S", 1.0 if fault == "stalled" else lend.STALL_S)
                    with pytest.raises(EngineError, match=rf"the trainer at 127.0.0.1:{network.port} .*{says}"):
                        fetched(there["lent"])
                if network.spoilt:
                    break
            assert network.spoilt == fault and time.monotonic() - began < 15
            assert arrives(there, bucket)


def test_a_trainer_that_trickles_is_given_up(bucket, monkeypatch):
    monkeypatch.setattr(lend, "WITHIN_S", 0.5)
    monkeypatch.setattr(lend, "_PIECE", 1)
    sending = socket.create_server(("127.0.0.1", 0))

    def trickle():
        connection, _ = sending.accept()
        with closing(connection):
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 206 X\r\nContent-Length: 100\r\n\r\n")
            with suppress(OSError):
                for _ in range(50):
                    connection.sendall(b"x")
                    time.sleep(0.1)

    with closing(sending):
        threading.Thread(target=trickle, daemon=True).start()
        with pytest.raises(EngineError, match=r"was too slow: a bucket of weights took more than 0.5 s"):
            fetched(_lent(sending.getsockname()[1]))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 206 X\r\nContent-Length: 7\r\n\r\n1234567", r"status 206: 7 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", r"status 200: hi"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", r"broke off after 0 of 100 bytes of weights \(BadStatusLine"),
    ],
)
def test_what_is_no_trainer_is_not_believed(answer, says):
    other = socket.create_server(("127.0.0.1", 0))

    def say():
        connection, _ = other.accept()
        with closing(connection):
            connection.recv(1000)
            connection.sendall(answer)

    with closing(other):
        threading.Thread(target=say, daemon=True).start()
        with pytest.raises(EngineError, match=says):
            fetched(_lent(other.getsockname()[1]))


def test_a_worker_that_cannot_reach_the_trainer_says_where_it_tried_and_what_to_set():
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(
        EngineError, match=rf"cannot reach the trainer at 127.0.0.1:{port} .*open that port .*weights_host"
    ):
        fetched(_lent(port))


def _lent(port):
    return {"host": "127.0.0.1", "port": port, "token": "t", "bucket": "b", "bytes": 100}


def test_a_worker_that_stops_reading_does_not_keep_the_trainer(listener, monkeypatch):
    with ByNetwork(listener, "127.0.0.1").carry([("a", torch.zeros(16 << 20))]) as info:
        lent = info["lent"]
        with closing(socket.create_connection(("127.0.0.1", listener.port), timeout=10)) as connection:
            head = f"GET /{lent['bucket']} HTTP/1.1\r\nAuthorization: Bearer {lent['token']}\r\n"
            head += f"Range: bytes=0-{lent['bytes'] - 1}\r\n\r\n"
            connection.sendall(head.encode())
            connection.recv(100)
            began = time.monotonic()
            listener.close()
            assert time.monotonic() - began < 10
            until(lambda: not listener._connections)


# --- where it listens -------------------------------------------------------------------------------------------------


def _listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


async def test_it_listens_while_it_is_needed_at_one_address_for_all_who_are_reached_there():
    network = Network()
    async with network.lending("127.0.0.1") as first:
        async with network.lending("127.0.0.1") as second, network.lending("127.0.0.2") as third:
            assert first.listener is second.listener is not third.listener
            assert (third.host, third.listener.server_address[0]) == ("127.0.0.2", "127.0.0.2")
        assert await asyncio.to_thread(_listens, first.listener.port)
    assert not await asyncio.to_thread(_listens, first.listener.port)
    async with network.lending("127.0.0.1") as later:
        assert later.listener.token != first.listener.token


async def test_a_host_that_is_named_is_what_workers_are_told_and_a_port_is_kept():
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
    for _ in range(3):
        async with Network(f"localhost:{port}").lending("10.1.2.3") as lending:
            with lending.carry([("a", torch.ones(3))]) as info:
                assert (info["lent"]["host"], info["lent"]["port"]) == ("localhost", port)
                assert await asyncio.to_thread(arrives, info, [("a", torch.ones(3))])


async def test_a_port_that_is_taken_is_an_error():
    with closing(socket.create_server(("0.0.0.0", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=rf"cannot listen at 0.0.0.0, port {port}, .*weights_host"):
            async with Network(f"gateway:{port}").lending("127.0.0.1"):
                pass


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", ("10.0.0.1", 0)),
        ("trainer.local:4567", ("trainer.local", 4567)),
        ("[fd00::1]:80", ("fd00::1", 80)),
        ("[fd00::1]", ("fd00::1", 0)),
    ],
)
def test_hosts_are_read(text, address):
    assert address_of(text) == address


@pytest.mark.parametrize(
    "text", ["", ":80", "http://host", "host:port", "host:99999", "a@host", "host/x", "fd00::1:x", "a b"]
)
def test_what_is_no_host_is_refused(text):
    with pytest.raises(ValueError):
        address_of(text)
