"""A cable that delays every frame and loses some, for kernels without netem.

Run as a program, it carries frames between two interfaces until it is killed:

    python -m tests.multihost.bad_cable INTERFACE INTERFACE DELAY_S LOSS
"""

import ctypes
import fcntl
import heapq
import random
import select
import socket
import struct
import sys
import time

_ETH_P_ALL = 3
_OUTGOING = 4
_MAX_FRAME = 1 << 16
_SIOCETHTOOL = 0x8946
_SET_TX_CHECKSUM, _SET_TSO, _SET_GSO = 0x17, 0x1F, 0x24
SEED = 5


def send_plain_frames(interface: str) -> None:
    """Have the kernel put whole checksums into frames no larger than the MTU.

    A virtual interface leaves both to the receiver, which knows that only of its own peer.
    """
    with socket.socket() as any_socket:
        for command in (_SET_TX_CHECKSUM, _SET_TSO, _SET_GSO):
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP", interface.encode(), ctypes.addressof(value))
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def carry(one: str, other: str, *, delay_s: float, loss: float) -> None:
    """Both ways, for ever."""
    ends = [_end(one), _end(other)]
    under_way: list[tuple[float, int, int, bytes]] = []
    chance, number = random.Random(SEED), 0
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for end in select.select(ends, [], [], wait_s)[0]:
            frame, (_, _, kind, *_) = end.recvfrom(_MAX_FRAME)
            if kind != _OUTGOING and chance.random() >= loss:
                number += 1
                due = time.monotonic() + delay_s
                heapq.heappush(under_way, (due, number, 1 - ends.index(end), frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, target, frame = heapq.heappop(under_way)
            ends[target].send(frame)


def _end(interface: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    end.bind((interface, _ETH_P_ALL))
    return end


if __name__ == "__main__":
    carry(sys.argv[1], sys.argv[2], delay_s=float(sys.argv[3]), loss=float(sys.argv[4]))
