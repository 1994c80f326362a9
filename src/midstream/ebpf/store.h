/* SPDX-License-Identifier: GPL-2.0-only */
/* Stored before forwarded: a segment goes into the ring, and only then on to its destination. */
#ifndef MIDSTREAM_STORE_H
#define MIDSTREAM_STORE_H

#include "checksum.h"
#include "connection.h"
#include "copy.h"
#include "lifecycle.h"
#include "marked.h"
#include "outcome.h"
#include "reserve.h"

/* Store a segment in a record with room for `capacity` bytes, then forward it. The verifier wants the room to be
 * a constant. `exact`: the length of the payload, where that is one too, else 0. A segment of which a part is known
 * is stored whole all the same: the checksum is over the whole, and the reader cuts.
 */
static __always_inline int store(struct xdp_md *ctx, const struct packet *p, struct connection *c, const __u32 capacity,
				 const __u32 exact)
{
	bool fin = p->flags & TCP_FIN, taken;
	__u32 sensor = c->sensor;
	struct record *record;
	enum claim verdict;
	__u64 sum = 0;
	__s64 start;
	int way;

	/* Room first: bytes once claimed must be stored. */
	record = reserve(sensor, sizeof(*record) + capacity);
	if (!record)
		return XDP_DROP;
	if (exact) /* the usual case, which is to cost no call */
		taken = copy_exactly(ctx, p, record, exact, &sum) &&
			(!settings.check || is_intact_here(ctx, exact, sum));
	else
		taken = (!p->length || copy(ctx, p, record, capacity, &sum)) && verified(ctx, p, sum);
	if (!taken) {
		verdict = CLAIM_BAD_CHECKSUM;
		goto discard;
	}

	bpf_spin_lock(&c->lock);
	start = stream_offset(p->sequence, c->first, c->next);
	verdict = claim(c, start, start + p->length, fin);
	if (verdict == CLAIM_STORED) {
		c->acknowledged = p->acknowledgement;
		c->established = 1;
		c->timestamp = p->timestamp;
	}
	if (verdict == CLAIM_OUT_OF_ORDER && !c->established) {
		c->acknowledged = p->acknowledgement;
		c->established = 1;
	}
	if (verdict <= CLAIM_DUPLICATE) {
		c->seen = p->time;
		c->other_first = 0;
	}
	bpf_spin_unlock(&c->lock);
	if (verdict > CLAIM_OUT_OF_ORDER)
		goto discard;

	describe(record, p, c, start, fin ? RECORD_FIN : 0);
	bpf_ringbuf_submit(record, settings.wakeup);
	if (verdict == CLAIM_STORED)
		COUNT(sensor, stored);
	else
		COUNT(sensor, out_of_order);
	way = forward(p->headers, c->destination); /* before the entry may be another connection's */
	if (c->next == c->fin)
		finish(p, c);
	return way;

discard:
	/* With the same flags as a submission: a reader that waits for this record must look past it. */
	bpf_ringbuf_discard(record, settings.wakeup);
	if (verdict == CLAIM_DUPLICATE) {
		COUNT(sensor, duplicate);
		return forward(p->headers, c->destination);
	}
	if (verdict == CLAIM_OUT_OF_WINDOW)
		COUNT(sensor, out_of_window);
	else if (verdict == CLAIM_BAD_CHECKSUM)
		COUNT(sensor, bad_checksum);
	else
		COUNT(sensor, beyond_fin);
	return XDP_DROP;
}

#endif
