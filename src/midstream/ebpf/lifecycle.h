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

/* The stream is complete: remember only what recognises its retransmissions. */
static __always_inline void finish(const struct packet *p, const struct connection *c)
{
	struct finished done = {.length = c->next, .first = c->first};
	__u32 sensor = c->sensor;

	bpf_map_update_elem(&finished, &p->key, &done, BPF_ANY);
	if (!bpf_map_delete_elem(&connections, &p->key))
		give_back_connection(sensor);
}

/* The connection ends without its stream being complete. False if another CPU was faster, or the
 * ring has no room to tell the reader.
 */
static __always_inline bool break_off(const struct packet *p, const struct connection *c)
{
	__u32 sensor = c->sensor;
	struct record *record = reserve(sensor, sizeof(*record));

	if (!record)
		return false;
	describe(record, p, c, c->next, RECORD_RESET);
	record->length = 0;
	if (bpf_map_delete_elem(&connections, &p->key)) {
		bpf_ringbuf_discard(record, settings.wakeup);
		return false;
	}
	bpf_ringbuf_submit(record, settings.wakeup);
	give_back_connection(sensor);
	return true;
}

#endif
