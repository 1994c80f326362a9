"""The hardworker: every sensor's messages, each once and in order, with hardly any work to receive them.

ring (with ring.c) and handler are the two sources of bytes, the eBPF program's ring and ordinary sockets.
streams puts bytes in order, assembly makes messages of them, and reader knows how far the application is done
with those. Hardworker is what an application uses.
"""

from midstream.hardworker.assembly import Totals
from midstream.hardworker.hardworker import Hardworker
from midstream.hardworker.messages import Message, batch_dtype

__all__ = ["Hardworker", "Message", "Totals", "batch_dtype"]
