"""The hardworker: every sensor's messages, each once and in order, with hardly any work to receive them.

ring and handler are the two sources of messages, the eBPF program's ring and ordinary sockets. ring.c reads
the ring; assembly.c puts its bytes in order and cuts them into messages. merged makes one source of those of
several streams. reader knows how far the application is done with the messages. Hardworker is what an
application uses.
"""

from midstream.hardworker.hardworker import Hardworker
from midstream.hardworker.messages import Message, Totals, batch_dtype

__all__ = ["Hardworker", "Message", "Totals", "batch_dtype"]
