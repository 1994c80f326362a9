// SPDX-License-Identifier: MIT
/* From a sensor's connection to the application, and to the connection that continues it to the logger. */
#pragma once
#include "sockets.h"

/* Receive once, send on, deliver. Returns the bytes; 0 at the end of the stream, which is passed on; -1: nothing. */
static ssize_t serve(struct relay *relay)
{
	static uint8_t buffer[CHUNK];
	struct outgoing *out = &relay->outer;
	ssize_t got = recv(relay->inner, buffer, sizeof(buffer), MSG_DONTWAIT);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return -1;
	if (got <= 0) {
		if (out->socket >= 0) {
			shutdown(out->socket, SHUT_WR);
			close(out->socket);
		}
		close(relay->inner);
		relay->inner = out->socket = -1;
		return 0;
	}
	if (out->socket >= 0) {
		ssize_t sent = send(out->socket, buffer, got, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno != EAGAIN)
			fail("logger");
		sent = sent < 0 ? 0 : sent;
		out->length = got - sent;
		memcpy(out->waiting, buffer + sent, out->length);
	}
	feed(&relay->stream, buffer, got);
	return got;
}
