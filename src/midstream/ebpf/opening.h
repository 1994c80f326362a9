/* SPDX-License-Identifier: GPL-2.0-only */
/* How a connection begins: from the SYN to the first word that the sensor has heard of the logger. */
#ifndef MIDSTREAM_OPENING_H
#define MIDSTREAM_OPENING_H

#include "lifecycle.h"
#include "marked.h"
#include "outcome.h"
#include "plausible.h"
#include "reclaim.h"
#include "reserve.h"
#include "sensors.h"
#include "tables.h"

/* Where connections go that open now. */
static __always_inline __u32 destination_now(void)
{
	const struct control *told;
	__u32 zero = 0;

	told = bpf_map_lookup_elem(&control, &zero);
	return told ? told->destination : 0;
}

/* A SYN opens the connection here before its destination sees it. */
static __always_inline int open(struct xdp_md *ctx, struct packet *p, const struct sensor *sensor)
{
	struct connection c = {.fin = NO_FIN, .first = p->sequence + 1, .sensor = sensor->number};
	__u32 zero = 0, number = sensor->number, *last;
	struct share *share = bpf_map_lookup_elem(&shares, &number);
	enum room room = ROOM;
	struct record *record;

	last = bpf_map_lookup_elem(&last_number, &zero);
	if (!last || !share)
		return XDP_DROP;
	if (!verified(ctx, p, 0)) {
		COUNT(number, bad_checksum);
		return XDP_DROP;
	}
	p->time = bpf_ktime_get_ns();
	if (share->open >= settings.open_quota) {
		room = make_room(p, number);
		if (room != ROOM) {
			if (room != COUNTED)
				COUNT(number, quota_full);
			return room == ASKED ? XDP_TX : XDP_DROP;
		}
	}
	c.seen = c.opened = p->time;
	c.destination = destination_now();
	__builtin_memcpy(c.mac, p->headers->eth.h_source, ETH_ALEN);
	for (int attempt = 0; attempt < 2; attempt++) {
		record = reserve(number, sizeof(*record));
		if (!record)
			return XDP_DROP;
		if (!c.number)
			c.number = __sync_fetch_and_add(last, 1) + 1;
		describe(record, p, &c, 0, RECORD_OPEN);
		if (!bpf_map_update_elem(&connections, &p->key, &c, BPF_NOEXIST)) {
			__sync_fetch_and_add(&share->open, 1);
			bpf_map_delete_elem(&finished, &p->key);
			bpf_ringbuf_submit(record, settings.wakeup);
			COUNT(number, opened);
			return forward(p->headers, c.destination);
		}
		bpf_ringbuf_discard(record, settings.wakeup);
		if (!attempt)
			room = make_room(p, ANY_SENSOR);
		if (room != ROOM)
			break;
	}
	if (room != COUNTED)
		COUNT(number, table_full);
	return room == ASKED ? XDP_TX : XDP_DROP;
}

/* A later SYN upon a connection: its destination challenges it (RFC 5961), unless it has refused the one before. Then
 * the connection begins with this one, wherever they go now.
 */
static __always_inline int open_again(struct packet *p, struct connection *c)
{
	c->other_first = p->sequence + 1;
	if (!c->established) {
		c->seen = c->opened = bpf_ktime_get_ns();
		c->destination = destination_now();
	}
	COUNT(c->sensor, syn_ignored);
	return forward(p->headers, c->destination);
}

/* Several SYNs came, and none is established: does this segment, the first of its stream, say which one the logger
 * has answered? The connection is that one then; nothing of another was ever held.
 */
static __always_inline bool is_answered(const struct packet *p, struct connection *c)
{
	bool answered;

	bpf_spin_lock(&c->lock);
	if (p->sequence == c->other_first && !c->established) {
		c->first = c->other_first;
		c->other_first = 0;
	}
	answered = p->sequence == c->first;
	bpf_spin_unlock(&c->lock);
	return answered;
}

#endif
