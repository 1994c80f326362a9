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

static struct outgoing logger; /* what its TCP does not take now waits for the next period */

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
	struct sockaddr_in address;
	int count = 0, listener;
	uint64_t period;

	if (argc != 7) {
		errno = EINVAL;
		fail("usage: joined ADDRESS PORT SIZE PERIOD_US LOGGER TOS");
	}
	address = address_of(argv[5], argv[2]);
	period = strtoull(argv[4], NULL, 10) * 1000;
	start_application(atoi(argv[3]));
	listener = listen_at(argv[1], argv[2]);
	fprintf(stderr, "ready\n");
	while (!application.stopped) {
		sleep_to_period(period, 0);
		application.wakeups++;
		while (!application.measuring && count < MOST && accept_relay(listener, NULL, 0, &relays[count]))
			if (!count++) {
				logger = connect_logger(&address, atoi(argv[6]), ROOM);
				memset(logger.waiting, 1, ROOM); /* no page is first touched in the window */
			}
		application.now = now(CLOCK_REALTIME);
		for (int i = 0; i < count; i++)
			while (relays[i].inner >= 0 && take(&relays[i], i))
				;
		send_waiting(&logger);
	}
	finish_application();
}
