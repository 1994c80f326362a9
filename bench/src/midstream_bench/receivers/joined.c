// SPDX-License-Identifier: MIT
/* The tuned handler of polling.c with one connection to the logger for all sensors: a single send a period. The logger
 * has to take the streams apart again (joined.h).
 *
 *   joined ADDRESS LOGGER TOS PERIOD_US PORT FRAMING SIZE [PORT FRAMING SIZE …]
 *
 * The logger's port is the first of them.
 */
#define _GNU_SOURCE
#include "joined.h"
#include "sockets.h"

#define ROOM (8 << 20) /* bytes that wait for the logger at most; no sensor is read while there is less than a CHUNK */

static struct outgoing logger; /* what its TCP does not take now waits for the next period */

/* Receive once, to where it is sent from, and deliver. Returns 1 if there may be more. */
static int take(struct relay *relay, struct piece piece)
{
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
	static struct piece heads[MOST];
	struct sockaddr_in address;
	int count = 0;
	uint64_t period;

	if (argc < 8) {
		errno = EINVAL;
		fail("usage: joined ADDRESS LOGGER TOS PERIOD_US PORT FRAMING SIZE [PORT FRAMING SIZE …]");
	}
	address = address_of(argv[2], argv[5]);
	period = strtoull(argv[4], NULL, 10) * 1000;
	start_application();
	listen_to_all(argv[1], "-", argv + 5, argc - 5);
	fprintf(stderr, "ready\n");
	while (!application.stopped) {
		sleep_to_period(period, 0);
		application.wakeups++;
		for (int i = 0; i < listening && !application.measuring; i++)
			while (count < MOST && accept_relay(&listeners[i], 0, &relays[count])) {
				if (!count) {
					logger = connect_logger(&address, atoi(argv[3]), ROOM);
					memset(logger.waiting, 1, ROOM); /* no page is first touched in the window */
				}
				heads[count] = (struct piece){ .stream = count, .kind = i };
				count++;
			}
		application.now = now(CLOCK_REALTIME);
		for (int i = 0; i < count; i++)
			while (relays[i].inner >= 0 && take(&relays[i], heads[i]))
				;
		send_waiting(&logger);
	}
	finish_application();
}
