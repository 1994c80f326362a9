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

struct relay {
	int inner, outer; /* sockets towards the sensor and, -1 if only received, the logger */
	struct stream stream;
	uint8_t *waiting; /* what the logger's TCP has not taken; nothing more is read meanwhile */
	size_t sent, length;
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

/* Accept one connection; where there is a logger, continue it there. Returns 0 if there is none to accept. */
static int accept_relay(int listener, const struct sockaddr_in *logger, int tos, struct relay *relay)
{
	int one = 1, inner = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (inner < 0)
		return 0;
	*relay = (struct relay){ .inner = inner, .outer = -1 };
	open_stream(&relay->stream);
	if (logger) {
		relay->outer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		setsockopt(relay->outer, IPPROTO_IP, IP_TOS, &tos, sizeof(tos));
		setsockopt(relay->outer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		relay->waiting = malloc(CHUNK);
		if (!relay->waiting || connect(relay->outer, (const struct sockaddr *)logger, sizeof(*logger)))
			fail("logger");
	}
	return 1;
}

/* Until the clock shows the next multiple of the period. */
static inline void sleep_to_period(uint64_t period)
{
	uint64_t next = (now(CLOCK_MONOTONIC) / period + 1) * period;
	struct timespec wake = { .tv_sec = next / 1000000000, .tv_nsec = next % 1000000000 };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
}
