"""The sensor: an ordinary TCP client that sends messages at a fixed rate.

Any TCP client that marks its packets can be a sensor. sensor is the connection and its schedule, tcp what it
asks of the kernel; messages are what it sends, record what it writes down.
"""

from midstream.sensor.messages import file_messages, numbered_lines, numbered_messages
from midstream.sensor.record import SENT_DTYPE
from midstream.sensor.sensor import Sensor, SensorSummary

__all__ = ["SENT_DTYPE", "Sensor", "SensorSummary", "file_messages", "numbered_lines", "numbered_messages"]
