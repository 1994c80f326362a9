// SPDX-License-Identifier: MIT
/* The reader's side of a BPF ring buffer (Documentation/bpf/ringbuf.rst in the kernel's tree).
 *
 * Python cannot say "acquire": whoever sees the producer's position, or a record's length without the
 * busy bit, must also see what was written before it, on ARM too. These few loads and stores are here
 * for that, and looking at a whole batch at once comes for free.
 */
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
	uint64_t delivered; /* messages that midstream_regular has found */
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

/* A reader and its ring. Python makes it once and keeps it (ring.py has the same order): a call with one
 * pointer is cheap, one with eight arguments is not.
 */
#define LOOK (~0ull)

struct reader {
	const uint64_t *producer;
	uint64_t *consumer;
	const uint8_t *data; /* mapped twice in a row, so that a record never wraps */
	uint64_t mask;
	uint64_t position; /* of the next record to be read */
	uint64_t end;	   /* up to which there is something, as of the last look; LOOK: look first */
	uint64_t committed;
	uint64_t released; /* up to which room has been given back: at most to `committed` */
	uint64_t newest; /* time of the last record read, as in struct record; 0: none yet */
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

#define NOTHING (~0ull)

_Static_assert(sizeof(void *) == 8 && sizeof(long) == 8, "ring.py writes words of 64 bits");

/* The machine may have no headers for its C library; these are the same in all of them. */
struct timespec {
	long seconds, nanoseconds;
};

struct pollfd {
	int fd;
	short events, found;
};

struct epoll_event {
	uint32_t events;
	uint64_t fd;
}
#ifdef __x86_64__
__attribute__((packed))
#endif
;

/* Nor may it have Python's; this is in the stable ABI. */
typedef struct object PyObject;

extern PyObject _Py_NoneStruct;
PyObject *PyCFunction_NewEx(const void *definition, PyObject *self, PyObject *module);
PyObject *PyList_GetItem(PyObject *list, long index); /* borrowed */
PyObject *PySequence_GetSlice(PyObject *sequence, long first, long last);
void *PyLong_AsVoidPtr(PyObject *number);
void Py_IncRef(PyObject *object);
int PyErr_CheckSignals(void);
void *PyEval_SaveThread(void);
void PyEval_RestoreThread(void *thread);

int clock_gettime(int clock, struct timespec *time);
int ppoll(struct pollfd *fds, unsigned long count, const struct timespec *timeout, const void *signals);
int epoll_wait(int epoll, struct epoll_event *events, int most, int milliseconds);
long read(int fd, void *bytes, unsigned long size);
#define CLOCK_MONOTONIC 1
#define POLLIN 1
#define SECOND 1000000000ull

static uint64_t monotonic(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.seconds * SECOND + time.nanoseconds;
}

static uint64_t occupied(uint32_t length)
{
	return ((length & ~(BUSY | DISCARDED)) + HEADER + 7) & ~7ull;
}

/* Of a record with a whole message. */
static uint32_t record_length(uint32_t size)
{
	return sizeof(struct record) + ((size + BLOCK - 1) & ~(BLOCK - 1));
}

static uint32_t length_at(const struct reader *reader, uint64_t position)
{
	return __atomic_load_n((const uint32_t *)(reader->data + (position & reader->mask)), __ATOMIC_ACQUIRE);
}

static const struct record *record_at(const struct reader *reader, uint64_t position)
{
	return (const struct record *)(reader->data + (position & reader->mask) + HEADER);
}

static struct open *find(struct open *table, uint64_t count, uint32_t connection)
{
	uint64_t low = 0, high = count;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (table[middle].connection == connection)
			return &table[middle];
		if (table[middle].connection < connection)
			low = middle + 1;
		else
			high = middle;
	}
	return 0;
}

static void look(struct reader *reader)
{
	if (reader->end == LOOK)
		reader->end = __atomic_load_n(reader->producer, __ATOMIC_ACQUIRE);
}

/* How many of the next records are each exactly one message of `size` bytes, next in order on its connection.
 * They lie at equal distances. They are read then: `position` and their connections' `next` are behind them.
 */
uint64_t midstream_regular(struct reader *reader, uint32_t size)
{
	uint32_t length = record_length(size);
	struct open *table = reader->streams->table, *open = table;
	uint64_t count = reader->streams->count, position = reader->position, found = 0;

	look(reader);
	for (; position < reader->end; position += occupied(length)) {
		const struct record *record = record_at(reader, position);

		if (length_at(reader, position) != length || record->length != size || record->flags)
			break;
		/* Where sensors take turns, it is the next row. */
		if (open == table + count || open->connection != record->connection)
			open = find(table, count, record->connection);
		if (!open || open->aligned != 1 || open->next != record->offset)
			break;
		open->next += size;
		open++;
		reader->newest = record->time;
		found++;
	}
	reader->position = position;
	reader->streams->delivered += found;
	return found;
}

/* Move over discarded records; 1 if there is a record to be read. */
int midstream_next(struct reader *reader)
{
	look(reader);
	while (reader->position < reader->end) {
		uint32_t length = length_at(reader, reader->position);

		if (length & BUSY)
			return 0;
		if (!(length & DISCARDED))
			return 1;
		reader->position += occupied(length);
	}
	return 0;
}

/* The next record has been read. */
void midstream_skip(struct reader *reader)
{
	reader->newest = record_at(reader, reader->position)->time;
	reader->position += occupied(length_at(reader, reader->position));
}

static int lies_at(const struct committed *slot, uint32_t connection)
{
	return slot->key == (1ull << 32 | connection);
}

/* Need nobody retain this record for the logger? `slot`: the first in which its connection may be. */
static int is_committed(const struct committed_table *table, const struct committed *slot, const struct record *record)
{
	for (uint32_t left = table->mask; slot->key && !lies_at(slot, record->connection) && left; left--)
		slot = slot == &table->slots[table->mask] ? table->slots : slot + 1;
	if (lies_at(slot, record->connection))
		return record->offset + record->length <= slot->offset;
	/* Of those that it knows the daemon names the ones that are to be retained. */
	return (int32_t)(record->connection - table->known) <= 0;
}

/* The position of the first record that has to be retained, as far as the reader is done with them. */
static uint64_t retained(struct reader *reader, uint64_t generation)
{
	const uint8_t *tables = (const uint8_t *)(reader->word + 1);
	const struct committed_table *table = (const void *)(tables + (generation & 1) * reader->table_size);
	uint64_t position = reader->released, end = reader->committed, mask = reader->mask;
	const uint8_t *data = reader->data;

	while (position < end) {
		const uint8_t *head = data + (position & mask);
		const struct record *record = (const struct record *)(head + HEADER);
		uint32_t length = *(const uint32_t *)head;
		const struct committed *slot = &table->slots[record->connection & table->mask];

		/* Usually it is there, and committed. */
		if ((!lies_at(slot, record->connection) || record->offset + record->length > slot->offset) &&
		    !(length & DISCARDED) && !is_committed(table, slot, record))
			break;
		position += occupied(length);
	}
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (__atomic_load_n(&reader->word->generation, __ATOMIC_RELAXED) != generation)
		return reader->released; /* the table was written meanwhile, maybe */
	reader->heard = generation;
	return position;
}

/* The first of the records from `position` on that there is room to retain: the oldest go. */
static uint64_t within_room(const struct reader *reader, uint64_t position, uint64_t stored)
{
	while (stored - position > reader->retain && position < reader->committed)
		position += occupied(*(const uint32_t *)(reader->data + (position & reader->mask)));
	return position;
}

/* Give room back of what is done with: what the logger has committed, or all of it where nobody says what it has, and what
 * the ring has no room to retain.
 */
void midstream_give_back(struct reader *reader)
{
	struct committed_head *word = reader->word;
	uint64_t generation = __atomic_load_n(&word->generation, __ATOMIC_ACQUIRE), to = reader->committed, committed;
	int is_new = generation != reader->heard;

	if (reader->released == to)
		return;
	if (reader->retain && word->time) {
		committed = is_new ? retained(reader, generation) : reader->released;
		if (is_new || (int64_t)(monotonic() - word->time) <= (int64_t)SECOND)
			to = within_room(reader, committed, __atomic_load_n(reader->producer, __ATOMIC_RELAXED));
		word->forfeited += to - committed;
		if (reader->released == to)
			return;
	}
	__atomic_store_n(reader->consumer, to, __ATOMIC_RELEASE);
	reader->released = to;
}

/* Remember that everything before `position` is done with, and only then give it back. */
void midstream_commit(struct reader *reader, const uint8_t *pending, uint32_t length)
{
	uint64_t generation = *(uint64_t *)reader->journal, rows = reader->streams->count;
	struct copy *copy = (struct copy *)(reader->journal + sizeof(generation) + !(generation & 1) * reader->copy_size);

	copy->position = reader->position;
	copy->count = rows;
	copy->pending = length;
	__builtin_memcpy(copy->table, reader->streams->table, rows * sizeof(*copy->table));
	__builtin_memcpy(copy->table + rows, pending, length);
	__atomic_store_n((uint64_t *)reader->journal, generation + 1, __ATOMIC_RELEASE);
	reader->committed = reader->position;
	reader->found = NOTHING;
	__atomic_store_n(&reader->word->read, reader->position, __ATOMIC_RELAXED);
	midstream_give_back(reader);
}

/* Each record wakes: an event may be of one that was read already. */
static int sleep_until_stored(const struct reader *reader)
{
	struct epoll_event events[2];

	do {
		int count = epoll_wait(reader->event, events, 2, -1);

		if (count < 0)
			return -1;
		while (count--)
			if ((int)events[count].fd == (int)reader->stop)
				return 1;
	} while (__atomic_load_n(reader->producer, __ATOMIC_ACQUIRE) == reader->position);
	return 0;
}

/* Sleep until the period is over, or without one until something is stored: 0 then, more if `stop` ends it, -1 for a
 * signal.
 */
static int sleep(const struct reader *reader)
{
	uint64_t begun = reader->follow && reader->newest ? reader->newest + reader->follow : 0, now, left;
	struct pollfd stop = { .fd = reader->stop, .events = POLLIN };
	struct timespec time;

	if (!reader->period)
		return sleep_until_stored(reader);
	now = monotonic();
	left = now < begun ? begun - now : reader->period - (now - begun) % reader->period;
	time = (struct timespec){ .seconds = left / SECOND, .nanoseconds = left % SECOND };
	return ppoll(&stop, 1, &time, 0);
}

/* Did only the timer end a sleep, and was something stored since it last did? Then the ring is in use, and there is
 * nothing to see to.
 */
static int goes_on(struct reader *reader)
{
	uint64_t stored = __atomic_load_n(reader->producer, __ATOMIC_ACQUIRE), expired, seen = reader->seen;

	reader->seen = stored;
	return stored != seen && read(reader->timer, &expired, sizeof(expired)) == sizeof(expired);
}

/* Is all that was read whole messages of connections that go on, so that the table says all? */
static int is_plain(const struct reader *reader)
{
	const struct streams *streams = reader->streams;

	if (reader->spilled || streams->count > reader->most)
		return 0;
	for (uint64_t row = 0; row < streams->count; row++)
		if (streams->table[row].aligned != 1)
			return 0;
	return 1;
}

static inline void copy_values(uint8_t *to, const uint8_t *from, uint64_t stride, uint64_t count, uint64_t size)
{
	for (; count--; from += stride, to += size)
		__builtin_memcpy(to, from, size);
}

static void divide_values(uint64_t *to, const uint8_t *from, uint64_t stride, uint64_t count, uint64_t divisor)
{
	for (; count--; from += stride)
		*to++ = *(const uint64_t *)from / divisor;
}

/* The values of the messages found, each column's end to end. */
static void gather(const struct reader *reader)
{
	const uint8_t *first = (const uint8_t *)record_at(reader, reader->start);
	uint64_t stride = occupied(record_length(reader->size)), count = reader->found;
	const struct column *end = reader->columns + reader->columns_count;

	for (const struct column *column = reader->columns; column < end; column++) {
		const uint8_t *from = first + column->offset;

		if (column->divisor)
			divide_values((uint64_t *)column->values, from, stride, count, column->divisor);
		else if (column->size == 8) /* known, it is two instructions a value */
			copy_values(column->values, from, stride, count, 8);
		else if (column->size == 4)
			copy_values(column->values, from, stride, count, 4);
		else
			copy_values(column->values, from, stride, count, column->size);
	}
}

/* A whole cycle of a reader: commit, sleep, and midstream_regular on what has arrived then. */
static enum status cycle(struct reader *reader)
{
	int ended;

	reader->found = NOTHING;
	if (!is_plain(reader))
		return DECLINED;
	if (reader->position != reader->committed)
		midstream_commit(reader, (const uint8_t *)"", 0);
	do
		ended = sleep(reader);
	while (ended > 0 && goes_on(reader));
	if (ended)
		return ended < 0 ? SIGNALLED : ENDED;
	reader->start = reader->position;
	reader->end = LOOK;
	reader->found = midstream_regular(reader, reader->size);
	return reader->position == reader->end ? WHOLE : MORE;
}

/* Was what Python prepared made for as many messages as were found, and for their place? */
static int fits(const struct reader *reader, uint64_t start, uint64_t stride)
{
	if (!reader->found)
		return 1;
	if (reader->columns_count)
		return reader->found < reader->usual;
	return start >= reader->phase && !((start - reader->phase) % stride);
}

/* The messages found, of what Python prepared: of a list of columns those at their number, of a view of the ring a
 * slice.
 */
static PyObject *give(const struct reader *reader, PyObject *prepared, uint64_t start, uint64_t stride)
{
	PyObject *columns;
	uint64_t row = 0;

	if (!reader->columns_count) {
		if (reader->found)
			row = (start - reader->phase) / stride;
		return PySequence_GetSlice(prepared, row, row + reader->found);
	}
	gather(reader);
	columns = PyList_GetItem(prepared, reader->found);
	Py_IncRef(columns);
	return columns;
}

/* A cycle for Python, without arguments; other threads run while it sleeps. `prepared`: the reader's address, what is
 * to be given, and what has to stay in memory. None if Python has to go on, as `status` says; also after the handler of
 * a signal, which may have closed the reader.
 */
static PyObject *python_cycle(PyObject *prepared, PyObject *nothing)
{
	struct reader *reader = PyLong_AsVoidPtr(PyList_GetItem(prepared, 0));
	void *thread = PyEval_SaveThread();
	enum status status = cycle(reader);
	uint64_t start, stride;

	(void)nothing;
	PyEval_RestoreThread(thread);
	if (status == WHOLE) {
		start = reader->start & reader->mask;
		stride = occupied(record_length(reader->size));
		if (fits(reader, start, stride))
			return give(reader, PyList_GetItem(prepared, 1), start, stride);
		status = UNFIT;
	} else if (status == SIGNALLED) {
		if (PyErr_CheckSignals())
			return 0;
		reader->found = NOTHING; /* whatever the handler read */
	}
	reader->status = status;
	Py_IncRef(&_Py_NoneStruct);
	return &_Py_NoneStruct;
}

#define METH_NOARGS 4

/* A PyMethodDef, which has to outlive all that is made of it. */
static const struct {
	const char *name;
	PyObject *(*function)(PyObject *self, PyObject *nothing);
	int flags;
	const char *doc;
} cycle_method = { "cycle", python_cycle, METH_NOARGS, 0 };

/* Cycles, as a function that is built into Python: to call that takes half as long as ctypes. Called with Python's lock
 * held.
 */
PyObject *midstream_cycles(PyObject *prepared)
{
	return PyCFunction_NewEx(&cycle_method, prepared, 0);
}
