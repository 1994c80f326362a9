/* SPDX-License-Identifier: GPL-2.0-only */
/* The hardworker's maps. The loader sets the sizes that config.toml and const.toml decide and pins them, before
 * the program is attached.
 */
#ifndef MIDSTREAM_TABLES_H
#define MIDSTREAM_TABLES_H

#include "bpf.h"
#include "connection.h"
#include "hosts.h"
#include "record.h"
#include "settings.h"

/* How much of the ring a sensor's records take is not known exactly: the reader gives room back
 * without saying whose it was. They are counted in two generations of half a quota each; once the
 * reader has passed the end of the older one, nothing of that is left.
 */
struct share {
	__u64 older_end; /* the ring's position where the older generation ends */
	__u64 younger;	 /* bytes of the younger one */
	__u32 open;	 /* connections */
	__u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20); /* config.toml: hardworker.ring_size */
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct connection_key);
	__type(value, struct connection);
	__uint(max_entries, 4096); /* config.toml: hardworker.connections */
} connections SEC(".maps");

/* What TIME_WAIT is to TCP, but bounded by number instead of time: the oldest makes room. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct connection_key);
	__type(value, struct finished);
	__uint(max_entries, 4096);
} finished SEC(".maps");

/* The reader's own: where it is in the ring and in each stream (hardworker/ring.h). It is here
 * because it must live as long as the ring.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1); /* config.toml: hardworker.connections */
} journal SEC(".maps");

/* The reader's own as well: some bytes of messages that are unfinished and would hold too much of the
 * ring (hardworker/spill.py). An entry fits into a page of the kernel's, which it allocates when it is written.
 */
#define KEPT_BYTES 3968

struct kept {
	__u64 position;
	__u64 offset;
	__u32 connection;
	__u32 length;
	__u8 bytes[KEPT_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct kept);
	__uint(max_entries, 1 << 18); /* 1 GiB */
} unfinished SEC(".maps");

/* One for each sensor, in const.toml's order, and the last for strangers. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counters);
	__uint(max_entries, MAX_SENSORS + 1); /* const.toml: sensors */
} counters SEC(".maps");

/* What each sensor holds of what all share. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct share);
	__uint(max_entries, MAX_SENSORS); /* likewise */
} shares SEC(".maps");

/* The first connections of each sensor that were established since the maps were made (beginning.h). The application
 * maps it.
 */
#define BEGINNINGS 7

struct beginning {
	__u64 opened; /* 0: none yet */
	__u32 first;
	__u16 port;
	__u16 unused;
};

struct beginnings {
	__u32 count; /* may be more than there is room for */
	__u32 unused;
	struct beginning of[BEGINNINGS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct beginnings);
	__uint(max_entries, MAX_SENSORS); /* likewise */
} beginnings SEC(".maps");

/* The loader's: what the interface was set to before its interrupts were deferred (ebpf/irq_mitigation.py). */
struct irq_mitigation {
	__u32 ifindex; /* 0: nothing was changed */
	__u32 empty_looks;
	__u64 timeout;
	__u64 set_timeout;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct irq_mitigation);
	__uint(max_entries, 1);
} irq_mitigation SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} last_number SEC(".maps");

/* The daemon takes its entries out. If it does not, the oldest make room. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__type(value, struct ended);
	__uint(max_entries, 4096);
} ended SEC(".maps");

/* What the program, and the application, are told while they work. */
struct control {
	__u32 destination; /* of connections that open now */
	__u32 unlinked;	   /* for the application: this program is on no interface */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct control);
	__uint(max_entries, 1);
} control SEC(".maps");

/* What the logger has committed of each connection's stream: the daemon says so, and the reader gives no other room of
 * the ring back (ebpf/retained.py, hardworker/ring.c). A head, then two tables of which the generation's lowest bit
 * names the valid one: hash tables by number with open addressing, of `mask` + 1 places.
 */
struct committed {
	__u64 key; /* 1 << 32 | the connection's number; 0: free */
	__u64 offset;
};

struct committed_table {
	__u32 known; /* of the connections up to this number those that are not here need not be retained */
	__u32 mask;
	__u64 unused;
	struct committed slots[];
};

struct committed_head {
	__u64 generation;
	__u64 time;	 /* of the logger's last word, as bpf_ktime_get_ns() counts; 0: there was none */
	__u64 read;	 /* the reader's: the ring's position up to which it is done */
	__u64 forfeited; /* the reader's: bytes of the ring given back that it should have retained */
};

#define COMMITTED_READ (offsetof(struct committed_head, read) / sizeof(__u64))

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, sizeof(struct committed_head) / sizeof(__u64)); /* config.toml: hardworker.connections */
} committed SEC(".maps");

#endif
