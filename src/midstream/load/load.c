// SPDX-License-Identifier: MIT
/* The sensors of a benchmark: many connections, one thread, each message at its time.
 *
 *   load CONNECTIONS COUNTS RTO_MAX_MS RTO_MIN_US FLAGS [RECORD] < events > summary.json
 *
 * CONNECTIONS: a text file, a line each: NAMESPACE SOURCE DESTINATION PORT TOS FRAMING ("-": this namespace, any
 * source).
 * COUNTS: a file of a u64 for each connection, mapped: messages sent so far, for whoever watches.
 * FLAGS: 'r': a connection that is lost is made again, until the events end; otherwise that is an error.
 * RECORD: a file that gets a struct sent for each message that TCP has taken.
 *
 * It connects, says "ready" on standard error and reads events (struct event). The first one's `at` is the
 * start, absolute; the others follow in the order of their times, relative to it. Every deadline is absolute,
 * so nothing adds up. A connection that TCP lets not send keeps no other waiting: its messages queue as times.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "connection.h"

#define PATIENCE (10 * SECOND) /* to connect at the start, and to close at the end */
#define BATCH 4096	       /* events read at a time */

/* Wait for sockets, but no longer than to `deadline`. */
static void wait_until(uint64_t deadline)
{
	struct epoll_event found[64];
	uint64_t time = now(CLOCK_MONOTONIC);
	uint64_t left = deadline > time ? deadline - time : 0;
	struct timespec timeout = { left / SECOND, left % SECOND };
	int n = syscall(SYS_epoll_pwait2, events, found, 64, &timeout, NULL, 0);

	for (int i = 0; i < n; i++)
		ready(found[i].data.ptr, found[i].events);
}

static int busy(void)
{
	for (unsigned int i = 0; i < count; i++)
		if (all[i].waiting || all[i].length || all[i].flood_until || all[i].state == CONNECTING)
			return 1;
	return 0;
}

static void revive(uint64_t time)
{
	for (unsigned int i = 0; i < count; i++)
		if (all[i].state == CLOSED && time >= all[i].retry)
			begin(&all[i]);
}

/* Sleep until a deadline, on the clock and on nothing else unless a socket is waited for. */
static void await(uint64_t deadline)
{
	struct timespec time = { deadline / SECOND, deadline % SECOND };

	while (!stopped && now(CLOCK_MONOTONIC) < deadline) {
		uint64_t soon = now(CLOCK_MONOTONIC) + RETRY;

		if (again)
			revive(soon - RETRY);
		if (busy() || again)
			wait_until(again && soon < deadline ? soon : deadline);
		else
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
	}
}

static void read_connections(const char *path)
{
	char namespace[256], source[64], peer[64], framing[16];
	int port, tos;
	FILE *file = fopen(path, "re");

	if (!file)
		fail(path, strerror(errno));
	while (fscanf(file, "%255s %63s %63s %d %d %15s", namespace, source, peer, &port, &tos, framing) == 6) {
		struct connection *c;

		all = realloc(all, (count + 1) * sizeof(*all));
		if (!all)
			fail("memory", "none left for connections");
		c = &all[count++];
		memset(c, 0, sizeof(*c));
		c->namespace = strcmp(namespace, "-") ? open(namespace, O_RDONLY | O_CLOEXEC) : -1;
		if (c->namespace < 0 && strcmp(namespace, "-"))
			fail(namespace, strerror(errno));
		c->source.sin_family = c->peer.sin_family = AF_INET;
		c->peer.sin_port = htons(port);
		c->tos = tos;
		if ((strcmp(source, "-") && inet_pton(AF_INET, source, &c->source.sin_addr) != 1) ||
		    inet_pton(AF_INET, peer, &c->peer.sin_addr) != 1)
			fail(path, "not an IPv4 address");
		if (framing_of(framing) < 0)
			fail(path, "not a framing");
		c->framing = framing_of(framing);
		c->message = malloc(LONGEST_FRAME);
		if (!c->message)
			fail("memory", "none left for messages");
	}
	fclose(file);
}

static void summarize(void)
{
	double seconds = (last_sent - first_sent) / 1e9;
	uint64_t messages = 0, unsent = 0, lost = 0, unacknowledged = 0;
	int clean = 1;

	for (unsigned int i = 0; i < count; i++) {
		if (all[i].state == OPEN || all[i].state == CLOSING)
			account(&all[i]); /* its peer took nothing more */
		messages += all[i].messages;
		unsent += all[i].unsent + all[i].waiting + !!all[i].length;
		unacknowledged += all[i].unacknowledged;
		lost += all[i].lost;
		clean &= all[i].clean;
	}
	printf("{\"messages\": %llu, \"unsent\": %llu, \"unacknowledged\": %llu, \"lost\": %llu, \"clean\": %s, ",
	       (unsigned long long)messages, (unsigned long long)unsent, (unsigned long long)unacknowledged,
	       (unsigned long long)lost, clean ? "true" : "false");
	printf("\"seconds\": %.6f, ", seconds);
	printf("\"late_p50_us\": %.3f, \"late_p99_us\": %.3f, \"late_p999_us\": %.3f, \"late_max_us\": %.3f, ",
	       quantile(.5) / 1e3, quantile(.99) / 1e3, quantile(.999) / 1e3, latest / 1e3);
	printf("\"connections\": [");
	for (unsigned int i = 0; i < count; i++)
		printf("%s{\"port\": %d, \"messages\": %llu, \"bytes\": %llu, \"clean\": %s}", i ? ", " : "",
		       all[i].port, (unsigned long long)all[i].messages, (unsigned long long)all[i].bytes,
		       all[i].clean ? "true" : "false");
	printf("]}\n");
}

int main(int argc, char **argv)
{
	static struct event batch[BATCH];
	struct sigaction action = { .sa_handler = stop };
	uint64_t deadline;
	size_t held = 0;
	int file, closing;

	if (argc != 6 && argc != 7)
		fail("usage", "load CONNECTIONS COUNTS RTO_MAX_MS RTO_MIN_US FLAGS [RECORD]");
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	prctl(PR_SET_TIMERSLACK, 1);
	rto_max = atoi(argv[3]);
	rto_min = atoi(argv[4]);
	events = epoll_create1(EPOLL_CLOEXEC);
	read_connections(argv[1]);
	if (argc == 7 && !(record = fopen(argv[6], "wbe")))
		fail(argv[6], strerror(errno));
	file = open(argv[2], O_RDWR | O_CLOEXEC);
	counts = count ? mmap(NULL, 8 * count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
	if (counts == MAP_FAILED)
		fail(argv[2], strerror(errno));

	for (unsigned int i = 0; i < count; i++) /* one at a time: no listener drops what its backlog has no room for */
		for (begin(&all[i]), deadline = now(CLOCK_MONOTONIC) + PATIENCE; all[i].state != OPEN;) {
			if (stopped || now(CLOCK_MONOTONIC) > deadline)
				fail(argv[1], "a peer does not answer");
			wait_until(now(CLOCK_MONOTONIC) + RETRY);
			if (all[i].state == CLOSED)
				begin(&all[i]);
		}
	again = !!strchr(argv[5], 'r');
	fprintf(stderr, "ready\n");

	while (!stopped) {
		ssize_t got = read(0, (char *)batch + held, sizeof(batch) - held);
		size_t n;

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		held += got;
		n = held / sizeof(*batch);
		for (size_t i = 0; i < n && !stopped; i++) {
			struct event *event = &batch[i];

			if (!start) {
				start = event->at;
				await(start);
				continue;
			}
			if (event->connection >= count || !possible(all[event->connection].framing, event->size))
				fail("event", "no such connection or size");
			await(start + event->at);
			add(&all[event->connection], event);
			serve(&all[event->connection]);
		}
		held -= n * sizeof(*batch);
		memmove(batch, (char *)batch + n * sizeof(*batch), held);
	}

	/* What is due is sent before the connections close; a flood ends at its time. */
	again = 0;
	for (deadline = 0; busy();) {
		uint64_t time = now(CLOCK_MONOTONIC), flood = 0;

		for (unsigned int i = 0; i < count; i++)
			if (all[i].flood_until > flood)
				flood = all[i].flood_until;
		if (stopped || !flood)
			deadline = deadline ? deadline : time + PATIENCE;
		if (deadline && time > deadline)
			break;
		wait_until(time + RETRY);
	}
	for (unsigned int i = 0; i < count; i++)
		if (all[i].state == OPEN)
			finish(&all[i]);
	for (closing = 1, deadline = now(CLOCK_MONOTONIC) + PATIENCE; closing && now(CLOCK_MONOTONIC) < deadline;) {
		closing = 0;
		for (unsigned int i = 0; i < count; i++)
			closing |= all[i].state == CLOSING;
		if (closing)
			wait_until(now(CLOCK_MONOTONIC) + RETRY);
	}
	if (record && fclose(record))
		fail(argv[6], strerror(errno));
	summarize();
	return 0;
}
