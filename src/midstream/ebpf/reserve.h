/* SPDX-License-Identifier: GPL-2.0-only */
/* Records for the ring: their room, and what they say of the packet. */
#ifndef MIDSTREAM_RESERVE_H
#define MIDSTREAM_RESERVE_H

#include "marked.h"
#include "outcome.h"
#include "quota.h"
#include "record.h"

static __always_inline void describe(struct record *record, const struct packet *p, const struct connection *c,
				     __u64 offset, __u16 flags)
{
	record->offset = offset;
	record->time = p->time;
	record->connection = c->number;
	record->length = p->length;
	record->sensor = c->sensor;
	record->port = bswap16(p->key.port);
	record->flags = flags;
	record->unused = 0;
}

/* Room for a record, from the sensor's share of the ring. The verifier wants `size` to be a constant. */
static __always_inline void *reserve(__u32 sensor, const __u32 size)
{
	struct share *share = bpf_map_lookup_elem(&shares, &sensor);
	void *record;

	if (!share || !has_ring_share(share, size)) {
		COUNT(sensor, quota_full);
		return NULL;
	}
	record = bpf_ringbuf_reserve(&ring, size, 0);
	if (!record) {
		COUNT(sensor, ring_full);
		return NULL;
	}
	share->younger += size;
	return record;
}

#endif
