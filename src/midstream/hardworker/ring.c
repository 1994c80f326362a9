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
	uint32_t aligned; /* a message starts at `next`, nothing is kept behind a hole, and no end is known */
	uint64_t next;
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
uint64_t midstream_regular(const struct ring *ring, uint64_t from, uint32_t size, struct open *table, uint64_t count)
{
	uint64_t end = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
	uint32_t length = sizeof(struct record) + size;
	uint64_t found = 0;

	for (uint64_t position = from; position < end; position += occupied(length)) {
		const struct record *record = record_at(ring, position);
		struct open *open;

		if (length_at(ring, position) != length || record->length != size || record->flags)
			break;
		open = find(table, count, record->connection);
		if (!open || !open->aligned || open->next != record->offset)
			break;
		open->next += size;
		found++;
	}
	return found;
}

/* Move `*position` over discarded records; 1 if a record can be read there. */
int midstream_next(const struct ring *ring, uint64_t *position)
{
	uint64_t end = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);

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

/* Give everything before `position` back to the producer; what was read of it has been read. */
void midstream_release(const struct ring *ring, uint64_t position)
{
	__atomic_store_n(ring->consumer, position, __ATOMIC_RELEASE);
}

/* The bytes that the producer has reserved and the reader has not given back. */
uint64_t midstream_used(const struct ring *ring)
{
	return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE) - *ring->consumer;
}
