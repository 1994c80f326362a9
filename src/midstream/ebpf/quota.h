/* SPDX-License-Identifier: GPL-2.0-only */
/* What one sensor may take of what all share, so that none can starve the others. */
#ifndef MIDSTREAM_QUOTA_H
#define MIDSTREAM_QUOTA_H

#include "bpf.h"
#include "settings.h"
#include "tables.h"

/* May this sensor store a record of `size` bytes? Whoever does adds it to `younger`. Two CPUs that add
 * at the same time may lose one record's bytes: a quota is a fence, not an account.
 */
static __always_inline bool has_ring_share(struct share *share, __u32 size)
{
	if (share->younger + size > settings.ring_quota / 2) {
		if (bpf_ringbuf_query(&ring, BPF_RB_CONS_POS) < share->older_end)
			return false;
		share->older_end = bpf_ringbuf_query(&ring, BPF_RB_PROD_POS);
		share->younger = 0;
	}
	return true;
}

static __always_inline void give_back_connection(__u32 sensor)
{
	struct share *share = bpf_map_lookup_elem(&shares, &sensor);

	if (share)
		__sync_fetch_and_add(&share->open, -1);
}

#endif
