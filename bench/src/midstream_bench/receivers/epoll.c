// SPDX-License-Identifier: MIT
/* The handler that anybody would write in C: wait for sockets that are readable, receive, deliver, send on.
 *
 *   epoll ADDRESS LOGGER TOS PORT FRAMING SIZE [PORT FRAMING SIZE …]
 *
 * LOGGER: "-": nothing is sent on.
 */
#define _GNU_SOURCE
#include <sys/epoll.h>

#include "relay.h"

static void watch(int events, int operation, int socket, uint32_t what, void *whose)
{
	struct epoll_event event = { .events = what, .data.ptr = whose };

	if (epoll_ctl(events, operation, socket, &event))
		fail("epoll");
}

static int is_listener(const void *whose)
{
	return whose >= (const void *)listeners && whose < (const void *)(listeners + PORTS);
}

int main(int argc, char **argv)
{
	static struct relay relays[MOST];
	struct epoll_event found[64];
	int events = epoll_create1(EPOLL_CLOEXEC), tos, count = 0;

	if (argc < 7) {
		errno = EINVAL;
		fail("usage: epoll ADDRESS LOGGER TOS PORT FRAMING SIZE [PORT FRAMING SIZE …]");
	}
	tos = atoi(argv[3]);
	start_application();
	listen_to_all(argv[1], argv[2], argv + 4, argc - 4);
	for (int i = 0; i < listening; i++)
		watch(events, EPOLL_CTL_ADD, listeners[i].socket, EPOLLIN, &listeners[i]);
	fprintf(stderr, "ready\n");
	while (!application.stopped) {
		int n = epoll_wait(events, found, 64, -1);

		application.wakeups++;
		for (int i = 0; i < n; i++) {
			struct relay *relay = found[i].data.ptr;

			if (is_listener(relay)) {
				if (count < MOST && accept_relay(found[i].data.ptr, tos, &relays[count])) {
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
