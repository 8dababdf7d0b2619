"""Every request and reply of the Rust crate's protocol, byte by byte, over bare sockets."""

from __future__ import annotations

import array
import mmap
import os
import re
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from wire import (
    EXIT,
    HELLO,
    PRE_FORK,
    Closed,
    Service,
    deregister,
    existing_map,
    frame,
    new_map,
    post_fork_child_hello,
    same_file,
    varint,
    zigzag,
)

# What the crate sends, as it was seen.
EXAMPLES = {
    "00000003 00 80 08": new_map(1024),
    "00000004 00 80 80 04": new_map(65536),
    "00000017 01 80 08 37" + "00" * 19: existing_map(7, 1024),
    "00000002 02 0e": deregister(7),
    "00000002 02 01": deregister(-1),
    "00000003 02 c8 01": deregister(100),
    "00000001 03": HELLO,
    "00000001 04": PRE_FORK,
    "00000002 05 10": post_fork_child_hello(8),
    "00000001 06": EXIT,
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_frames_are_written_as_the_crate_does(example: str) -> None:
    assert EXAMPLES[example] == bytes.fromhex(example)


def bytes_of(fd: int, size: int) -> bytes:
    with mmap.mmap(fd, size) as memory:
        return memory[:]


# ---- Each request


def test_hello(service: Service) -> None:
    with service.connect() as one, service.connect() as two:
        ids = []
        for client in (one, two):
            client.send(bytes.fromhex("00000001 03"))
            text, fds = client.receive()
            assert text.decode("ascii") == str(int(text))
            assert fds == []
            assert client.says_nothing()
            ids.append(int(text))
            assert client.hello() == ids[-1]
        assert ids[0] != ids[1]
        assert min(ids) >= 0


@pytest.mark.parametrize("size", [1, 1024, 4097, 65536, 1 << 30])
def test_new_map(service: Service, size: int) -> None:
    with service.connect() as client:
        client.send(new_map(size))
        text, fds = client.receive()
        assert text.decode("ascii") == str(int(text))
        assert 0 < int(text) < 2**31
        (fd,) = fds
        status = os.fstat(fd)
        assert status.st_size == size or sys.platform == "darwin"  # the seed attaches memfds of the very size alone
        assert stat.S_IMODE(status.st_mode) == 0o600  # who is given a read-only one can't reopen it
        assert bytes_of(fd, 1) == b"\0"
        with mmap.mmap(fd, min(size, 4097)) as memory:
            assert memory[:] == bytes(len(memory))
            memory[-1:] = b"\x07"
        assert client.says_nothing()


def test_the_examples_of_new_map(service: Service) -> None:
    with service.connect() as client:
        for request, size in {"00000003 00 80 08": 1024, "00000004 00 80 80 04": 65536}.items():
            client.send(bytes.fromhex(request))
            assert os.fstat(client.reply().fd).st_size >= size


def test_existing_map(service: Service) -> None:
    with service.connect() as maker, service.connect() as other:
        id = maker.new(4096)
        with mmap.mmap(maker.fds[0], 4096) as memory:
            memory[:5] = b"hello"
        for client in (other, maker, other):
            client.send(
                bytes.fromhex("00000018 01 80 20") + str(id).encode().ljust(21, b"\0")
            )  # one byte more: ignored
            text, (fd,) = client.receive()
            assert text == str(id).encode()
            assert same_file(fd, maker.fds[0])
            assert bytes_of(fd, 5) == b"hello"


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 1 << 40, (1 << 64) - 1])
def test_existing_map_ignores_the_size(service: Service, size: int) -> None:
    with service.connect() as client:
        id = client.new(4096)
        reply = client.ask(existing_map(id, size))
        assert reply.number == id
        assert os.fstat(reply.fd).st_size == 4096


def test_an_id_ends_with_its_first_zero_byte(service: Service) -> None:
    with service.connect() as client:
        id = client.new()
        text = str(id).encode() + b"\0"
        assert client.ask(existing_map(text + b"9" * (20 - len(text)))).number == id


def test_deregister_counts_the_reference_that_it_drops(service: Service) -> None:
    with service.connect() as one, service.connect() as two:
        id = one.new()
        assert one.ask(deregister(id)) == (1, [])
        assert one.ask(deregister(id)) == (0, [])  # the first was the last
        id = one.new()
        one.attach(id)
        two.attach(id)
        assert one.ask(deregister(id)) == (3, [])
        assert one.ask(deregister(id)) == (2, [])
        assert one.ask(deregister(id)) == (0, [])  # it has none, the other has
        assert two.ask(deregister(id)) == (1, [])
        two.refused(existing_map(id))


def test_deregister_takes_no_reference_of_others(service: Service) -> None:
    with service.connect() as one, service.connect() as two:
        id = one.new()
        for number in (id, -1, 0, 7, 2**31 - 1, -(2**31)):
            if number != id:
                assert one.ask(deregister(number)) == (0, [])
            assert two.ask(deregister(number)) == (0, [])
        assert same_file(two.attach(id), one.fds[0])


def test_a_closed_connection_lets_go(service: Service) -> None:
    with service.connect() as one:
        id = one.new()
        with service.connect() as two:
            two.attach(id)
            two.attach(id)
            two.hello()
        assert service.wait_until(lambda: service.stats()["clients"] == 1)
        assert one.ask(deregister(id)).number == 1


def test_a_map_lives_with_its_last_client(service: Service) -> None:
    with service.connect() as two:
        with service.connect() as one:
            id = one.new()
            two.attach(id)
        assert service.wait_until(lambda: service.stats()["clients"] == 1)
        two.attach(id)
    with service.connect() as three:
        assert service.wait_until(lambda: service.stats()["segments"] == 0)
        three.refused(existing_map(id))


def test_fork(service: Service) -> None:
    with service.connect() as parent, service.connect() as child, service.connect() as other:
        id, mine = parent.new(), parent.hello()
        assert parent.ask(bytes.fromhex("00000001 04")) == (mine, [])
        made_since = parent.new()
        assert child.ask(post_fork_child_hello(mine)) == (child.hello(), [])
        assert child.hello() != mine
        assert child.ask(deregister(made_since)).number == 0
        assert child.ask(deregister(id)).number == 2
        assert child.ask(deregister(id)).number == 0
        assert parent.ask(deregister(id)).number == 1
        other.refused(post_fork_child_hello(mine))  # a child has taken it


def test_pre_fork_holds_the_maps_for_the_child(service: Service) -> None:
    with service.connect() as child:
        with service.connect() as parent:
            id, mine = parent.new(), parent.hello()
            parent.ask(PRE_FORK)
            assert parent.ask(deregister(id)).number == 2
        assert service.wait_until(lambda: service.stats()["clients"] == 1)
        child.ask(post_fork_child_hello(mine))
        child.attach(id)
        assert child.ask(deregister(id)).number == 2
        assert child.ask(deregister(id)).number == 1


def test_a_second_pre_fork_replaces_the_first(service: Service) -> None:
    with service.connect() as parent, service.connect() as child:
        id, mine = parent.new(), parent.hello()
        parent.attach(id)
        for _ in range(3):
            parent.ask(PRE_FORK)
        assert parent.ask(deregister(id)).number == 4
        parent.ask(PRE_FORK)
        assert parent.ask(deregister(id)).number == 2
        child.ask(post_fork_child_hello(mine))
        assert child.ask(deregister(id)).number == 1


def test_every_reference_is_in_the_snapshot(service: Service) -> None:
    with service.connect() as parent, service.connect() as child:
        id, mine = parent.new(), parent.hello()
        parent.attach(id)
        parent.ask(PRE_FORK)
        child.ask(post_fork_child_hello(mine))
        assert [child.ask(deregister(id)).number for _ in range(3)] == [4, 3, 0]


@pytest.mark.parametrize("is_first", [True, False])
def test_exit_of_a_stranger_is_ignored(service: Service, is_first: bool) -> None:
    with service.connect() as friend, service.connect() as stranger:
        id = friend.new()
        if not is_first:
            stranger.hello()
        stranger.send(bytes.fromhex("00000001 06"))
        stranger.is_closed(0.1)  # it may be; but not answered: is_closed() tells no text
        assert friend.ask(deregister(id)).number == 1
        with service.connect() as third:
            third.hello()


def test_exit_of_its_own_process_ends_it(start: Callable[..., Service]) -> None:
    service = start()
    with service.connect() as client:
        client.new()
        assert service.ask("wait", 0) == 0
        assert service.ask("exit", service.address)
        assert service.ask("wait", 5000) == 1
        assert client.is_closed()
    with pytest.raises(OSError, match=r"refused|No such file"):
        service.connect()


# ---- Refusals: a negative number, no descriptor, and the connection is kept

REFUSED = {
    "a map of no size": new_map(0),
    "a map beyond the address space": new_map(1 << 63),
    "the largest map": new_map((1 << 64) - 1),
    "an unknown id": existing_map(1 << 30),
    "id 0": existing_map(0),
    "a negative id": existing_map(-1),
    "an id beyond 31 bits": existing_map(1 << 31),
    "an id beyond 32 bits": existing_map(1 + (1 << 32)),
    "an empty id": existing_map(b""),
    "letters for an id": existing_map(b"seven"),
    "a name for an id": existing_map(b"/shmp_abcdefghijklm"),
    "digits and letters": existing_map(b"1x"),
    "20 digits": existing_map(b"1" * 20),
    "20 letters": existing_map(b"x" * 20),
    "bytes that are no text": existing_map(b"\xff\xfe\x80"),
    "a child of nobody": post_fork_child_hello(1 << 30),
    "a child of -1": post_fork_child_hello(-1),
    "a child of the smallest id": post_fork_child_hello(-(2**31)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(service: Service, what: str) -> None:
    with service.connect() as client:
        mine = client.hello()
        before = service.stats()
        client.refused(REFUSED[what])
        assert client.says_nothing(0.02)
        assert client.hello() == mine
        after = service.stats()
        assert after["refused"] == before["refused"] + 1
        assert after["segments"] == before["segments"]


@pytest.mark.parametrize("what", REFUSED)
def test_refused_as_the_first_request(service: Service, what: str) -> None:
    with service.connect() as client:
        client.refused(REFUSED[what])
        client.new()


# ---- Frames


def requests_of(id: int, parent: int) -> dict[str, bytes]:
    return {
        "new": new_map(70000),
        "existing": existing_map(id, 4096),
        "deregister": deregister(1 << 20),
        "hello": HELLO,
        "pre_fork": PRE_FORK,
        "post_fork": post_fork_child_hello(parent),
    }


REQUESTS = list(requests_of(0, 0))


@contextmanager
def grantable(service: Service, name: str) -> Iterator[Callable[[], bytes]]:
    """Give a function that gives a request which is granted each time."""
    with service.connect() as other:
        id, parent = other.new(), other.hello()

        def request() -> bytes:
            if name == "post_fork":
                other.ask(PRE_FORK)
            return requests_of(id, parent)[name]

        yield request


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("more", [b"\0", b"\xff" * 100, b"\x03" * 1000])
def test_what_follows_in_a_body_is_ignored(service: Service, name: str, more: bytes) -> None:
    with service.connect() as client, grantable(service, name) as request:
        assert client.ask(frame(request()[4:] + more)).number >= 0
        assert client.says_nothing(0.02)
        client.hello()


@pytest.mark.parametrize("name", REQUESTS)
def test_a_frame_may_come_in_two_parts(service: Service, name: str) -> None:
    with service.connect() as client, grantable(service, name) as request:
        for at in range(1, len(request())):
            whole = request()
            client.send(whole[:at])
            assert client.says_nothing(0.005)
            client.send(whole[at:])
            assert client.reply().number >= 0


@pytest.mark.parametrize("name", REQUESTS)
def test_a_frame_may_come_byte_by_byte(service: Service, name: str) -> None:
    with service.connect() as client, service.connect() as quick, grantable(service, name) as request:
        whole = request()
        for byte in whole[:-1]:
            client.send(bytes([byte]))
            quick.hello()
        assert client.says_nothing(0.02)
        client.send(whole[-1:])
        assert client.reply().number >= 0


def test_frames_may_come_together(service: Service) -> None:
    with service.connect() as client:
        mine = client.hello()
        client.send(b"".join([new_map(4096), deregister(1 << 20), new_map(8192), HELLO, new_map(0), deregister(-1)]))
        client.socket.shutdown(socket.SHUT_WR)  # and all of it is answered yet
        text, fds = b"", list[int]()
        with suppress(Closed):
            while True:
                more, got = client.receive()
                text += more
                fds += got
        assert [os.fstat(fd).st_size for fd in fds] == [4096, 8192]
        # Nothing separates replies: an id, 0, an id, this client's, an error, 0.
        assert re.fullmatch(rb"[1-9][0-9]*0[1-9][0-9]*%d-[1-9][0-9]*0" % mine, text), text


def test_many_frames_may_come_together(service: Service) -> None:
    with service.connect() as client:
        client.send(deregister(1 << 20) * 100)
        text = b""
        while len(text) < 100:
            more, fds = client.receive()
            text += more
            assert fds == []
        assert text == b"0" * 100
        assert client.says_nothing(0.02)


def test_a_frame_and_a_half_may_come_together(service: Service) -> None:
    with service.connect() as client:
        request = new_map(4096)
        client.send(HELLO + request[:3])
        mine = client.reply().number
        client.send(request[3:] + HELLO[:4])
        assert len(client.reply().fds) == 1
        client.send(HELLO[4:])
        assert client.reply().number == mine


TOO_MUCH = b"\x80" * 9 + b"\x02"  # 65 bits
UNPARSABLE = {
    "an empty body": frame(b""),
    "tag 7": frame(b"\x07"),
    "tag 127": frame(b"\x7f"),
    "a tag of two bytes": frame(b"\x80\x01"),
    "a tag beyond 32 bits": frame(b"\xff\xff\xff\xff\x7f"),
    "a tag that does not end": frame(b"\x83"),
    "a tag of ten bytes": frame(b"\x83" * 9 + b"\x01"),
    "a map without its size": frame(b"\x00"),
    "a size that does not end": frame(b"\x00\x80\x80"),
    "a size beyond 64 bits": frame(b"\x00" + TOO_MUCH),
    "a size of eleven bytes": frame(b"\x00" + b"\x80" * 10 + b"\x01"),
    "an existing map of nothing": frame(b"\x01"),
    "an id of 19 bytes": frame(b"\x01" + varint(4096) + b"1".ljust(19, b"\0")),
    "an id without a size": frame(b"\x01" + b"\xff" * 20),
    "deregister of nothing": frame(b"\x02"),
    "deregister that does not end": frame(b"\x02\xff\xff"),
    "deregister beyond 32 bits": frame(b"\x02" + zigzag(1 << 31)),
    "deregister of six bytes": frame(b"\x02" + b"\x80" * 5 + b"\x01"),
    "a child of nothing": frame(b"\x05"),
    "a child beyond 32 bits": frame(b"\x05" + zigzag(1 << 40)),
    "4 GiB": struct.pack(">I", 0xFFFFFFFF),
    "128 MiB and a byte": struct.pack(">I", 134217729),
    "lengths of the wrong end": struct.pack("<I", 1) + b"\x03",
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("what", UNPARSABLE)
@pytest.mark.parametrize("is_first", [True, False])
def test_what_cannot_be_parsed_closes_the_connection(service: Service, what: str, is_first: bool) -> None:
    with service.connect() as client, service.connect() as friend:
        id = friend.new()
        if not is_first:
            client.attach(id)
        client.send(UNPARSABLE[what])
        assert client.is_closed()
        assert service.wait_until(lambda: service.stats()["clients"] == 1)
        assert friend.ask(deregister(id)).number == 1


def test_what_came_before_is_answered(service: Service) -> None:
    with service.connect() as client:
        client.send(HELLO + UNPARSABLE["tag 7"])
        assert client.reply().number >= 0
        assert client.is_closed()


def test_half_closed(service: Service) -> None:
    with service.connect() as client:
        client.send(new_map(4096))
        client.socket.shutdown(socket.SHUT_WR)
        assert os.fstat(client.reply().fd).st_size == 4096
        assert client.is_closed()


@pytest.mark.needs("linux")
def test_descriptors_that_come_with_a_request_are_closed(service: Service) -> None:
    before = service.descriptors()
    with service.connect() as client, open(__file__, "rb") as file:
        client.hello()
        for count in (1, 2, 16, 253):
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()] * count))]
            client.socket.sendmsg([HELLO], rights)
            client.reply()
        client.socket.sendmsg([HELLO[:2]], rights)
        client.socket.sendmsg([HELLO[2:]], rights)
        client.reply()
        assert service.wait_until(lambda: len(service.descriptors()) == len(before) + 1)


@pytest.mark.needs("linux")
def test_exec_takes_no_descriptor_of_the_service_along(service: Service) -> None:
    with service.connect() as client:
        client.new()
        for line in service.descriptors():
            number, target = line.split(maxsplit=1)
            if int(number) > 2 and not target.startswith("pipe:"):
                info = Path(f"/proc/{service.pid}/fdinfo/{number}").read_text()
                (flags,) = (int(line.split()[1], 8) for line in info.splitlines() if line.startswith("flags:"))
                assert flags & os.O_CLOEXEC, target


@pytest.mark.needs("linux")
def test_the_name_is_that_of_the_crate(start: Callable[..., Service]) -> None:
    service = start("@shmp_test_24_bytes_name")
    names = [
        line.split()[-1]
        for line in Path("/proc/net/unix").read_text().splitlines()
        if "shmp_test_24_bytes_name" in line
    ]
    assert names[:1] == ["@shmp_test_24_bytes_name"]  # each NUL at its end would be an @, too
    service.connect().close()
