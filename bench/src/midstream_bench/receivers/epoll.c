// SPDX-License-Identifier: MIT
/* The handler that anybody would write in C: wait for sockets that are readable, receive, deliver, send on.
 *
 *   epoll ADDRESS PORT SIZE [LOGGER TOS]
 */
#define _GNU_SOURCE
#include <sys/epoll.h>

#include "relay.h"

static void watch(int events, int operation, int socket, uint32_t what, struct relay *relay)
{
	struct epoll_event event = { .events = what, .data.ptr = relay };

	if (epoll_ctl(events, operation, socket, &event))
		fail("epoll");
}

int main(int argc, char **argv)
{
	static struct relay relays[MOST];
	struct epoll_event found[64];
	struct sockaddr_in logger;
	int events = epoll_create1(EPOLL_CLOEXEC), tos = 0, count = 0, listener;

	if (argc != 4 && argc != 6) {
		errno = EINVAL;
		fail("usage: epoll ADDRESS PORT SIZE [LOGGER TOS]");
	}
	if (argc == 6) {
		logger = address_of(argv[4], argv[2]);
		tos = atoi(argv[5]);
	}
	start_application(atoi(argv[3]));
	listener = listen_at(argv[1], argv[2]);
	watch(events, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
	fprintf(stderr, "ready\n");
	while (!application.stopped) {
		int n = epoll_wait(events, found, 64, -1);

		application.wakeups++;
		for (int i = 0; i < n; i++) {
			struct relay *relay = found[i].data.ptr;

			if (!relay) {
				if (count < MOST && accept_relay(listener, argc == 6 ? &logger : NULL, tos, &relays[count])) {
					watch(events, EPOLL_CTL_ADD, relays[count].inner, EPOLLIN, &relays[count]);
					if (relays[count].outer.socket >= 0)
						watch(events, EPOLL_CTL_ADD, relays[count].outer.socket, 0, &relays[count]);
					count++;
				}
			} else if (relay->outer.length) {
				if (send_waiting(&relay->outer)) {
					watch(events, EPOLL_CTL_MOD, relay->outer.socket, 0, relay);
					watch(events, EPOLL_CTL_MOD, relay->inner, EPOLLIN, relay);
				}
			} else if (found[i].events & EPOLLIN) {
				ssize_t got = receive(relay);

				if (got <= 0)
					continue;
				application.now = now(CLOCK_REALTIME);
				pass(relay, got);
				if (relay->outer.length) {
					watch(events, EPOLL_CTL_MOD, relay->outer.socket, EPOLLOUT, relay);
					watch(events, EPOLL_CTL_MOD, relay->inner, 0, relay);
				}
			}
		}
	}
	finish_application();
}
