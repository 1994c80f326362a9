// SPDX-License-Identifier: MIT
/* From a sensor's connection to the application, and to the connection that continues it to the logger. */
#pragma once
#include "sockets.h"

/* Send what waits. Returns 0 if the logger's TCP does not take it all now. */
static int send_waiting(struct relay *relay)
{
	while (relay->sent < relay->length) {
		ssize_t sent = send(relay->outer, relay->waiting + relay->sent, relay->length - relay->sent,
				    MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno == EAGAIN)
			return 0;
		if (sent < 0)
			fail("logger");
		relay->sent += sent;
	}
	relay->sent = relay->length = 0;
	return 1;
}

/* Receive once, send on, deliver. Returns the bytes; 0 at the end of the stream, which is passed on; -1: nothing. */
static ssize_t serve(struct relay *relay)
{
	static uint8_t buffer[CHUNK];
	ssize_t got = recv(relay->inner, buffer, sizeof(buffer), MSG_DONTWAIT);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return -1;
	if (got <= 0) {
		if (relay->outer >= 0) {
			shutdown(relay->outer, SHUT_WR);
			close(relay->outer);
		}
		close(relay->inner);
		relay->inner = relay->outer = -1;
		return 0;
	}
	if (relay->outer >= 0) {
		ssize_t sent = send(relay->outer, buffer, got, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno != EAGAIN)
			fail("logger");
		sent = sent < 0 ? 0 : sent;
		relay->length = got - sent;
		memcpy(relay->waiting, buffer + sent, relay->length);
	}
	feed(&relay->stream, buffer, got);
	return got;
}
