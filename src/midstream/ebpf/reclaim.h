/* SPDX-License-Identifier: GPL-2.0-only */
/* Room in a full table: what never became a connection, or what its sensor has forgotten.
 *
 * A logger's refusal goes straight to the sensor, so nothing here tells that an opening was in vain. It does not
 * matter until the table, or a sensor's share of it, is full. Then the oldest opening that was never completed
 * makes room. If there is none, the SYN that found no room becomes a question to the sensor whose connection has
 * been silent for longest: what TCP's keep-alive asks (RFC 9293, section 3.8.4). A sensor that has forgotten the connection
 * answers with a reset, which ends it here and at the logger; one that knows it is left alone. Who does not
 * answer several questions is gone.
 */
#ifndef MIDSTREAM_RECLAIM_H
#define MIDSTREAM_RECLAIM_H

#include "const.h"
#include "lifecycle.h"
#include "marked.h"
#include "packet.h"
#include "tables.h"

/* For how long a connection must have been silent before its sensor is asked, or a later SYN from its port believed. */
#define SILENCE (10 * 1000000000ULL)
/* For so long an answer is waited for, */
#define PATIENCE (1 * 1000000000ULL)
/* and so many questions are asked. */
#define QUESTIONS 3
#define ANY_SENSOR SENSOR_COUNT

enum room { NO_ROOM, ROOM, ASKED, COUNTED };

struct search {
	struct connection_key key; /* of the one to go, so far */
	__u64 seen;
	__u64 now;
	__u32 sensor; /* whose connections are looked at, or ANY_SENSOR */
	enum { NOTHING, SILENT, HALF_OPEN } found;
};

static long look_at(const void *map, const struct connection_key *key, const struct connection *c,
		    struct search *search)
{
	__u32 found = c->established ? SILENT : HALF_OPEN;

	(void)map;
	if (search->sensor != ANY_SENSOR && search->sensor != c->sensor)
		return 0;
	if (found == SILENT &&
	    ((__s64)(search->now - c->seen) <= (__s64)SILENCE || search->now - c->asked <= PATIENCE))
		return 0;
	if (found > search->found || (found == search->found && c->seen < search->seen)) {
		search->found = found;
		search->seen = c->seen;
		search->key = *key;
	}
	return 0;
}

/* Make room at the cost of a connection of `whose`. ASKED: the packet has become a question, which is to be sent.
 * COUNTED: the reader could not be told, and that is what became of the packet.
 */
static __always_inline enum room make_room(const struct packet *p, __u32 whose)
{
	struct search search = {.sensor = whose, .now = p->time};
	struct packet last = {.time = p->time};
	struct connection *c;

	bpf_for_each_map_elem(&connections, look_at, &search, 0);
	if (!search.found)
		return NO_ROOM;
	last.key = search.key;
	c = bpf_map_lookup_elem(&connections, &last.key);
	if (!c)
		return ROOM; /* another CPU was faster */
	if (c->established) {
		if (c->asked < c->seen)
			c->questions = 0;
		if (c->questions < QUESTIONS) {
			c->questions++;
			c->asked = p->time;
			/* Neither number is new to the sensor: nothing but the SYN is acknowledged, for what its peer
			 * has is not known here.
			 */
			answer(p->headers, &last.key, c->mac, c->acknowledged - 1, c->first, TCP_ACK);
			return ASKED;
		}
	}
	return break_off(&last, c) ? ROOM : COUNTED;
}

#endif
