/* SPDX-License-Identifier: GPL-2.0-only */
/* What the hardworker's program writes and user space reads: records of the ring, and counters.
 * midstream/ebpf/records.py says the same in Python; tests/unit/ebpf/test_records.py compares the two, and says when
 * records.ABI has to be raised.
 */
#ifndef MIDSTREAM_RECORD_H
#define MIDSTREAM_RECORD_H

#include "bpf.h"

/* record.flags; a record with neither carries data only. */
#define RECORD_OPEN 1  /* a sensor opened this connection */
#define RECORD_FIN 2   /* the stream ends behind this record's bytes */
#define RECORD_RESET 4 /* the connection was reset; nothing follows */

/* Where a connection's packets go: a position in const.toml's loggers, or this host's own stack. */
#define HERE 0xffffffffU

struct connection_key {
	__be32 ip;
	__be16 port;
	__u16 zero;
};

struct record {
	__u64 offset;	  /* of the first byte in the connection's stream, which starts at 0 */
	__u64 time;	  /* CLOCK_MONOTONIC, nanoseconds, when the packet was seen */
	__u32 connection; /* number, counted up since the maps were made */
	__u32 length;	  /* bytes of payload that follow; the record may be longer */
	__u16 sensor;	  /* position in const.toml's list, from 0 */
	__u16 port;	  /* the sensor's */
	__u16 flags;
	__u16 unused;
	__u8 payload[];
};

/* How a connection has ended: what the daemon is told, and tells the logger. */
struct ended {
	struct connection_key key;
	__u64 held;	   /* bytes of its stream */
	__u64 opened;	   /* these as in struct connection */
	__u32 first;
	__u32 destination;
	__u32 number;
	__u16 sensor;
	__u16 how; /* RECORD_FIN or RECORD_RESET */
};

/* Every marked packet increments exactly one outcome. */
struct counters {
	/* sent on to the connection's destination */
	__u64 opened;	     /* SYN of a new connection */
	__u64 stored;	     /* in-order data, now in the ring */
	__u64 out_of_order;  /* data behind a hole, now in the ring */
	__u64 duplicate;     /* nothing new: a retransmission, a duplicate, a window probe */
	__u64 pure_ack;	     /* an acknowledgement without data */
	__u64 reset;	     /* RST in sequence: the connection ended */
	__u64 reset_ignored; /* RST not in sequence: the logger challenges it (RFC 5961) */
	__u64 syn_ignored;   /* SYN upon an open connection: the logger challenges it (RFC 5961) */
	/* left to the hardworker's own stack */
	__u64 stranger; /* not from the IP address of a sensor */
	/* answered with a reset, so that the sensor connects anew */
	__u64 no_connection; /* data of a connection that was never opened */
	__u64 replaced;	     /* data upon a later SYN, the connection long silent */
	/* dropped; an honest sensor sends it again */
	__u64 ring_full;
	__u64 table_full;   /* no room for another connection */
	__u64 out_of_window; /* too far behind a hole, behind too many, or upon what is held there */
	__u64 beyond_fin;   /* data after the end of the stream */
	__u64 bad_checksum; /* of the IP header or of TCP: the logger would not take it either */
	__u64 no_ack;	    /* data without the ACK flag */
	__u64 bad_ack;	    /* data that acknowledges what the sensor was never sent (RFC 5961) */
	__u64 stale;	    /* data of another time: by its timestamp (RFC 7323, PAWS) or far behind the stream */
	__u64 quota_full;   /* the sensor has its share of the ring, or of the connections */
	__u64 forged;	    /* a sensor's IP address, and not its MAC address */
	__u64 syn_data;	    /* SYN with data (TCP Fast Open) */
	__u64 bad_flags;    /* SYN with FIN, RST or ACK */
	__u64 bad_length;   /* the header's lengths contradict each other or the frame */
	__u64 oversized;    /* more payload than the MTU admits: receive offloads are on */
	__u64 ip_options;
	__u64 fragment;
};

#endif
