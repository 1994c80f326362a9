// SPDX-License-Identifier: MIT
/* The sensors' connections, and where the whole job is done those that continue them to the logger. */
#pragma once
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "application.h"

#define MOST 4096	/* connections */
#define CHUNK (1 << 18) /* bytes read at once */
#define PORTS 32

/* A port of the sensors. */
struct listener {
	int socket;
	struct kind kind;
	struct sockaddr_in logger; /* where its connections are continued */
};

static struct listener listeners[PORTS];
static int listening;

/* A connection to the logger, and what its TCP has not taken yet. */
struct outgoing {
	int socket; /* -1: there is none */
	uint8_t *waiting;
	size_t sent, length;
};

/* A sensor's connection. Nothing more is read from it while `outer` has something waiting. */
struct relay {
	int inner;
	struct outgoing outer; /* where this one is continued */
	struct stream stream;
};

static struct sockaddr_in address_of(const char *ip, const char *port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };

	if (inet_pton(AF_INET, ip, &address.sin_addr) != 1) {
		errno = EINVAL;
		fail(ip);
	}
	return address;
}

static int listen_at(const char *ip, const char *port)
{
	struct sockaddr_in address = address_of(ip, port);
	int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 1024))
		fail(ip);
	return listener;
}

/* Of the words PORT FRAMING SIZE, again and again. logger: "-": none. */
static void listen_to_all(const char *ip, const char *logger, char **words, int count)
{
	if (count < 3 || count % 3 || count / 3 > PORTS) {
		errno = EINVAL;
		fail("ports");
	}
	for (int i = 0; i < count; i += 3) {
		struct listener *listener = &listeners[listening++];

		listener->kind = kind_of(words[i + 1], words[i + 2]);
		listener->socket = listen_at(ip, words[i]);
		if (strcmp(logger, "-"))
			listener->logger = address_of(logger, words[i]);
	}
}

/* With room for so many bytes to wait. */
static struct outgoing connect_logger(const struct sockaddr_in *logger, int tos, size_t room)
{
	struct outgoing out = { .socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), .waiting = malloc(room) };
	int one = 1;

	setsockopt(out.socket, IPPROTO_IP, IP_TOS, &tos, sizeof(tos));
	setsockopt(out.socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (!out.waiting || connect(out.socket, (const struct sockaddr *)logger, sizeof(*logger)))
		fail("logger");
	return out;
}

/* Send what waits. Returns 0 if the logger's TCP does not take it all now. */
static int send_waiting(struct outgoing *out)
{
	while (out->sent < out->length) {
		ssize_t sent = send(out->socket, out->waiting + out->sent, out->length - out->sent,
				    MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno == EAGAIN)
			return 0;
		if (sent < 0)
			fail("logger");
		out->sent += sent;
	}
	out->sent = out->length = 0;
	return 1;
}

/* Accept one connection; where there is a logger, continue it there. Returns 0 if there is none to accept. */
static int accept_relay(const struct listener *listener, int tos, struct relay *relay)
{
	int inner = accept4(listener->socket, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (inner < 0)
		return 0;
	*relay = (struct relay){ .inner = inner, .outer.socket = -1 };
	open_stream(&relay->stream, listener->kind);
	if (listener->logger.sin_port)
		relay->outer = connect_logger(&listener->logger, tos, CHUNK);
	return 1;
}
