// SPDX-License-Identifier: MIT
/* A consumer of midstream's ring in C, as small as it can be: bytes in order, no journal.
 *
 *   ring PINS SIZE PERIOD_US FOLLOW
 *
 * PINS: the folder of the hardworker's pins. PERIOD_US 0: woken by epoll; else it looks once a period. FOLLOW 1: the
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

static struct connection {
	struct stream stream;
	uint64_t offset; /* of the next byte */
	struct early *early; /* sorted */
} connections[MOST];

static uint64_t *consumer;
static const uint64_t *producer;
static const uint8_t *data;
static uint64_t mask, newest;

static int open_ring(const char *pins)
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
	consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0);
	pages = mmap(NULL, page + 2ul * info.max_entries, PROT_READ, MAP_SHARED, ring, page);
	if (consumer == MAP_FAILED || pages == MAP_FAILED)
		fail("mmap");
	producer = pages;
	data = (const uint8_t *)pages + page;
	mask = info.max_entries - 1;
	return ring;
}

static void open_connection(struct connection *c)
{
	*c = (struct connection){};
	open_stream(&c->stream);
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

static void consume(void)
{
	uint64_t position = *consumer, end = __atomic_load_n(producer, __ATOMIC_ACQUIRE);

	if (position == end)
		return;
	application.now = now(CLOCK_REALTIME);
	while (position < end) {
		const struct record *record = (const void *)(data + (position & mask));
		uint32_t header = __atomic_load_n(&record->header, __ATOMIC_ACQUIRE);

		if (header & BUSY)
			break;
		position += ((header & ~DISCARDED) + 8 + 7) & ~7ul;
		if (header & DISCARDED)
			continue;
		newest = record->time;
		if (record->flags & RECORD_OPEN)
			open_connection(&connections[record->connection % MOST]);
		else if (record->length)
			store(&connections[record->connection % MOST], record->offset, record->payload,
			      record->length);
	}
	__atomic_store_n(consumer, position, __ATOMIC_RELEASE);
}

int main(int argc, char **argv)
{
	struct epoll_event event = { .events = EPOLLIN };
	int events = epoll_create1(EPOLL_CLOEXEC), ring;
	uint64_t period;

	if (argc != 5) {
		errno = EINVAL;
		fail("usage: ring PINS SIZE PERIOD_US FOLLOW");
	}
	start_application(atoi(argv[2]));
	ring = open_ring(argv[1]);
	period = strtoull(argv[3], NULL, 10) * 1000;
	if (epoll_ctl(events, EPOLL_CTL_ADD, ring, &event))
		fail("epoll");
	fprintf(stderr, "ready\n");
	while (!application.stopped) {
		if (period)
			sleep_to_period(period, atoi(argv[4]) && newest ? newest - period / 32 : 0);
		else
			epoll_wait(events, &event, 1, -1);
		application.wakeups++;
		consume();
	}
	finish_application();
}
