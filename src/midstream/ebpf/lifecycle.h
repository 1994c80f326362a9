/* SPDX-License-Identifier: GPL-2.0-only */
/* How a connection ends in the tables, and what the reader is told of it. */
#ifndef MIDSTREAM_LIFECYCLE_H
#define MIDSTREAM_LIFECYCLE_H

#include "marked.h"
#include "outcome.h"
#include "quota.h"
#include "reserve.h"
#include "sensors.h"
#include "tables.h"

/* What is told of a connection's end: all of it is read while the entry is still the connection's. */
static __always_inline struct ended end_of(const struct packet *p, const struct connection *c, __u16 how)
{
	return (struct ended){
		.key = p->key,
		.held = c->next,
		.opened = c->opened,
		.first = c->first,
		.destination = c->destination,
		.number = c->number,
		.sensor = c->sensor,
		.how = how,
	};
}

/* Take an entry out, and tell the daemon; if it does not listen, the oldest news go. False if another CPU was faster. */
static __always_inline bool end(const struct packet *p, const struct ended *told)
{
	if (bpf_map_delete_elem(&connections, &p->key))
		return false;
	give_back_connection(told->sensor);
	bpf_map_push_elem(&ended, told, BPF_EXIST);
	return true;
}

/* The stream is complete: remember only what recognises its retransmissions. */
static __always_inline void finish(const struct packet *p, const struct connection *c)
{
	struct finished done = {.length = c->next, .first = c->first, .destination = c->destination};
	struct ended told = end_of(p, c, RECORD_FIN);

	bpf_map_update_elem(&finished, &p->key, &done, BPF_ANY);
	end(p, &told);
}

/* The connection ends without its stream being complete. False if another CPU was faster, or the
 * ring has no room to tell the reader.
 */
static __always_inline bool break_off(const struct packet *p, const struct connection *c)
{
	struct ended told = end_of(p, c, RECORD_RESET);
	struct record *record = reserve(told.sensor, sizeof(*record));

	if (!record)
		return false;
	describe(record, p, c, told.held, RECORD_RESET);
	record->length = 0;
	if (!end(p, &told)) {
		bpf_ringbuf_discard(record, settings.wakeup);
		return false;
	}
	bpf_ringbuf_submit(record, settings.wakeup);
	return true;
}

#endif
