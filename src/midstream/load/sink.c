// SPDX-License-Identifier: MIT
/* The logger of a benchmark: takes every connection and verifies every byte of it.
 *
 *   sink ADDRESS COUNT FORM PORT FRAMING SIZE [PORT FRAMING SIZE …] > summary.json
 *
 * COUNT: a file of one u64, mapped: messages received so far. SIZE: bytes a message, or of the longest. Says "ready" on
 * standard error; ends on SIGTERM. `wrong`: messages that were not what message.h says comes next on their connection.
 * FORM: separate; or joined: every connection carries many, as joined.h says, and it is of these that the summary tells.
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

#include "frames.h"
#include "joined.h"

#define CHUNK (1 << 18)
#define MOST 32 /* ports */

/* What comes to a port. */
struct kind {
	int listener, port;
	enum framing framing;
	uint32_t size;
};

struct connection {
	struct connection *next;
	int socket, clean;
	int64_t number; /* -1: not known yet, or of no connection of the load */
	const struct kind *kind;
	struct sockaddr_in peer;
	uint64_t messages, bytes, wrong;
	struct frames frames;
	/* Where it carries many: */
	struct connection **streams;
	struct piece piece;   /* that comes now, */
	uint32_t have, taken; /* and how many bytes of its head and of what follows have come */
};

static struct connection *all;
static struct kind kinds[MOST];
static int count, joined;
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

static void take(struct connection *c, const uint8_t *payload, uint32_t size)
{
	static uint8_t room[LARGEST];
	const uint8_t *message = carried(c->kind->framing, payload, &size, room);

	if (message && c->number < 0 && !c->messages)
		for (uint32_t number = 0; number < CONNECTIONS && c->number < 0; number++)
			if (fits(message, size < HEADER + 8 ? size : HEADER + 8, number, 0))
				c->number = number;
	if (!message || c->number < 0 || !fits(message, size, c->number, c->messages))
		c->wrong++;
	c->messages++;
	++*received;
}

static void feed(struct connection *c, const uint8_t *data, size_t length)
{
	const uint8_t *message;
	uint32_t size;

	c->bytes += length;
	while ((message = next_message(&c->frames, &data, &length, &size)))
		take(c, message, size);
	if (length && c->frames.broken)
		c->wrong++;
}

static struct connection *new_connection(const struct kind *kind, struct sockaddr_in peer)
{
	struct connection *c = calloc(1, sizeof(*c));

	if (!c || !open_frames(&c->frames, kind->framing, kind->size))
		fail("memory");
	c->number = -1;
	c->socket = -1;
	c->kind = kind;
	c->peer = peer;
	return c;
}

static void tell_of(struct connection *c)
{
	c->next = all;
	all = c;
}

static struct connection *stream_of(struct connection *c, struct piece piece)
{
	uint32_t number = piece.stream;

	if (piece.kind >= count) {
		errno = EBADMSG;
		fail("joined");
	}
	if (!c->streams && !(c->streams = calloc(CONNECTIONS, sizeof(*c->streams))))
		fail("memory");
	if (!c->streams[number]) {
		c->streams[number] = new_connection(&kinds[piece.kind], c->peer);
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
			feed(stream_of(c, c->piece), data, part);
			c->taken += part;
		}
		data += part;
		length -= part;
		if (c->have < sizeof(c->piece) || c->taken < c->piece.length)
			continue;
		stream = stream_of(c, c->piece);
		stream->clean = !c->piece.length && !stream->frames.have;
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
		c->clean = !got && !c->frames.have;
		close(c->socket);
		c->socket = -1;
	}
}

static void accept_one(const struct kind *kind, int events)
{
	struct sockaddr_in peer = {};
	socklen_t length = sizeof(peer);
	int socket = accept4(kind->listener, (struct sockaddr *)&peer, &length, SOCK_CLOEXEC);
	struct epoll_event event = { .events = EPOLLIN };
	struct connection *c;

	if (socket < 0)
		return;
	c = event.data.ptr = new_connection(kind, peer);
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
		printf("%s{\"peer\": \"%s\", \"port\": %d, \"to\": %d, \"connection\": %lld, \"messages\": %llu, \"bytes\": %llu, "
		       "\"wrong\": %llu, \"clean\": %s}", c == all ? "" : ", ", address, ntohs(c->peer.sin_port),
		       c->kind->port, (long long)c->number, (unsigned long long)c->messages, (unsigned long long)c->bytes,
		       (unsigned long long)c->wrong, c->clean ? "true" : "false");
		messages += c->messages;
		wrong += c->wrong;
	}
	printf("], \"messages\": %llu, \"wrong\": %llu}\n", (unsigned long long)messages,
	       (unsigned long long)wrong);
}

static void listen_at(const char *ip, struct kind *kind, int events)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(kind->port) };
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = kind };
	int one = 1;

	kind->listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	inet_pton(AF_INET, ip, &address.sin_addr);
	setsockopt(kind->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(kind->listener, (struct sockaddr *)&address, sizeof(address)) || listen(kind->listener, 1024))
		fail(ip);
	epoll_ctl(events, EPOLL_CTL_ADD, kind->listener, &event);
}

static int is_kind(const void *found)
{
	return found >= (const void *)kinds && found < (const void *)(kinds + MOST);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = stop };
	struct epoll_event found[64];
	int events = epoll_create1(EPOLL_CLOEXEC), wrong = argc < 7 || argc % 3 != 1 || (argc - 4) / 3 > MOST;

	for (int i = 4; !wrong && i < argc; i += 3) {
		struct kind kind = { .port = atoi(argv[i]), .size = atoi(argv[i + 2]) };

		wrong = framing_of(argv[i + 1]) < 0;
		kind.framing = framing_of(argv[i + 1]);
		wrong |= kind.size < HEADER || kind.size > LARGEST;
		kinds[count++] = kind;
	}
	if (wrong) {
		errno = EINVAL;
		fail("usage: sink ADDRESS COUNT FORM PORT FRAMING SIZE [PORT FRAMING SIZE …]");
	}
	joined = !strcmp(argv[3], "joined");
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	received = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, open(argv[2], O_RDWR | O_CLOEXEC), 0);
	if (received == MAP_FAILED)
		fail(argv[2]);
	for (int i = 0; i < count; i++)
		listen_at(argv[1], &kinds[i], events);
	fprintf(stderr, "ready\n");
	while (!stopped) {
		int n = epoll_wait(events, found, 64, -1);

		for (int i = 0; i < n; i++)
			if (is_kind(found[i].data.ptr))
				accept_one(found[i].data.ptr, events);
			else
				receive(found[i].data.ptr);
	}
	summarize();
	return 0;
}
