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
#define BLOCK 64u /* a record has room for whole blocks of payload (ebpf/store.h) */
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

/* What the reader has done, in memory that outlives it: a generation, and two copies of which its
 * lowest bit names the valid one. A reader that is killed at any moment leaves a whole one.
 */
struct copy {
	uint64_t position; /* in the ring */
	uint32_t count;	   /* rows of the table */
	uint32_t pending;  /* bytes behind the table, of messages that are not whole yet */
	struct open table[];
};

struct ring {
	const uint64_t *producer;
	uint64_t *consumer;
	const uint8_t *data; /* mapped twice in a row, so that a record never wraps */
	uint64_t mask;
};

static uint64_t occupied(uint32_t length)
{
	return ((length & ~(BUSY | DISCARDED)) + HEADER + 7) & ~7ull;
}

static uint32_t length_at(const struct ring *ring, uint64_t position)
{
	return __atomic_load_n((const uint32_t *)(ring->data + (position & ring->mask)), __ATOMIC_ACQUIRE);
}

static const struct record *record_at(const struct ring *ring, uint64_t position)
{
	return (const struct record *)(ring->data + (position & ring->mask) + HEADER);
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

/* How many records from position `from` on are each exactly one message of `size` bytes, next in order
 * on its connection. They lie at equal distances. Their connections' `next` is moved past them.
 */
uint64_t midstream_regular(const struct ring *ring, uint64_t from, uint64_t end, uint32_t size, struct open *table,
			   uint64_t count)
{
	uint32_t length = sizeof(struct record) + ((size + BLOCK - 1) & ~(BLOCK - 1));
	uint64_t found = 0;

	for (uint64_t position = from; position < end; position += occupied(length)) {
		const struct record *record = record_at(ring, position);
		struct open *open;

		if (length_at(ring, position) != length || record->length != size || record->flags)
			break;
		open = find(table, count, record->connection);
		if (!open || open->aligned != 1 || open->next != record->offset)
			break;
		open->next += size;
		found++;
	}
	return found;
}

/* Move `*position` over discarded records; 1 if a record can be read there, before `end`. */
int midstream_next(const struct ring *ring, uint64_t *position, uint64_t end)
{
	while (*position < end) {
		uint32_t length = length_at(ring, *position);

		if (length & BUSY)
			return 0;
		if (!(length & DISCARDED))
			return 1;
		*position += occupied(length);
	}
	return 0;
}

/* Where the record behind the one at `position` starts. */
uint64_t midstream_after(const struct ring *ring, uint64_t position)
{
	return position + occupied(length_at(ring, position));
}

/* Remember that everything before `position` is done with, and only then give it back. */
void midstream_commit(const struct ring *ring, uint64_t position, uint8_t *journal, uint64_t copy_size,
		      const struct open *table, uint32_t count, const uint8_t *pending, uint32_t length)
{
	uint64_t generation = *(uint64_t *)journal;
	struct copy *copy = (struct copy *)(journal + sizeof(generation) + !(generation & 1) * copy_size);

	copy->position = position;
	copy->count = count;
	copy->pending = length;
	__builtin_memcpy(copy->table, table, count * sizeof(*table));
	__builtin_memcpy(copy->table + count, pending, length);
	__atomic_store_n((uint64_t *)journal, generation + 1, __ATOMIC_RELEASE);
	__atomic_store_n(ring->consumer, position, __ATOMIC_RELEASE);
}

/* Where the next record will be reserved. */
uint64_t midstream_end(const struct ring *ring)
{
	return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
}
