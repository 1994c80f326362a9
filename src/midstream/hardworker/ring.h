// SPDX-License-Identifier: MIT
/* The reader's side of a BPF ring buffer (Documentation/bpf/ringbuf.rst in the kernel's tree): ring.c reads
 * it, assembly.c makes messages of what lies there, module.c shows both to Python.
 */
#ifndef MIDSTREAM_RING_H
#define MIDSTREAM_RING_H

#include <stdint.h>

#define BUSY (1u << 31)	   /* reserved, not yet submitted */
#define DISCARDED (1u << 30)
#define BLOCK 64u /* a record has room for whole blocks of payload (ebpf/copy.h) */
#define HEADER 8 /* before each record: its length with those two bits, and a page offset */

#define RECORD_OPEN 1
#define RECORD_FIN 2
#define RECORD_RESET 4

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

#define NOTHING (~0ull)

/* Of an open connection. */
enum state {
	MIDST,	/* parts of messages are there, or its end is known */
	PLAIN,	/* a message begins at `next`, and that is all */
	BROKEN, /* its bytes do not follow the framing: none are delivered any more */
};

/* An open connection; the table is sorted by number, and the journal has the same rows. */
struct open {
	uint32_t connection;
	uint32_t state;
	uint64_t next;	   /* offset of the first byte that belongs to no message delivered */
	uint64_t sequence; /* of the next message */
	uint64_t end;	   /* of the stream; NOTHING: not known yet */
	uint64_t from;	   /* position of the first record that is needed, if it is not PLAIN, */
	uint64_t base;	   /* and the offset up to which everything was in order before that */
};

/* Bytes that are not delivered yet, where they lie. */
struct part {
	struct part *next;
	const uint8_t *data;
	uint64_t position; /* of the record that they lie in; NOTHING: they are kept elsewhere, and here in `own` */
	uint64_t base;	   /* up to this offset everything was in order when the record was read */
	uint8_t *own;
	uint32_t length;
};

/* Parts without a gap between them. */
struct run {
	uint64_t start;
	uint64_t end;
	struct part *first;
	struct part *last;
};

/* What else there is to say of an open connection, at the same place of a second table. */
struct stream {
	struct run ready; /* in order; it begins at `next` */
	struct run *early; /* behind a hole; sorted, and they neither overlap nor touch */
	uint32_t early_count;
	uint32_t early_room;
	uint64_t anchor;  /* position of the first record that is needed; NOTHING: none is */
	uint64_t settled; /* all bytes of `ready` from this offset on came in order */
	struct part *unsearched; /* the first of `ready` in which no end of a line was looked for, */
	uint64_t searched;	 /* and the bytes before it */
};

enum framing { FIXED, LENGTH, LINE }; /* as in framing.py */

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
	uint64_t position; /* of the first record that is needed */
	uint64_t read;	   /* and of the first that was not read */
	uint64_t count;	   /* rows of the table */
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

#define SENSORS 4096u /* as MAX_SENSORS of network.py; a power of two */

struct chunk; /* of memory for parts */

/* A reader and its ring. */
struct reader {
	const uint64_t *producer;
	uint64_t *consumer;
	const uint8_t *data; /* mapped twice in a row, so that a record never wraps */
	uint64_t mask;
	uint64_t position; /* of the next record to be read */
	uint64_t end;	   /* up to which there is something, as of the last look; LOOK: look first */
	uint64_t committed; /* the first record that the next reader would need */
	uint64_t released; /* up to which room has been given back: at most to `committed` */
	uint64_t uncommitted; /* 1: something was read since the last commit */
	uint64_t reread;   /* an earlier reader has read up to here */
	uint64_t newest;   /* time of the last record read, as in struct record; 0: none yet */
	uint8_t *journal;
	uint64_t copy_size; /* of one of the journal's two */
	uint64_t most;	    /* rows of a table for which it has room */
	uint64_t patience;  /* bytes of the ring that a message may hold that is not whole */
	uint64_t spilled;   /* 1: parts of messages are kept elsewhere */
	struct committed_head *word;
	uint64_t table_size; /* of each of the two behind it, bytes */
	uint64_t retain;     /* bytes of the ring that may be retained for the logger; 0: none are */
	uint64_t heard;	     /* the generation that has been looked at */
	/* The connections, and what is not delivered of them: */
	struct open *table;
	struct stream *streams;
	uint64_t connections;
	uint64_t room;	   /* rows for which there is memory */
	uint64_t unplain;  /* rows that are not PLAIN */
	uint64_t is_taken; /* 1: the record at `position` has been taken in, and maybe not all of its messages, */
	uint64_t row;	   /* of this connection */
	struct part *spare;
	uint64_t spares;
	struct chunk *chunks;
	uint64_t framing;
	uint64_t size;	   /* bytes of a message with FIXED framing; of the longest one with another */
	/* What became of it all, as in Totals of messages.py: */
	uint64_t messages;
	uint64_t bytes;
	uint64_t opened;
	uint64_t finished;
	uint64_t reset;
	uint64_t broken;
	uint64_t skipped;
	/* For cycles: */
	uint64_t period;      /* nanoseconds; 0: a cycle is when something was stored */
	uint64_t follow;      /* nanoseconds after `newest` at which a period begins; 0: they begin at 0 */
	uint64_t stop;	      /* the descriptor that ends a sleep: to stop, or to see to something */
	uint64_t event;	      /* without a period: of an epoll set of that and, edge-triggered, the ring */
	uint64_t start;	      /* position of the first message that the last cycle found, */
	uint64_t found;	      /* and how many; NOTHING: it did nothing, or they are given back */
	uint64_t phase;	      /* where in `data` the view of rows begins */
	const struct column *columns;
	uint64_t columns_count; /* 0: rows are wanted */
	uint64_t usual;		/* columns have room for fewer messages */
	uint64_t timer;		/* the descriptor of watch.py's; `stop` polls readable with it */
	uint64_t seen;		/* the producer's position when that last expired */
	uint64_t status;	/* how the last cycle ended that gave nothing itself */
	/* When the last data of each sensor came that was read, as in struct record; 0: none was. */
	uint64_t heard_of[SENSORS];
};

/* A message that is whole: a frame of `length` bytes and what is around them, on the connection of a record. */
struct message {
	const struct record *record; /* with the byte that completed it */
	struct open *open;
	uint64_t length;
	uint32_t before;
	uint32_t behind;
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

/* ring.c */
const struct record *reader_record(const struct reader *reader, uint64_t position);
uint64_t reader_stride(uint32_t size);
uint64_t reader_regular(struct reader *reader);
int reader_next(struct reader *reader);
void reader_skip(struct reader *reader);
int reader_commit(struct reader *reader);
void reader_give_back(struct reader *reader);
void reader_heard(const struct reader *reader, uint64_t *times);
enum status reader_rest(struct reader *reader);
enum status reader_cycle(struct reader *reader);
void reader_gather(const struct reader *reader);

/* assembly.c */
int reader_restore(struct reader *reader);
int reader_restore_kept(struct reader *reader, uint32_t connection, uint64_t offset, const uint8_t *data, uint32_t length);
void reader_restored(struct reader *reader);
int reader_message(struct reader *reader, struct message *message);
void reader_take(struct reader *reader, const struct message *message, uint8_t *to);
uint64_t reader_most_rows(const struct reader *reader);
int64_t reader_rows(struct reader *reader, uint8_t *rows, uint64_t room);
struct open *reader_find(const struct reader *reader, uint32_t connection);
uint64_t reader_needed(struct reader *reader);
int reader_is_crowded(const struct reader *reader, uint64_t row);
int reader_keep(struct reader *reader);
void reader_abandon(struct reader *reader);
void reader_free(struct reader *reader);

#endif
