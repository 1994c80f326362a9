// SPDX-License-Identifier: MIT
/* From a sensor's connection to the application, and to the connection that continues it to the logger. */
#pragma once
#include "sockets.h"

static uint8_t received[CHUNK];

/* Receive once. Returns the bytes; 0 at the end of the stream, which is passed on; -1: nothing. */
static ssize_t receive(struct relay *relay)
{
	struct outgoing *out = &relay->outer;
	ssize_t got = recv(relay->inner, received, CHUNK, MSG_DONTWAIT);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return -1;
	if (got > 0)
		return got;
	if (out->socket >= 0) {
		shutdown(out->socket, SHUT_WR);
		close(out->socket);
	}
	close(relay->inner);
	relay->inner = out->socket = -1;
	return 0;
}

/* Deliver what was received, and send it on. */
static void pass(struct relay *relay, size_t length)
{
	struct outgoing *out = &relay->outer;
	ssize_t sent;

	feed(&relay->stream, received, length);
	if (out->socket < 0)
		return;
	sent = send(out->socket, received, length, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent < 0 && errno != EAGAIN)
		fail("logger");
	sent = sent < 0 ? 0 : sent;
	out->length = length - sent;
	memcpy(out->waiting, received + sent, out->length);
}
