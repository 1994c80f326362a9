// SPDX-License-Identifier: MIT
/* A consumer of midstream's rings in C, as small as it can be: bytes in order, no journal.
 *
 *   ring PERIOD_US FOLLOW PINS FRAMING SIZE [PINS FRAMING SIZE …]
 *
 * PINS: the folder of a stream's pins. PERIOD_US 0: woken by epoll; else it looks once a period. FOLLOW 1: the
 * interface's interrupts are deferred, and it looks shortly after they come (see Hardworker.wait).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/bpf.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "application.h"

#define BUSY (1u << 31)
#define DISCARDED (1u << 30)
#define MOST 4096
#define RINGS 32
#define RECORD_OPEN 1 /* ebpf/record.h */

struct record {
	uint32_t header, page; /* the ring's own: length with two flags */
	uint64_t offset, time;
	uint32_t connection, length;
	uint16_t sensor, port, flags, unused;
	uint8_t payload[];
};

/* Bytes behind a hole, kept until it is closed. */
struct early {
	struct early *next;
	uint64_t offset;
	uint32_t length;
	uint8_t data[];
};

struct connection {
	struct stream stream;
	uint64_t offset; /* of the next byte */
	struct early *early; /* sorted */
};

/* Of a stream. */
static struct ring {
	int map;
	struct kind kind;
	uint64_t *consumer;
	const uint64_t *producer;
	const uint8_t *data;
	uint64_t mask;
	struct connection connections[MOST];
} rings[RINGS];

static uint64_t newest;

static void open_ring(struct ring *opened, const char *pins)
{
	char path[4096];
	union bpf_attr attr = { .pathname = (uint64_t)path };
	struct bpf_map_info info = {};
	union bpf_attr ask = { .info = { .info_len = sizeof(info), .info = (uint64_t)&info } };
	const long page = sysconf(_SC_PAGESIZE);
	int ring;
	void *pages;

	snprintf(path, sizeof(path), "%s/ring", pins);
	ring = syscall(SYS_bpf, BPF_OBJ_GET, &attr, sizeof(attr));
	ask.info.bpf_fd = ring;
	if (ring < 0 || syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &ask, sizeof(ask)))
		fail(path);
	opened->consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0);
	pages = mmap(NULL, page + 2ul * info.max_entries, PROT_READ, MAP_SHARED, ring, page);
	if (opened->consumer == MAP_FAILED || pages == MAP_FAILED)
		fail("mmap");
	opened->producer = pages;
	opened->data = (const uint8_t *)pages + page;
	opened->mask = info.max_entries - 1;
	opened->map = ring;
}

static void open_connection(struct connection *c, struct kind kind)
{
	*c = (struct connection){};
	open_stream(&c->stream, kind);
}

/* The part of these bytes that is new, if they are next. */
static void take(struct connection *c, uint64_t offset, const uint8_t *bytes, uint32_t length)
{
	if (offset + length > c->offset) {
		feed(&c->stream, bytes + (c->offset - offset), offset + length - c->offset);
		c->offset = offset + length;
	}
}

static void store(struct connection *c, uint64_t offset, const uint8_t *bytes, uint32_t length)
{
	struct early **place = &c->early, *early;

	if (offset > c->offset) {
		while (*place && (*place)->offset < offset)
			place = &(*place)->next;
		early = malloc(sizeof(*early) + length);
		if (!early)
			fail("memory");
		*early = (struct early){ .next = *place, .offset = offset, .length = length };
		memcpy(early->data, bytes, length);
		*place = early;
		return;
	}
	take(c, offset, bytes, length);
	while ((early = c->early) && early->offset <= c->offset) {
		take(c, early->offset, early->data, early->length);
		c->early = early->next;
		free(early);
	}
}

static void consume(struct ring *ring)
{
	uint64_t position = *ring->consumer, end = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);

	if (position == end)
		return;
	application.now = now(CLOCK_REALTIME);
	while (position < end) {
		const struct record *record = (const void *)(ring->data + (position & ring->mask));
		uint32_t header = __atomic_load_n(&record->header, __ATOMIC_ACQUIRE);

		if (header & BUSY)
			break;
		position += ((header & ~DISCARDED) + 8 + 7) & ~7ul;
		if (header & DISCARDED)
			continue;
		newest = record->time;
		if (record->flags & RECORD_OPEN)
			open_connection(&ring->connections[record->connection % MOST], ring->kind);
		else if (record->length)
			store(&ring->connections[record->connection % MOST], record->offset, record->payload,
			      record->length);
	}
	__atomic_store_n(ring->consumer, position, __ATOMIC_RELEASE);
}

int main(int argc, char **argv)
{
	struct epoll_event event = { .events = EPOLLIN };
	int events = epoll_create1(EPOLL_CLOEXEC), count = (argc - 3) / 3;
	uint64_t period;

	if (argc < 6 || argc % 3 || count > RINGS) {
		errno = EINVAL;
		fail("usage: ring PERIOD_US FOLLOW PINS FRAMING SIZE [PINS FRAMING SIZE …]");
	}
	start_application();
	period = strtoull(argv[1], NULL, 10) * 1000;
	for (int i = 0; i < count; i++) {
		char **words = argv + 3 + 3 * i;

		rings[i].kind = kind_of(words[1], words[2]);
		open_ring(&rings[i], words[0]);
		if (epoll_ctl(events, EPOLL_CTL_ADD, rings[i].map, &event))
			fail("epoll");
	}
	fprintf(stderr, "ready\n");
	while (!application.stopped) {
		if (period)
			sleep_to_period(period, atoi(argv[2]) && newest ? newest - period / 32 : 0);
		else
			epoll_wait(events, &event, 1, -1);
		application.wakeups++;
		for (int i = 0; i < count; i++)
			consume(&rings[i]);
	}
	finish_application();
}
