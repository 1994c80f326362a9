// SPDX-License-Identifier: MIT
/* The logger of a benchmark: takes every connection and verifies every byte of it.
 *
 *   sink ADDRESS PORT SIZE COUNT [joined] > summary.json
 *
 * COUNT: a file of one u64, mapped: messages received so far. SIZE: bytes a message. Says "ready" on standard
 * error; ends on SIGTERM. `wrong`: messages that were not what message.h says comes next on their connection.
 * joined: every connection carries many streams, as joined.h says, and it is of these that the summary tells.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "joined.h"
#include "message.h"

#define CHUNK (1 << 18)

struct connection {
	struct connection *next;
	int socket, clean;
	int64_t number; /* -1: not known yet, or of no connection of the load */
	struct sockaddr_in peer;
	uint64_t messages, bytes, wrong;
	uint8_t *message; /* as much of it as has come */
	uint32_t length;
	/* Where it carries many: */
	struct connection **streams;
	struct piece piece;   /* that comes now, */
	uint32_t have, taken; /* and how many bytes of its head and of what follows have come */
};

static struct connection *all;
static uint32_t size;
static int joined;
static uint64_t *received;
static volatile sig_atomic_t stopped;

static void stop(int number)
{
	(void)number;
	stopped = 1;
}

static void fail(const char *what)
{
	fprintf(stderr, "sink: %s: %s\n", what, strerror(errno));
	exit(5);
}

static void take(struct connection *c, const uint8_t *message)
{
	if (c->number < 0 && !c->messages)
		for (uint32_t number = 0; number < CONNECTIONS && c->number < 0; number++)
			if (fits(message, size < HEADER + 8 ? size : HEADER + 8, number, 0))
				c->number = number;
	if (c->number < 0 || !fits(message, size, c->number, c->messages))
		c->wrong++;
	c->messages++;
	++*received;
}

static void feed(struct connection *c, const uint8_t *data, size_t length)
{
	c->bytes += length;
	while (length) {
		uint32_t wanted = size - c->length;
		uint32_t part = length < wanted ? length : wanted;

		if (part == size) {
			take(c, data); /* whole, where it lies */
		} else {
			memcpy(c->message + c->length, data, part);
			c->length += part;
			if (c->length == size) {
				take(c, c->message);
				c->length = 0;
			}
		}
		data += part;
		length -= part;
	}
}

static struct connection *new_connection(struct sockaddr_in peer)
{
	struct connection *c = calloc(1, sizeof(*c));

	if (!c || !(c->message = malloc(size)))
		fail("memory");
	c->number = -1;
	c->socket = -1;
	c->peer = peer;
	return c;
}

static void tell_of(struct connection *c)
{
	c->next = all;
	all = c;
}

static struct connection *stream_of(struct connection *c, uint32_t number)
{
	if (number >= CONNECTIONS) {
		errno = EBADMSG;
		fail("joined");
	}
	if (!c->streams && !(c->streams = calloc(CONNECTIONS, sizeof(*c->streams))))
		fail("memory");
	if (!c->streams[number]) {
		c->streams[number] = new_connection(c->peer);
		tell_of(c->streams[number]);
	}
	return c->streams[number];
}

/* Give each stream its pieces. */
static void divide(struct connection *c, const uint8_t *data, size_t length)
{
	while (length) {
		int is_head = c->have < sizeof(c->piece);
		uint32_t wanted = is_head ? sizeof(c->piece) - c->have : c->piece.length - c->taken;
		uint32_t part = length < wanted ? length : wanted;
		struct connection *stream;

		if (is_head) {
			memcpy((uint8_t *)&c->piece + c->have, data, part);
			c->have += part;
		} else {
			feed(stream_of(c, c->piece.stream), data, part);
			c->taken += part;
		}
		data += part;
		length -= part;
		if (c->have < sizeof(c->piece) || c->taken < c->piece.length)
			continue;
		stream = stream_of(c, c->piece.stream);
		stream->clean = !c->piece.length && !stream->length;
		c->have = c->taken = 0;
	}
}

static void receive(struct connection *c)
{
	static uint8_t data[CHUNK];
	ssize_t got = recv(c->socket, data, sizeof(data), MSG_DONTWAIT);

	if (got > 0) {
		if (joined)
			divide(c, data, got);
		else
			feed(c, data, got);
	} else if (!got || (errno != EAGAIN && errno != EINTR)) {
		c->clean = !got && !c->length;
		close(c->socket);
		c->socket = -1;
	}
}

static void accept_one(int listener, int events)
{
	struct sockaddr_in peer = {};
	socklen_t length = sizeof(peer);
	int socket = accept4(listener, (struct sockaddr *)&peer, &length, SOCK_CLOEXEC);
	struct epoll_event event = { .events = EPOLLIN };
	struct connection *c;

	if (socket < 0)
		return;
	c = event.data.ptr = new_connection(peer);
	c->socket = socket;
	if (!joined)
		tell_of(c);
	epoll_ctl(events, EPOLL_CTL_ADD, socket, &event);
}

static void summarize(void)
{
	uint64_t messages = 0, wrong = 0;
	char address[INET_ADDRSTRLEN];

	printf("{\"connections\": [");
	for (struct connection *c = all; c; c = c->next) {
		inet_ntop(AF_INET, &c->peer.sin_addr, address, sizeof(address));
		printf("%s{\"peer\": \"%s\", \"port\": %d, \"connection\": %lld, \"messages\": %llu, \"bytes\": %llu, "
		       "\"wrong\": %llu, \"clean\": %s}", c == all ? "" : ", ", address, ntohs(c->peer.sin_port),
		       (long long)c->number, (unsigned long long)c->messages, (unsigned long long)c->bytes,
		       (unsigned long long)c->wrong, c->clean ? "true" : "false");
		messages += c->messages;
		wrong += c->wrong;
	}
	printf("], \"messages\": %llu, \"wrong\": %llu}\n", (unsigned long long)messages,
	       (unsigned long long)wrong);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = stop };
	struct sockaddr_in address = { .sin_family = AF_INET };
	struct epoll_event found[64], event = { .events = EPOLLIN };
	int events = epoll_create1(EPOLL_CLOEXEC), one = 1;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	joined = argc == 6 && !strcmp(argv[5], "joined");
	if (argc != 5 + joined || (size = atoi(argv[3])) < HEADER || size > LARGEST) {
		errno = EINVAL;
		fail("usage: sink ADDRESS PORT SIZE COUNT [joined]");
	}
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	received = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, open(argv[4], O_RDWR | O_CLOEXEC), 0);
	if (received == MAP_FAILED)
		fail(argv[4]);
	inet_pton(AF_INET, argv[1], &address.sin_addr);
	address.sin_port = htons(atoi(argv[2]));
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 1024))
		fail(argv[1]);
	epoll_ctl(events, EPOLL_CTL_ADD, listener, &event);
	fprintf(stderr, "ready\n");
	while (!stopped) {
		int n = epoll_wait(events, found, 64, -1);

		for (int i = 0; i < n; i++)
			if (found[i].data.ptr)
				receive(found[i].data.ptr);
			else
				accept_one(listener, events);
	}
	summarize();
	return 0;
}
