// SPDX-License-Identifier: MIT
/* Python cannot say "acquire": whoever sees the producer's position, or a record's length without the
 * busy bit, must also see what was written before it, on ARM too. These few loads and stores are here
 * for that, and looking at a whole batch at once comes for free. Nothing here knows Python.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

#define SECOND 1000000000ull
/* For so long a word of the daemon's holds: it may be stopped, or late, when what is retained is needed. */
#define HOLDS (15 * SECOND)

static uint64_t monotonic(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * SECOND + time.tv_nsec;
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

/* From a record with a whole message to the next. */
uint64_t reader_stride(uint32_t size)
{
	return occupied(record_length(size));
}

static uint32_t length_at(const struct reader *reader, uint64_t position)
{
	return __atomic_load_n((const uint32_t *)(reader->data + (position & reader->mask)), __ATOMIC_ACQUIRE);
}

const struct record *reader_record(const struct reader *reader, uint64_t position)
{
	return (const struct record *)(reader->data + (position & reader->mask) + HEADER);
}

static void look(struct reader *reader)
{
	if (reader->end == LOOK)
		reader->end = __atomic_load_n(reader->producer, __ATOMIC_ACQUIRE);
}

/* How many of the next records are each exactly one message of fixed size, next in order on its connection.
 * They lie at equal distances. They are read then: `position` and their connections' `next` are behind them.
 */
uint64_t reader_regular(struct reader *reader)
{
	uint32_t size = reader->size, length = record_length(size);
	struct open *table = reader->table, *open = table;
	uint64_t count = reader->connections, position = reader->position, found = 0;

	look(reader);
	for (; position < reader->end; position += occupied(length)) {
		const struct record *record = reader_record(reader, position);

		if (length_at(reader, position) != length || record->length != size || record->flags)
			break;
		/* Where sensors take turns, it is the next row. */
		if (open == table + count || open->connection != record->connection)
			open = reader_find(reader, record->connection);
		if (!open || open->state != PLAIN || open->next != record->offset)
			break;
		open->next += size;
		open++;
		reader->newest = record->time;
		reader->heard_of[record->sensor & (SENSORS - 1)] = record->time;
		found++;
	}
	reader->uncommitted |= position != reader->position;
	reader->position = position;
	reader->messages += found;
	reader->bytes += found * size;
	return found;
}

/* Move over discarded records; 1 if there is a record to be read. */
int reader_next(struct reader *reader)
{
	look(reader);
	while (reader->position < reader->end) {
		uint32_t length = length_at(reader, reader->position);

		if (length & BUSY) {
			reader->end = reader->position; /* until the next look */
			return 0;
		}
		if (!(length & DISCARDED))
			return 1;
		reader->position += occupied(length);
		reader->uncommitted = 1;
	}
	return 0;
}

/* The next record has been read. */
void reader_skip(struct reader *reader)
{
	const struct record *record = reader_record(reader, reader->position);

	reader->newest = record->time;
	if (record->length)
		reader->heard_of[record->sensor & (SENSORS - 1)] = record->time;
	reader->position += occupied(length_at(reader, reader->position));
	reader->uncommitted = 1;
}

/* When the last data of each sensor came, read or not: SENSORS times. */
void reader_heard(const struct reader *reader, uint64_t *times)
{
	uint64_t position = reader->position, end = __atomic_load_n(reader->producer, __ATOMIC_ACQUIRE);

	memcpy(times, reader->heard_of, sizeof(reader->heard_of));
	while (position < end) {
		const struct record *record = reader_record(reader, position);
		uint32_t length = length_at(reader, position);

		if (length & BUSY)
			break;
		if (!(length & DISCARDED) && record->length)
			times[record->sensor & (SENSORS - 1)] = record->time;
		position += occupied(length);
	}
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
void reader_give_back(struct reader *reader)
{
	struct committed_head *word = reader->word;
	uint64_t generation = __atomic_load_n(&word->generation, __ATOMIC_ACQUIRE), to = reader->committed, committed;
	int is_new = generation != reader->heard;

	if (reader->released == to)
		return;
	if (reader->retain && word->time) {
		committed = is_new ? retained(reader, generation) : reader->released;
		if (is_new || (int64_t)(monotonic() - word->time) <= (int64_t)HOLDS)
			to = within_room(reader, committed, __atomic_load_n(reader->producer, __ATOMIC_RELAXED));
		word->forfeited += to - committed;
		if (reader->released == to)
			return;
	}
	__atomic_store_n(reader->consumer, to, __ATOMIC_RELEASE);
	reader->released = to;
}

/* Remember what is done with, and only then give it back. 0, and nothing is done, if the journal has no room for so
 * many connections, or if messages that are not whole hold too much of the ring.
 */
int reader_commit(struct reader *reader)
{
	uint64_t generation = *(uint64_t *)reader->journal, rows = reader->connections;
	struct copy *copy = (struct copy *)(reader->journal + sizeof(generation) + !(generation & 1) * reader->copy_size);
	uint64_t needed = reader_needed(reader);

	if (rows > reader->most || reader->position - needed > reader->patience)
		return 0;
	copy->position = needed;
	copy->read = reader->position;
	copy->count = rows;
	memcpy(copy->table, reader->table, rows * sizeof(*copy->table));
	__atomic_store_n((uint64_t *)reader->journal, generation + 1, __ATOMIC_RELEASE);
	reader->committed = needed;
	reader->uncommitted = 0;
	reader->found = NOTHING;
	__atomic_store_n(&reader->word->read, needed, __ATOMIC_RELAXED);
	reader_give_back(reader);
	return 1;
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
			if ((int)events[count].data.fd == (int)reader->stop)
				return 1;
	} while (__atomic_load_n(reader->producer, __ATOMIC_ACQUIRE) == reader->position);
	return 0;
}

/* Sleep until the period is over, or without one until something is stored: 0 then, more if `stop` ends it, -1 for a
 * signal.
 */
static int sleep_until_due(const struct reader *reader)
{
	uint64_t begun = reader->follow && reader->newest ? reader->newest + reader->follow : 0, now, left;
	struct pollfd stop = { .fd = reader->stop, .events = POLLIN };
	struct timespec time;

	if (!reader->period)
		return sleep_until_stored(reader);
	now = monotonic();
	left = now < begun ? begun - now : reader->period - (now - begun) % reader->period;
	time = (struct timespec){ .tv_sec = left / SECOND, .tv_nsec = left % SECOND };
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

static inline void copy_values(uint8_t *to, const uint8_t *from, uint64_t stride, uint64_t count, uint64_t size)
{
	for (; count--; from += stride, to += size)
		memcpy(to, from, size);
}

static void divide_values(uint64_t *to, const uint8_t *from, uint64_t stride, uint64_t count, uint64_t divisor)
{
	for (; count--; from += stride)
		*to++ = *(const uint64_t *)from / divisor;
}

/* The values of the messages found, each column's end to end. */
void reader_gather(const struct reader *reader)
{
	const uint8_t *first = (const uint8_t *)reader_record(reader, reader->start);
	uint64_t stride = reader_stride(reader->size), count = reader->found;
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

/* Commit, sleep, and look: WHOLE if that is done. */
static enum status rest(struct reader *reader)
{
	int ended;

	reader->found = NOTHING;
	if (reader->uncommitted && (reader->spilled || !reader_commit(reader)))
		return DECLINED;
	do
		ended = sleep_until_due(reader);
	while (ended > 0 && goes_on(reader));
	if (ended)
		return ended < 0 ? SIGNALLED : ENDED;
	reader->end = LOOK;
	return WHOLE;
}

/* A cycle of a reader that takes messages one by one: it sleeps until one is whole, or with a period until that is
 * over.
 */
enum status reader_rest(struct reader *reader)
{
	struct message message;
	enum status status;

	do
		status = rest(reader);
	while (status == WHOLE && !reader->period && !reader_message(reader, &message));
	return status;
}

/* A cycle of one that takes them together: reader_regular on what has arrived. Segments that only split messages are
 * taken in, too.
 */
enum status reader_cycle(struct reader *reader)
{
	enum status status = rest(reader);
	struct message message;

	if (status != WHOLE)
		return status;
	reader->start = reader->position;
	reader->found = reader_regular(reader);
	if (reader->position != reader->end && (reader->found || reader_message(reader, &message)))
		return MORE;
	return WHOLE;
}
