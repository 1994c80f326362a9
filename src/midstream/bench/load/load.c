// SPDX-License-Identifier: MIT
/* The sensors of a benchmark: many connections, one thread, each message at its time.
 *
 *   load CONNECTIONS COUNTS RTO_MAX_MS RTO_MIN_US FLAGS < events > summary.json
 *
 * CONNECTIONS: a text file, a line each: NAMESPACE SOURCE DESTINATION PORT TOS ("-": this namespace, any source).
 * COUNTS: a file of a u64 for each connection, mapped: messages sent so far, for whoever watches.
 * FLAGS: 'r': a connection that is lost is made again, until the events end; otherwise that is an error.
 *
 * It connects, says "ready" on standard error and reads events (struct event). The first one's `at` is the
 * start, absolute; the others follow in the order of their times, relative to it. Every deadline is absolute,
 * so nothing adds up. A connection that TCP lets not send keeps no other waiting: its messages queue as times.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lateness.h"
#include "message.h"

#define SECOND 1000000000ull
#define PATIENCE (10 * SECOND) /* to connect at the start, and to close at the end */
#define RETRY (SECOND / 10)    /* between two attempts to make a lost connection again */
#define UNSENT (16 * 1024)     /* bytes that a flood queues in the kernel: times stay those of the wire */
#define TURN 16		       /* messages that a flooding connection sends before the others may */
#define BATCH 4096	       /* events read at a time */

#ifndef TCP_RTO_MAX_MS
#define TCP_RTO_MAX_MS 44
#endif
#ifndef TCP_RTO_MIN_US
#define TCP_RTO_MIN_US 45
#endif

struct event {
	uint64_t at;	     /* nanoseconds after the start */
	uint64_t until;	     /* 0: one message; otherwise as many as TCP takes until then */
	uint32_t connection; /* its number */
	uint32_t size;	     /* bytes a message */
};

enum state { CLOSED, CONNECTING, OPEN, CLOSING, DONE };

struct due {
	uint64_t at;
	uint32_t size;
};

struct connection {
	int socket, namespace;
	enum state state;
	struct sockaddr_in source, peer;
	int tos;
	uint32_t watched; /* the events that epoll reports */
	uint64_t sequence; /* of the next message on this connection */
	uint64_t retry;	   /* when to connect again */
	/* Messages whose time has come: a ring that grows. */
	struct due *due;
	size_t first, waiting, room;
	uint64_t flood_until;
	uint32_t flood_size;
	/* A message of which TCP has taken a part. */
	uint8_t *message;
	uint32_t length, taken;
	/* For the summary. */
	uint64_t messages, bytes, unsent, lost;
	int clean;
};

static struct connection *all;
static unsigned int count;
static int events, rto_max, rto_min, again;
static uint64_t *counts;
static uint64_t start;
static uint64_t first_sent, last_sent;
static volatile sig_atomic_t stopped;

static void stop(int number)
{
	(void)number;
	stopped = 1;
}

static void fail(const char *what, const char *detail)
{
	fprintf(stderr, "load: %s: %s\n", what, detail);
	exit(5);
}

static void option(int socket, int level, int name, int value)
{
	setsockopt(socket, level, name, &value, sizeof(value)); /* what an old kernel has not stays as it is */
}

static void watch(struct connection *c, uint32_t what)
{
	struct epoll_event event = { .events = what, .data.ptr = c };

	if (what == c->watched)
		return;
	c->watched = what;
	epoll_ctl(events, EPOLL_CTL_MOD, c->socket, &event);
}

static void begin(struct connection *c)
{
	struct epoll_event event = { .events = EPOLLOUT, .data.ptr = c };
	char algorithm[16] = "";
	socklen_t length = sizeof(algorithm);

	if (c->namespace >= 0 && setns(c->namespace, CLONE_NEWNET))
		fail("namespace", strerror(errno));
	c->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->socket < 0)
		fail("socket", strerror(errno));
	/* Before it connects: the SYN must bear the mark. */
	option(c->socket, IPPROTO_IP, IP_TOS, c->tos);
	option(c->socket, IPPROTO_TCP, TCP_NODELAY, 1);
	option(c->socket, IPPROTO_TCP, TCP_RTO_MAX_MS, rto_max);
	option(c->socket, IPPROTO_TCP, TCP_RTO_MIN_US, rto_min);
	getsockopt(c->socket, IPPROTO_TCP, TCP_CONGESTION, algorithm, &length);
	if (!strncmp(algorithm, "bbr", 3)) /* as in sensor.py: recover_promptly */
		setsockopt(c->socket, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
	if (c->source.sin_addr.s_addr && bind(c->socket, (struct sockaddr *)&c->source, sizeof(c->source)))
		fail("source address", strerror(errno));
	c->sequence = c->length = c->taken = 0;
	c->state = CONNECTING;
	if (connect(c->socket, (struct sockaddr *)&c->peer, sizeof(c->peer)) && errno != EINPROGRESS) {
		close(c->socket);
		c->state = CLOSED;
		c->retry = now(CLOCK_MONOTONIC) + RETRY;
		return;
	}
	c->watched = EPOLLOUT;
	epoll_ctl(events, EPOLL_CTL_ADD, c->socket, &event);
}

static void lose(struct connection *c, const char *why)
{
	char peer[INET_ADDRSTRLEN];

	if (c->state != CONNECTING)
		c->lost++;
	close(c->socket);
	c->unsent += c->waiting;
	c->waiting = 0;
	c->flood_until = 0;
	c->retry = now(CLOCK_MONOTONIC) + RETRY;
	if (c->state == CLOSING || c->state == DONE) {
		c->state = DONE;
		return;
	}
	c->state = CLOSED;
	if (!again) {
		inet_ntop(AF_INET, &c->peer.sin_addr, peer, sizeof(peer));
		fail(peer, why);
	}
}

/* Hand the connection's message to TCP, or what is left of it. 0: TCP takes no more now. */
static int push(struct connection *c)
{
	while (c->taken < c->length) {
		/* End of record: TCP joins no two messages in one segment, as it would not at a slower rate. */
		ssize_t sent = send(c->socket, c->message + c->taken, c->length - c->taken, MSG_NOSIGNAL | MSG_EOR);

		if (sent < 0 && errno == EAGAIN)
			return 0;
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0) {
			lose(c, strerror(errno));
			return 0;
		}
		c->taken += sent;
		c->bytes += sent;
	}
	if (c->length) {
		counts[c - all] = ++c->messages;
		c->length = c->taken = 0;
	}
	return 1;
}

static void prepare(struct connection *c, uint32_t size)
{
	uint64_t time = now(CLOCK_REALTIME);

	fill(c->message, size, c - all, c->sequence++);
	memcpy(c->message + 8, &time, 8);
	c->length = size;
	last_sent = now(CLOCK_MONOTONIC);
	if (!first_sent)
		first_sent = last_sent;
}

/* Send what is due. */
static void serve(struct connection *c)
{
	int turn = TURN;

	while (c->state == OPEN && push(c)) {
		uint64_t time = now(CLOCK_MONOTONIC);

		if (c->waiting) {
			struct due due = c->due[c->first];

			c->first = (c->first + 1) % c->room;
			c->waiting--;
			late(time > due.at ? time - due.at : 0);
			prepare(c, due.size);
		} else if (c->flood_until && time < c->flood_until && !stopped) {
			if (!turn--)
				break; /* the others' turn */
			prepare(c, c->flood_size);
		} else {
			c->flood_until = 0;
			watch(c, 0);
			return;
		}
	}
	if (c->state == OPEN)
		watch(c, EPOLLOUT);
}

static void add(struct connection *c, const struct event *event)
{
	if (c->state != OPEN) {
		c->unsent++;
		return;
	}
	if (event->until) {
		option(c->socket, IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT);
		c->flood_until = start + event->until;
		c->flood_size = event->size;
		return;
	}
	if (c->waiting == c->room) {
		size_t room = c->room ? 2 * c->room : 16;
		struct due *due = malloc(room * sizeof(*due));

		if (!due)
			fail("memory", "none left for messages that are due");
		for (size_t i = 0; i < c->waiting; i++)
			due[i] = c->due[(c->first + i) % c->room];
		free(c->due);
		c->due = due;
		c->first = 0;
		c->room = room;
	}
	c->due[(c->first + c->waiting++) % c->room] = (struct due){ start + event->at, event->size };
}

static void finish(struct connection *c)
{
	shutdown(c->socket, SHUT_WR);
	c->state = CLOSING;
	watch(c, EPOLLIN | EPOLLRDHUP);
}

static void ready(struct connection *c, uint32_t what)
{
	char reply[4096];
	int error = 0, left = 1;
	socklen_t length = sizeof(error);
	ssize_t got;

	if (c->state == CONNECTING) {
		getsockopt(c->socket, SOL_SOCKET, SO_ERROR, &error, &length);
		if (error) {
			lose(c, strerror(error));
			return;
		}
		c->state = OPEN;
		watch(c, 0);
	} else if (c->state == OPEN) {
		if (what & (EPOLLERR | EPOLLHUP))
			lose(c, "it closed the connection");
		else
			serve(c);
	} else if (c->state == CLOSING) {
		while ((got = recv(c->socket, reply, sizeof(reply), 0)) > 0)
			;
		if (got < 0 && errno == EAGAIN)
			return;
		if (!got && !ioctl(c->socket, SIOCOUTQ, &left))
			c->clean = !left; /* it closed after it had acknowledged everything */
		close(c->socket);
		c->state = DONE;
	}
}

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
	char namespace[256], source[64], peer[64];
	int port, tos;
	FILE *file = fopen(path, "re");

	if (!file)
		fail(path, strerror(errno));
	while (fscanf(file, "%255s %63s %63s %d %d", namespace, source, peer, &port, &tos) == 5) {
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
		c->message = malloc(LARGEST);
		if (!c->message)
			fail("memory", "none left for messages");
	}
	fclose(file);
}

static void summarize(void)
{
	double seconds = (last_sent - first_sent) / 1e9;
	uint64_t messages = 0, unsent = 0, lost = 0;
	int clean = 1;

	for (unsigned int i = 0; i < count; i++) {
		messages += all[i].messages;
		unsent += all[i].unsent;
		lost += all[i].lost;
		clean &= all[i].clean;
	}
	printf("{\"messages\": %llu, \"unsent\": %llu, \"lost\": %llu, \"clean\": %s, \"seconds\": %.6f, ",
	       (unsigned long long)messages, (unsigned long long)unsent, (unsigned long long)lost,
	       clean ? "true" : "false", seconds);
	printf("\"late_p50_us\": %.3f, \"late_p99_us\": %.3f, \"late_p999_us\": %.3f, \"late_max_us\": %.3f, ",
	       quantile(.5) / 1e3, quantile(.99) / 1e3, quantile(.999) / 1e3, latest / 1e3);
	printf("\"connections\": [");
	for (unsigned int i = 0; i < count; i++)
		printf("%s{\"messages\": %llu, \"bytes\": %llu, \"clean\": %s}", i ? ", " : "",
		       (unsigned long long)all[i].messages, (unsigned long long)all[i].bytes,
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

	if (argc != 6)
		fail("usage", "load CONNECTIONS COUNTS RTO_MAX_MS RTO_MIN_US FLAGS");
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	prctl(PR_SET_TIMERSLACK, 1);
	rto_max = atoi(argv[3]);
	rto_min = atoi(argv[4]);
	events = epoll_create1(EPOLL_CLOEXEC);
	read_connections(argv[1]);
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
			if (event->connection >= count || event->size < HEADER || event->size > LARGEST)
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
	summarize();
	return 0;
}
