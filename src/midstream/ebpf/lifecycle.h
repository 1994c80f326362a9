/* SPDX-License-Identifier: GPL-2.0-only */
/* How a connection begins and ends in the tables, and what the reader is told of it. */
#ifndef MIDSTREAM_LIFECYCLE_H
#define MIDSTREAM_LIFECYCLE_H

#include "marked.h"
#include "outcome.h"
#include "quota.h"
#include "reserve.h"
#include "sensors.h"
#include "tables.h"

/* A SYN opens the connection here before the logger sees it. */
static __always_inline int open(struct xdp_md *ctx, struct packet *p, const struct sensor *sensor)
{
	struct connection c = {.fin = NO_FIN, .first = p->sequence + 1, .sensor = sensor->number};
	__u32 zero = 0, number = sensor->number, *last;
	struct share *share = bpf_map_lookup_elem(&shares, &number);
	struct record *record;

	last = bpf_map_lookup_elem(&last_number, &zero);
	if (!last || !share)
		return XDP_DROP;
	if (!verified(ctx, p, 0)) {
		COUNT(number, bad_checksum);
		return XDP_DROP;
	}
	if (share->open >= settings.open_quota) {
		COUNT(number, quota_full);
		return XDP_DROP;
	}
	record = reserve(number, sizeof(*record));
	if (!record)
		return XDP_DROP;
	p->time = bpf_ktime_get_ns();
	c.seen = p->time;
	c.number = __sync_fetch_and_add(last, 1) + 1;
	__builtin_memcpy(c.mac, p->headers->eth.h_source, ETH_ALEN);
	describe(record, p, &c, 0, RECORD_OPEN);

	if (bpf_map_update_elem(&connections, &p->key, &c, BPF_NOEXIST)) {
		bpf_ringbuf_discard(record, settings.wakeup);
		COUNT(number, table_full);
		return XDP_DROP;
	}
	__sync_fetch_and_add(&share->open, 1);
	bpf_map_delete_elem(&finished, &p->key);
	bpf_ringbuf_submit(record, settings.wakeup);
	COUNT(number, opened);
	return forward(p->headers);
}

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
