"""A database as a logger of version 3 has left it, which knew of no streams: its tables and rows."""

import struct

from sqlalchemy import Engine, text

from midstream.storage.store import checksum
from midstream.told import STEP

SENSOR, OPENED = "10.83.0.11", 10**18

_MORE = '"count": 1, "unit": "", "scale": 1.0, "bias": 0.0'
_LAYOUT = (
    f'{{"size": 8, "fields": [{{"name": "heat", "type": "<u4", "offset": 0, {_MORE}}}, '
    f'{{"name": "level", "type": "<f4", "offset": 4, {_MORE}}}]}}'
)
PAYLOADS = [struct.pack("<If", number, number / 2) for number in range(3)]

_TABLES = """
CREATE TABLE connections (id {serial} NOT NULL, sensor VARCHAR(15) NOT NULL, port INTEGER NOT NULL,
    opened_ns BIGINT NOT NULL, closed_ns BIGINT, bytes BIGINT, digest VARCHAR(64), reset BOOLEAN, reason TEXT,
    unfinished {blob}, token VARCHAR(40), framing VARCHAR(8), layout TEXT, pruned BIGINT, first BIGINT,
    spooled BOOLEAN, PRIMARY KEY (id), UNIQUE (token));
CREATE INDEX connections_first ON connections (sensor, port, first);
CREATE TABLE messages (connection_id {key} NOT NULL, sequence BIGINT NOT NULL, received_ns BIGINT NOT NULL,
    payload {blob} NOT NULL, stream_offset BIGINT, crc BIGINT, PRIMARY KEY (connection_id, sequence),
    FOREIGN KEY(connection_id) REFERENCES connections (id));
CREATE TABLE fragments (connection_id {key} NOT NULL, stream_offset BIGINT NOT NULL, bytes {blob} NOT NULL,
    PRIMARY KEY (connection_id, stream_offset), FOREIGN KEY(connection_id) REFERENCES connections (id));
CREATE TABLE readings (connection_id {key} NOT NULL, sequence BIGINT NOT NULL, "heat" BIGINT,
    "level" DOUBLE PRECISION, PRIMARY KEY (connection_id, sequence));
CREATE TABLE held (sensor VARCHAR(15) NOT NULL, port INTEGER NOT NULL, first BIGINT NOT NULL,
    opened_ns BIGINT NOT NULL, held_bytes BIGINT NOT NULL, state VARCHAR(8) NOT NULL,
    destination_here BOOLEAN NOT NULL, PRIMARY KEY (sensor, port, first, opened_ns));
CREATE TABLE arrivals (sensor VARCHAR(15) NOT NULL, port INTEGER NOT NULL, first BIGINT NOT NULL,
    opened_ns BIGINT NOT NULL, stream_start BIGINT NOT NULL, stream_end BIGINT NOT NULL,
    time_ns BIGINT NOT NULL, ahead_ns BIGINT NOT NULL, error_ns BIGINT NOT NULL, steps {blob} NOT NULL,
    PRIMARY KEY (sensor, port, first, opened_ns, stream_start));
CREATE TABLE pending (sensor VARCHAR(15) NOT NULL, port INTEGER NOT NULL, first BIGINT NOT NULL,
    opened_ns BIGINT NOT NULL, stream_start BIGINT NOT NULL, stream_end BIGINT NOT NULL,
    messages BIGINT NOT NULL, oldest_ns BIGINT NOT NULL, PRIMARY KEY (sensor, port, first, opened_ns));
CREATE TABLE forgotten (sensor VARCHAR(15) NOT NULL, first_ns BIGINT NOT NULL, last_ns BIGINT NOT NULL,
    messages BIGINT NOT NULL, bytes BIGINT NOT NULL, PRIMARY KEY (sensor, first_ns));
CREATE TABLE schema_version (version INTEGER NOT NULL);
CREATE VIEW log AS SELECT connections.sensor, connections.port, messages.connection_id, messages.sequence,
    messages.received_ns, messages.payload
    FROM messages JOIN connections ON connections.id = messages.connection_id;
"""

_TYPES = {
    "sqlite": {"serial": "INTEGER", "key": "INTEGER", "blob": "BLOB"},
    "postgresql": {"serial": "BIGSERIAL", "key": "BIGINT", "blob": "BYTEA"},
}

_KNOWN = "sensor, port, opened_ns, token, framing, layout, first, spooled"
_ROWS: list[tuple[str, tuple[object, ...]]] = [
    (
        f"connections ({_KNOWN}, closed_ns, bytes, reset, reason)",
        (SENSOR, 40000, OPENED, "run.1", "fixed", _LAYOUT, 77, False, OPENED + 9, 24, False, "end of stream"),
    ),
    (f"connections ({_KNOWN})", (SENSOR, 40001, OPENED + 5, "run.2", "fixed", _LAYOUT, 78, False)),
    *(
        ("messages", (1, at, OPENED + at, payload, 8 * at, checksum(at, 8 * at, OPENED + at, payload)))
        for at, payload in enumerate(PAYLOADS)
    ),
    ("fragments", (2, 0, b"abc")),
    *(("readings", (1, at, at, at / 2)) for at in range(3)),
    ("held", (SENSOR, 40000, 77, OPENED, 24, "closed", False)),
    ("held", (SENSOR, 40001, 78, OPENED + 5, 3, "open", True)),
    ("arrivals", (SENSOR, 40000, 77, OPENED, 0, 24, OPENED, 5, 6, STEP.pack(24, 0))),
    ("pending", (SENSOR, 40001, 78, OPENED + 5, 0, 16, 2, OPENED)),
    ("forgotten", (SENSOR, 1, 2, 3, 24)),
    ("schema_version", (3,)),
]


def make(engine: Engine) -> None:
    """Two connections: one has ended, of the other only the beginning of a message is stored."""
    with engine.begin() as database:
        for statement in _TABLES.format(**_TYPES[engine.dialect.name]).split(";")[:-1]:
            database.execute(text(statement))
        for table, values in _ROWS:
            names = [f"value_{at}" for at in range(len(values))]
            places = ", ".join(f":{name}" for name in names)
            given = dict(zip(names, values, strict=True))
            database.execute(text(f"INSERT INTO {table} VALUES ({places})"), given)
