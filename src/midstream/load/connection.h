// SPDX-License-Identifier: MIT
/* One connection of the load: made, sent on, lost, made again, closed. load.c decides when. */
#pragma once
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lateness.h"
#include "message.h"

#define SECOND 1000000000ull
#define RETRY (SECOND / 10)    /* between two attempts to make a lost connection again */
#define UNSENT (16 * 1024)     /* bytes that a flood queues in the kernel: times stay those of the wire */
#define TURN 16		       /* messages that a flooding connection sends before the others may */
#define PORTION (64 * 1024)    /* bytes of a message that TCP gets at once: others are due meanwhile */

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

/* A message that TCP has taken, in the record. */
struct sent {
	uint64_t sequence;
	uint64_t time; /* as in the message */
	uint32_t connection;
	uint32_t size;
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
	enum framing framing;
	int port; /* its own */
	uint32_t watched; /* the events that epoll reports */
	uint64_t sequence; /* of the next message on this connection */
	uint64_t retry;	   /* when to connect again */
	/* Messages whose time has come: a ring that grows. */
	struct due *due;
	size_t first, waiting, room;
	uint64_t flood_until;
	uint32_t flood_size;
	/* A message of which TCP has taken a part. */
	uint8_t *message; /* in its frame */
	uint32_t length, taken;
	struct sent now;
	/* For the summary. */
	uint64_t messages, bytes, unsent, lost, unacknowledged;
	int clean;
};

static struct connection *all;
static unsigned int count;
static int events, rto_max, rto_min, again;
static uint64_t *counts;
static FILE *record;
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

static void remember_port(struct connection *c)
{
	struct sockaddr_in own = {};
	socklen_t length = sizeof(own);

	getsockname(c->socket, (struct sockaddr *)&own, &length);
	c->port = ntohs(own.sin_port);
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
	if (!strncmp(algorithm, "bbr", 3)) /* as in sensor/tcp.py: recover_promptly */
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

/* Remember how many bytes TCP has taken that its peer did not acknowledge; a FIN counts as one to the kernel. */
static void account(struct connection *c)
{
	int left = 0;

	if (!ioctl(c->socket, SIOCOUTQ, &left))
		c->unacknowledged += left - (left && c->state == CLOSING);
}

static void lose(struct connection *c, const char *why)
{
	char peer[INET_ADDRSTRLEN];

	if (c->state != CONNECTING) {
		c->lost++;
		account(c);
	}
	close(c->socket);
	c->unsent += c->waiting + !!c->length;
	c->waiting = c->length = 0;
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
		uint32_t left = c->length - c->taken, part = left < PORTION ? left : PORTION;
		/* End of record: TCP joins no two messages in one segment, as it would not at a slower rate. */
		int form = part == left ? MSG_EOR : MSG_MORE;
		ssize_t sent = send(c->socket, c->message + c->taken, part, MSG_NOSIGNAL | form);

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
		if (c->taken < c->length && part == PORTION)
			return 0; /* the others' turn; it goes on when epoll says that TCP takes more, which may be now */
	}
	if (c->length) {
		if (record && fwrite(&c->now, sizeof(c->now), 1, record) != 1)
			fail("record", strerror(errno));
		counts[c - all] = ++c->messages;
		c->length = c->taken = 0;
	}
	return 1;
}

static void prepare(struct connection *c, uint32_t size)
{
	c->now = (struct sent){ c->sequence++, now(CLOCK_REALTIME), c - all, size };
	c->length = compose(c->message, c->framing, size, c->now.connection, c->now.sequence, c->now.time);
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
		remember_port(c);
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
		account(c);
		close(c->socket);
		c->state = DONE;
	}
}
