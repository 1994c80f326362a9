// SPDX-License-Identifier: MIT
/* The handler as well as it can be tuned: nothing wakes it; once a period it takes what every socket has.
 *
 *   polling ADDRESS LOGGER TOS PERIOD_US BUSY_POLL_US PORT FRAMING SIZE [PORT FRAMING SIZE …]
 *
 * BUSY_POLL_US: not 0: receiving from the first socket polls the network card itself (SO_BUSY_POLL,
 * SO_PREFER_BUSY_POLL, Documentation/networking/napi.rst), so that neither interrupt nor softirq is needed for it.
 * That takes what all connections have, where the card has one queue to receive.
 */
#define _GNU_SOURCE
#include "relay.h"

#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#define SO_BUSY_POLL_BUDGET 70
#endif
#define BUDGET 256 /* frames that one poll takes at most; 8 is the default, and too few for a period's */

static void poll_the_card(int connection, int microseconds)
{
	int one = 1, budget = BUDGET;

	if (setsockopt(connection, SOL_SOCKET, SO_BUSY_POLL, &microseconds, sizeof(microseconds)) ||
	    setsockopt(connection, SOL_SOCKET, SO_PREFER_BUSY_POLL, &one, sizeof(one)) ||
	    setsockopt(connection, SOL_SOCKET, SO_BUSY_POLL_BUDGET, &budget, sizeof(budget)))
		fail("busy polling");
}

int main(int argc, char **argv)
{
	static struct relay relays[MOST];
	int tos, count = 0, busy;
	uint64_t period;
	ssize_t got;

	if (argc < 9) {
		errno = EINVAL;
		fail("usage: polling ADDRESS LOGGER TOS PERIOD_US BUSY_POLL_US PORT FRAMING SIZE [PORT FRAMING SIZE …]");
	}
	tos = atoi(argv[3]);
	period = strtoull(argv[4], NULL, 10) * 1000;
	busy = atoi(argv[5]);
	start_application();
	listen_to_all(argv[1], argv[2], argv + 6, argc - 6);
	fprintf(stderr, "ready\n");
	while (!application.stopped) {
		sleep_to_period(period, 0);
		application.wakeups++;
		for (int i = 0; i < listening && !application.measuring; i++)
			while (count < MOST && accept_relay(&listeners[i], tos, &relays[count]))
				if (!count++ && busy)
					poll_the_card(relays[0].inner, busy);
		application.now = now(CLOCK_REALTIME);
		for (int i = 0; i < count; i++) {
			if (relays[i].inner < 0 || (relays[i].outer.length && !send_waiting(&relays[i].outer)))
				continue;
			do {
				got = receive(&relays[i]);
				if (got > 0)
					pass(&relays[i], got);
			} while (got == CHUNK && !relays[i].outer.length);
		}
	}
	finish_application();
}
