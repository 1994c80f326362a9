// SPDX-License-Identifier: MIT
/* The reader's side of a BPF ring buffer (Documentation/bpf/ringbuf.rst in the kernel's tree), for ring.c and module.c. */
#ifndef MIDSTREAM_RING_H
#define MIDSTREAM_RING_H

#include <stdint.h>

#define BUSY (1u << 31)	   /* reserved, not yet submitted */
#define DISCARDED (1u << 30)
#define BLOCK 64u /* a record has room for whole blocks of payload (ebpf/copy.h) */
#define HEADER 8 /* before each record: its length with those two bits, and a page offset */

/* As in ebpf/record.h. */
struct record {
	uint64_t offset;
	uint64_t time;
	uint32_t connection;
	uint32_t length;
	uint16_t sensor;
	uint16_t port;
	uint16_t flags;
	uint16_t unused;
};

/* An open connection; the table is sorted by number. streams.py has the same in NumPy. */
struct open {
	uint32_t connection;
	uint32_t aligned; /* 1: a message starts at `next`, nothing is kept behind a hole, no end is known */
	uint64_t next;	   /* of the first byte that belongs to no message delivered */
	uint64_t sequence; /* this and `end` are streams.py's own */
	uint64_t end;
};

/* Where the table is now: Python moves it when it grows. */
struct streams {
	struct open *table;
	uint64_t count; /* rows of it */
	uint64_t delivered; /* messages that reader_regular has found */
};

/* A value of every message, to be copied out of its record. views.py says the same. */
struct column {
	uint64_t offset;  /* in the record, its head included */
	uint64_t size;	  /* bytes */
	uint64_t divisor; /* by which it is divided; 0: not at all */
	uint8_t *values;
};

/* What the reader has done, in memory that outlives it: a generation, and two copies of which its
 * lowest bit names the valid one. A reader that is killed at any moment leaves a whole one.
 */
struct copy {
	uint64_t position; /* in the ring */
	uint32_t count;	   /* rows of the table */
	uint32_t pending;  /* bytes behind the table, of messages that are not whole yet */
	struct open table[];
};

/* What the logger has committed of each connection's stream, as in ebpf/tables.h. */
struct committed {
	uint64_t key; /* 1 << 32 | number; 0: free */
	uint64_t offset;
};

struct committed_table {
	uint32_t known;
	uint32_t mask;
	uint64_t unused;
	struct committed slots[];
};

struct committed_head {
	uint64_t generation;
	uint64_t time;
	uint64_t read;
	uint64_t forfeited;
};

#define LOOK (~0ull)
#define NOTHING (~0ull)

/* A reader and its ring. */
struct reader {
	const uint64_t *producer;
	uint64_t *consumer;
	const uint8_t *data; /* mapped twice in a row, so that a record never wraps */
	uint64_t mask;
	uint64_t position; /* of the next record to be read */
	uint64_t end;	   /* up to which there is something, as of the last look; LOOK: look first */
	uint64_t committed;
	uint64_t released; /* up to which room has been given back: at most to `committed` */
	uint64_t newest;   /* time of the last record read, as in struct record; 0: none yet */
	struct streams *streams;
	uint8_t *journal;
	uint64_t copy_size; /* of one of the journal's two */
	struct committed_head *word;
	uint64_t table_size; /* of each of the two behind it, bytes */
	uint64_t retain;     /* bytes of the ring that may be retained for the logger; 0: none are */
	uint64_t heard;	     /* the generation that has been looked at */
	/* For cycles: */
	uint64_t period;      /* nanoseconds; 0: a cycle is when something was stored */
	uint64_t follow;      /* nanoseconds after `newest` at which a period begins; 0: they begin at 0 */
	uint64_t stop;	      /* the descriptor that ends a sleep: to stop, or to see to something */
	uint64_t event;	      /* without a period: of an epoll set of that and, edge-triggered, the ring */
	uint64_t size;	      /* bytes a message */
	uint64_t most;	      /* rows of a table for which the journal has room */
	uint64_t spilled;     /* 1: parts of messages are kept elsewhere */
	uint64_t start;	      /* position of the first message that the last cycle found, */
	uint64_t found;	      /* and how many; NOTHING: it did nothing, or they are given back */
	uint64_t phase;	      /* where in `data` the view of rows begins */
	const struct column *columns;
	uint64_t columns_count; /* 0: rows are wanted */
	uint64_t usual;		/* columns have room for fewer messages */
	uint64_t timer;		/* the descriptor of watch.py's; `stop` polls readable with it */
	uint64_t seen;		/* the producer's position when that last expired */
	uint64_t status;	/* how the last cycle ended that gave nothing itself */
};

/* source.py says the same. */
enum status {
	WHOLE,	   /* all that has arrived was given */
	MORE,	   /* behind the batch found there are records that are no whole messages, or not in order */
	UNFIT,	   /* the batch found does not fit what was prepared */
	DECLINED,  /* it did nothing: what was read before is more than it can commit */
	ENDED,	   /* it committed, and then `stop` or the timer ended its sleep */
	SIGNALLED, /* it committed, and then the handler of a signal ran */
};

uint64_t reader_regular(struct reader *reader, uint32_t size);
int reader_next(struct reader *reader);
const struct record *reader_record(const struct reader *reader, uint64_t position);
void reader_skip(struct reader *reader);
void reader_commit(struct reader *reader, const void *pending, uint32_t length);
void reader_give_back(struct reader *reader);
enum status reader_cycle(struct reader *reader);
uint64_t reader_stride(uint32_t size);
void reader_gather(const struct reader *reader);

#endif
