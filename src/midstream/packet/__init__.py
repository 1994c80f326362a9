"""Raw Ethernet/IPv4/TCP packets: craft them, check them, rewrite them as the eBPF programs do, watch them.

craft      a frame of one leg of the triangle, from a topology
rewrite    what the hardworker's program makes of a sensor's packet
restore    what the return path's program makes of the logger's reply
check      everything that is wrong with a frame
judge      relay, pass or drop, and why

Nothing here is used on the data path. It is the reference in Python: the tests of the eBPF programs compare
their output with it byte by byte, and `midstream packet` shows it to the user.
"""

from midstream.packet.capture import Captured, read_capture, read_frames
from midstream.packet.checksum import checksum, update
from midstream.packet.description import fields, headline
from midstream.packet.headers import Ethernet, Flags, IPv4, Packet, Tcp
from midstream.packet.inspection import Verdict, check, judge
from midstream.packet.link import EXPECTED, carried
from midstream.packet.path import Leg, corrupt, craft, find_leg, is_marked, restore, rewrite
from midstream.packet.supposed import as_ethernet
from midstream.packet.wire import Listener, Sighting, send

__all__ = [
    "EXPECTED",
    "Captured",
    "Ethernet",
    "Flags",
    "IPv4",
    "Leg",
    "Listener",
    "Packet",
    "Sighting",
    "Tcp",
    "Verdict",
    "as_ethernet",
    "carried",
    "check",
    "checksum",
    "corrupt",
    "craft",
    "fields",
    "find_leg",
    "headline",
    "is_marked",
    "judge",
    "read_capture",
    "read_frames",
    "restore",
    "rewrite",
    "send",
    "update",
]
