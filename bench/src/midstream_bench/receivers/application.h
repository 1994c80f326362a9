// SPDX-License-Identifier: MIT
/* What every receiver written in C does with a message, and what it says in the end (see bench/receiver.py).
 *
 * In the measured window: the sequence number continues that of the connection, count, keep the latency. Outside
 * it every byte is verified instead.
 */
#pragma once
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "frames.h"

#define LATENCIES (1u << 22) /* a longer window keeps its last ones */
#define BUCKETS (64 * 8)

struct stream {
	uint64_t next;	/* sequence number */
	int64_t number; /* the load's; -1: not known yet */
	struct frames frames;
};

static struct {
	uint64_t now; /* CLOCK_REALTIME when the application got what it is handed */
	uint64_t connections, messages, bytes, errors, verified, window, wakeups, window_wakeups;
	volatile sig_atomic_t measuring, stopped;
	struct rusage begin, end;
	uint32_t *latencies;
} application;

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(5);
}

static void on_signal(int number)
{
	if (number == SIGUSR1) {
		getrusage(RUSAGE_SELF, &application.begin);
		application.window = 0;
		application.window_wakeups = application.wakeups;
		application.measuring = 1;
	} else if (number == SIGUSR2) {
		application.measuring = 0;
		application.window_wakeups = application.wakeups - application.window_wakeups;
		getrusage(RUSAGE_SELF, &application.end);
	} else {
		application.stopped = 1;
	}
}

static void start_application(void)
{
	struct sigaction action = { .sa_handler = on_signal };

	application.latencies = malloc(LATENCIES * sizeof(uint32_t));
	if (!application.latencies)
		fail("memory");
	memset(application.latencies, 1, LATENCIES * sizeof(uint32_t)); /* no page is first touched in the window */
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGUSR2, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
}

/* What comes, of the words that say it: its framing, and the bytes of a message, or of the longest. */
struct kind {
	enum framing framing;
	uint32_t size;
};

static struct kind kind_of(const char *framing, const char *size)
{
	struct kind kind = { .size = atoi(size) };

	if (framing_of(framing) < 0 || kind.size < HEADER || kind.size > LARGEST) {
		errno = EINVAL;
		fail("framing and bytes a message");
	}
	kind.framing = framing_of(framing);
	return kind;
}

static void open_stream(struct stream *stream, struct kind kind)
{
	stream->next = 0;
	stream->number = -1;
	if (!open_frames(&stream->frames, kind.framing, kind.size))
		fail("memory");
	memset(stream->frames.partial, 1, kind.size); /* no page is first touched in the window */
	application.connections++;
}

static int verify(struct stream *stream, const uint8_t *message, uint32_t size)
{
	for (uint32_t n = 0; n < CONNECTIONS && stream->number < 0; n++)
		if (fits(message, size < HEADER + 8 ? size : HEADER + 8, n, stream->next))
			stream->number = n;
	application.verified++;
	return stream->number >= 0 && fits(message, size, stream->number, stream->next);
}

static inline void deliver(struct stream *stream, const uint8_t *payload, uint32_t size)
{
	static uint8_t room[LARGEST / 2];
	const uint8_t *message = carried(stream->frames.framing, payload, &size, room);
	uint64_t sequence, sent;

	if (!message) {
		application.errors++;
		return;
	}
	memcpy(&sequence, message, 8);
	memcpy(&sent, message + 8, 8);
	if (sequence != stream->next)
		application.errors++;
	else if (!application.measuring && !verify(stream, message, size))
		application.errors++;
	stream->next = sequence + 1;
	application.messages++;
	if (application.measuring)
		application.latencies[application.window++ % LATENCIES] =
			application.now < sent ? 0 : application.now - sent > ~0u ? ~0u : application.now - sent;
}

/* Bytes of a stream, next in order: cut them into messages. */
static inline void feed(struct stream *stream, const uint8_t *data, size_t length)
{
	const uint8_t *message;
	uint32_t size;

	application.bytes += length;
	while ((message = next_message(&stream->frames, &data, &length, &size)))
		deliver(stream, message, size);
	application.errors += stream->frames.broken;
}

/* Until the next multiple of the period, counted from `begun`, by CLOCK_MONOTONIC. */
static inline void sleep_to_period(uint64_t period, uint64_t begun)
{
	uint64_t from = now(CLOCK_MONOTONIC), next = from + period - (from - begun) % period;
	struct timespec wake = { .tv_sec = next / 1000000000, .tv_nsec = next % 1000000000 };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static unsigned long long microseconds(struct timeval a, struct timeval b)
{
	return (b.tv_sec - a.tv_sec) * 1000000ull + b.tv_usec - a.tv_usec;
}

/* Latencies at these places of the sorted array, and how many lie in eighths of powers of two. */
static void print_latencies(uint64_t count)
{
	static const struct {
		const char *name;
		double part;
	} wanted[] = { { "p50", 0.5 }, { "p99", 0.99 }, { "p999", 0.999 }, { "max", 1 } };
	const uint32_t *sorted = application.latencies;
	uint64_t end, lower = 0, width = 1;
	int first = 1;

	qsort(application.latencies, count, sizeof(uint32_t), by_size);
	printf("\"latency_ns\": {");
	for (int i = 0; i < 4; i++)
		printf("\"%s\": %u, ", wanted[i].name, sorted[(uint64_t)(wanted[i].part * (count - 1))]);
	printf("\"histogram\": [");
	for (uint64_t i = 0; i < count; i = end, lower += width) {
		width = lower < 16 ? 1 : 1ull << (60 - __builtin_clzll(lower)); /* eight buckets a power of two */
		for (end = i; end < count && sorted[end] < lower + width; end++)
			;
		if (end > i)
			printf("%s[%llu, %llu]", first ? "" : ", ", (unsigned long long)lower,
			       (unsigned long long)(end - i));
		first = first && end == i;
	}
	printf("]}, ");
}

static void finish_application(void)
{
	const struct rusage *a = &application.begin, *b = &application.end;
	uint64_t kept = application.window < LATENCIES ? application.window : LATENCIES;

	printf("{\"messages\": %llu, \"bytes\": %llu, \"connections\": %llu, \"errors\": %llu, \"verified\": %llu, "
	       "\"window_messages\": %llu, ",
	       (unsigned long long)application.messages, (unsigned long long)application.bytes,
	       (unsigned long long)application.connections, (unsigned long long)application.errors,
	       (unsigned long long)application.verified, (unsigned long long)application.window);
	if (kept)
		print_latencies(kept);
	printf("\"cpu_ns\": %llu, \"wakeups\": %llu, \"voluntary\": %ld, \"involuntary\": %ld}\n",
	       1000 * (microseconds(a->ru_utime, b->ru_utime) + microseconds(a->ru_stime, b->ru_stime)),
	       (unsigned long long)application.window_wakeups, b->ru_nvcsw - a->ru_nvcsw, b->ru_nivcsw - a->ru_nivcsw);
	exit(0);
}
