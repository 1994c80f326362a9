// SPDX-License-Identifier: MIT
/* The tuned handler of polling.c with one connection to the logger for all sensors: a single send a period. The logger
 * has to take the streams apart again (joined.h).
 *
 *   joined ADDRESS PORT SIZE PERIOD_US LOGGER TOS
 */
#define _GNU_SOURCE
#include "joined.h"
#include "sockets.h"

#define ROOM (8 << 20) /* bytes that wait for the logger at most; no sensor is read while there is less than a CHUNK */

static struct {
	int socket;
	size_t sent, length;
	uint8_t waiting[ROOM];
} logger = { .socket = -1 };

static void connect_logger(const char *ip, const char *port, int tos)
{
	struct sockaddr_in address = address_of(ip, port);
	int one = 1;

	logger.socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(logger.socket, IPPROTO_IP, IP_TOS, &tos, sizeof(tos));
	setsockopt(logger.socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(logger.socket, (const struct sockaddr *)&address, sizeof(address)))
		fail("logger");
}

/* What the logger's TCP does not take now waits for the next period. */
static void send_on(void)
{
	while (logger.sent < logger.length) {
		ssize_t sent = send(logger.socket, logger.waiting + logger.sent, logger.length - logger.sent,
				    MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno == EAGAIN)
			return;
		if (sent < 0)
			fail("logger");
		logger.sent += sent;
	}
	logger.sent = logger.length = 0;
}

/* Receive once, to where it is sent from, and deliver. Returns 1 if there may be more. */
static int take(struct relay *relay, uint32_t stream)
{
	struct piece piece = { .stream = stream };
	uint8_t *head = logger.waiting + logger.length, *data = head + sizeof(piece);
	ssize_t got;

	if (logger.length + sizeof(piece) + CHUNK > ROOM)
		return 0;
	got = recv(relay->inner, data, CHUNK, MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (got > 0) {
		piece.length = got;
		feed(&relay->stream, data, got);
	} else {
		close(relay->inner);
		relay->inner = -1;
	}
	memcpy(head, &piece, sizeof(piece));
	logger.length += sizeof(piece) + piece.length;
	return got == CHUNK;
}

int main(int argc, char **argv)
{
	static struct relay relays[MOST];
	int count = 0, listener;
	uint64_t period;

	if (argc != 7) {
		errno = EINVAL;
		fail("usage: joined ADDRESS PORT SIZE PERIOD_US LOGGER TOS");
	}
	period = strtoull(argv[4], NULL, 10) * 1000;
	start_application(atoi(argv[3]));
	memset(logger.waiting, 1, ROOM); /* no page is first touched in the window */
	listener = listen_at(argv[1], argv[2]);
	fprintf(stderr, "ready\n");
	while (!application.stopped) {
		sleep_to_period(period);
		application.wakeups++;
		while (!application.measuring && count < MOST && accept_relay(listener, NULL, 0, &relays[count]))
			if (!count++)
				connect_logger(argv[5], argv[2], atoi(argv[6]));
		application.now = now(CLOCK_REALTIME);
		for (int i = 0; i < count; i++)
			while (relays[i].inner >= 0 && take(&relays[i], i))
				;
		send_on();
	}
	finish_application();
}
